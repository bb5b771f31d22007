"""Search the protocol and all its mutants and print what was found: ``python -m verification``. Some minutes.

Ends with status 1 if the protocol breaks a property, or a mutant does not do what docs/verification.md says of it.
"""

from __future__ import annotations

import sys
import time

from verification.check import search
from verification.mutants import HARMLESS, ROOMS, orders, switches


def main() -> int:
    """Print a line for each room and each mutant."""
    status = 0
    for name, room in ROOMS.items():
        start_s = time.monotonic()
        outcome = search(room)
        status |= outcome.broken is not None
        print(
            f"{name:8} {outcome.states:7} states {outcome.steps:7} steps, depth {outcome.depth:3}: "
            f"{outcome.broken or 'every property holds'}  ({time.monotonic() - start_s:.1f} s)",
            *outcome.trace,
            sep="\n    ",
            flush=True,
        )
    for mutant in (*switches(), *orders()):
        outcome = mutant.hunt()
        wrong = (outcome.broken is None) != (mutant.name in HARMLESS)
        status |= wrong
        found = f"{outcome.broken}, after {len(outcome.trace)} steps" if outcome.broken else "harmless"
        print(f"{mutant.name:50} {found}{'  NOT AS TOLD' * wrong}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
