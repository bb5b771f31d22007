"""Runs another program of this folder with faults in framebus: ``mutated.py FAULT[,FAULT] PROGRAM ARGUMENTS``.

Instead of faults, it accepts a library of compiled steps with faults.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from tests.race.mutants import apply, load
from tests.support import PROGRAMS


def main() -> None:
    _, faults, program, *arguments = sys.argv
    if faults.endswith(".so"):
        load(Path(faults))
    else:
        for fault in faults.split(","):
            apply(fault)
    sys.argv = [program, *arguments]
    runpy.run_path(str(PROGRAMS / f"{program}.py"), run_name="__main__")


main()
