"""Runs another program of this folder with faults in framebus: ``mutated.py FAULT[,FAULT] PROGRAM ARGUMENTS``."""

from __future__ import annotations

import runpy
import sys

from tests.race.mutants import apply
from tests.support import PROGRAMS


def main() -> None:
    _, faults, program, *arguments = sys.argv
    for fault in faults.split(","):
        apply(fault)
    sys.argv = [program, *arguments]
    runpy.run_path(str(PROGRAMS / f"{program}.py"), run_name="__main__")


main()
