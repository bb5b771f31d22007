"""Search the protocol and all its mutants, and print the results: ``python -m verification``. It takes some minutes.

The exit status is 1 if the protocol violates a property, or if a mutant behaves differently from docs/verification.md.
"""

from __future__ import annotations

import sys
import time

from verification.check import search
from verification.mutants import CONFIGURATIONS, HARMLESS, orders, switches


def main() -> int:
    """Print a line for each configuration and each mutant."""
    status = 0
    for name, configuration in CONFIGURATIONS.items():
        start_s = time.monotonic()
        outcome = search(configuration)
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
        print(f"{mutant.name:50} {found}{'  NOT AS EXPECTED' * wrong}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
