"""``python -m bench.storage [SECTION...]``: measures where bytes are stored and what that costs. Run it as root."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from rich.console import Console
from rich.markdown import Markdown

from bench.results import FORMAT, load, machine, now, save
from bench.storage import backup, bundles, disks, drivers, handover, ring, supervisors, union
from bench.storage.figures import lines, to_json
from bench.storage.form import FORMS, Form
from bench.storage.mounts import work_folder
from bench.storage.page import published

ROOT: Final = Path(__file__).resolve().parent.parent.parent
FOLDER: Final = ROOT / ".bench" / "storage"
PAGE: Final = ROOT / "docs" / "storage.md"
SECTIONS: Final = {one.NAME: one for one in (union, drivers, disks, handover, supervisors, ring, backup, bundles)}


def measure(names: list[str], form: Form, console: Console) -> dict[str, Any]:
    """Run the sections, print their tables, and return their results."""
    results: dict[str, Any] = {
        "format": FORMAT, "form": form.name, "image": "", "rounds": None,
        "started": now(), "machine": machine(), "sections": {},
    }  # fmt: skip
    with work_folder(FOLDER) as place:
        for name in names:
            console.print(f"{name} …")
            # The load before each section, because the load average during it is its own.
            begun_s, load_before = time.monotonic(), round(os.getloadavg()[0], 2)
            tables = SECTIONS[name].measure(form, place / name)
            results["sections"][name] = {
                "tables": to_json(tables), "seconds": time.monotonic() - begun_s, "load_before": load_before,
            }  # fmt: skip
            for one in tables:
                console.print(Markdown("\n".join(lines(one))))
    return results


def _interrupt(number: int, frame: object) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt


def main() -> int:
    """Measure, print and save the tables, and publish them in the page with ``--publish``."""
    parser = argparse.ArgumentParser(prog="python -m bench.storage", description=(__doc__ or "").strip())
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; default: all")
    parser.add_argument("--form", choices=FORMS, default="short", help="short takes less than 5 minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="number of rounds of everything, instead of the form's")
    parser.add_argument("--image", help="the image with which the storage drivers are compared")
    parser.add_argument("--keep-caches", action="store_true", help="never drop the machine's caches: no cold figures")
    parser.add_argument("--output", type=Path, help="where the results are saved as JSON")
    parser.add_argument("--publish", action="store_true", help="put the tables into docs/storage.md")
    parser.add_argument("--from", dest="saved", type=Path, help="saved results, instead of measuring")
    options = parser.parse_args()
    names = options.sections or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]}: the sections are {', '.join(SECTIONS)}")
    form = FORMS[options.form]
    # Cold figures need the caches of the whole machine dropped, which slows down other programs.
    form = replace(form, may_drop_caches=not options.keep_caches, image=options.image or form.image)
    if (rounds := options.rounds) is not None:
        if rounds < 1:
            parser.error("--rounds must be 1 or more")
        form = replace(form, rounds=rounds, engine_rounds=rounds, hand_over_rounds=rounds)
    # End by an exception on SIGTERM too, so that mounts, loop disks, groups and engines are removed.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.saved:
            results = load(options.saved)
        else:
            results = measure(names, form, Console(width=max(120, Console().width)))
            results |= {"image": options.image or "", "rounds": options.rounds}
            path = options.output or FOLDER / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{form.name}.json"
            save(results, path)
            print(path)
        if options.publish:
            PAGE.write_text(published(PAGE.read_text(), results))
            print(f"published in {PAGE.relative_to(ROOT)}: check its sentences against the new tables")
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
