"""Events that containers may meet, and how long the page is without pictures and boxes afterwards.

``python -m tests.e2e.restarts`` measures the rows of the table in docs/operations.md and prints them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.e2e.engine import SERVICES, Project
from tests.e2e.watcher import Watcher

SETTLE_S = 12.0
"""A container that ran for ten seconds is restarted at once; one that did not, after a pause that doubles."""
JOINED = {"holder", "stitcher", "detector", "streamer"}
WORKERS = {"stitcher", "detector", "streamer"}


@dataclass(frozen=True)
class Case:
    """An event of one service."""

    row: str
    """How docs/operations.md calls it."""
    service: str
    act: Callable[[Project], object]


def restart(service: str, project: Project) -> None:
    """Restart a service as an operator does."""
    project.compose("restart", service)


def recreate(service: str, project: Project) -> None:
    """Replace a service's container as an operator does."""
    project.compose("up", "-d", "--force-recreate", service)


CASES = [
    *(Case(f"`up --force-recreate {service}`", service, partial(recreate, service)) for service in SERVICES),
    *(Case(f"`restart {service}`", service, partial(restart, service)) for service in SERVICES),
    *(Case(f"{service} killed", service, partial(Project.kill, service=service)) for service in SERVICES),
]
"""Each of these leaves every other container, and the ring, alone."""


def wait_until_it_works(project: Project, watcher: Watcher, since_s: float) -> None:
    """Wait until pictures and boxes of frames published after ``since_s`` have arrived, and all services are healthy.

    Raises:
        AssertionError: They do not in time.
    """

    def works() -> bool:
        pictures = [seen for seen in watcher.pictures if seen.at_s > since_s]
        boxes = [seen for seen in watcher.boxes if seen.at_s > since_s]
        if not pictures or not boxes:
            return False
        first = pictures[0]
        return any(seen.sequence > first.sequence for seen in boxes) and (project.healthy() >= WORKERS)

    project.wait_for(works, "pictures and boxes come, and all services are healthy")


def main() -> int:
    """Measure each case once and print its row."""
    project = Project()
    try:
        project.compose("up", "-d", "--build", "--wait", timeout_s=600)
        with Watcher(project.url) as watcher:
            wait_until_it_works(project, watcher, time.monotonic())
            for case in CASES:
                time.sleep(SETTLE_S)
                since_s = time.monotonic()
                case.act(project)
                time.sleep(1.0)
                wait_until_it_works(project, watcher, time.monotonic())
                time.sleep(3.0)
                picture_s, boxes_s = watcher.pauses_s(since_s)
                reasons, watcher.reasons[:] = sorted(set(watcher.reasons)), []
                sys.stdout.write(f"| {case.row} | {picture_s:.1f} s | {boxes_s:.1f} s | {'; '.join(reasons)}\n")
                sys.stdout.flush()
    finally:
        project.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
