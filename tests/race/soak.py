"""Races for some minutes, as long a torture, then kills: ``python -m tests.race.soak --minutes 10 --kills 10000``.

Prints one report as JSON and ends with status 1 if a promise was broken. What may happen, and why, is told in torn.py
and torture.py; what must hold among the dead, in kills.py.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys

from tests.race import kills, torn, torture


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.race.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=0.0, help="of races, and of torture; none at 0")
    parser.add_argument("--kills", type=int, default=10_000, help="after the races; none at 0")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    report = {}
    if options.minutes:
        report["races"] = torn.run(options.minutes * 60, options.seed)
        report["torture"] = torture.run(options.minutes * 60, options.seed)
    if options.kills:
        report["kills"] = kills.run(options.kills, options.seed)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return int(any(part["broken promises"] for part in report.values()))


if __name__ == "__main__":
    raise SystemExit(main())
