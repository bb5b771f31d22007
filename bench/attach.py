"""What attaching to a live ring costs, in a new process each time, and what reading its first lap costs."""

from __future__ import annotations

import secrets
import statistics
import time
from dataclasses import dataclass
from mmap import PAGESIZE
from multiprocessing import get_context
from multiprocessing.connection import Connection
from resource import RUSAGE_SELF, getrusage
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.harness import SHAPES
from framebus import FrameFormat, Publisher, Subscriber

SLOTS: Final = 8
LAPS: Final = 2
WAIT_S: Final = 10.0


@dataclass(frozen=True)
class Attached:
    """One attachment to a ring of eight 10 MB slots."""

    first_frame_ms: float
    """From the call that subscribes to the first frame's array."""
    first_lap_faults: int
    """Minor faults while one byte of every page of the first eight frames was read: the cost to the pixels' reader."""
    second_lap_faults: int
    """The same for the eight frames after them."""
    waiting_faults: int
    """All other minor faults from the first frame to the end: the subscriber maps the ring's pages while it waits."""
    touched_pages: int
    """Pages of eight frames."""


def _minor_faults() -> int:
    return getrusage(RUSAGE_SELF).ru_minflt


def faults_of_reading(content: npt.NDArray[np.uint8]) -> int:
    """Count the minor faults while one byte of each page of ``content`` is read."""
    before = _minor_faults()
    # One byte a page maps the page; reading all pixels would measure the memory's bandwidth too.
    np.add.reduce(content[::PAGESIZE])
    return _minor_faults() - before


def _attach(connection: Connection[Any, Any], stream: str) -> None:
    begun_ns = time.monotonic_ns()
    with Subscriber(stream, wake="futex", mode="every") as subscriber:
        subscriber.receive(WAIT_S).pixels  # noqa: B018  the time ends when the array exists
        first_frame_ms = (time.monotonic_ns() - begun_ns) / 1e6
        begun = _minor_faults()
        reading = [0] * LAPS
        for lap in range(LAPS):
            for _ in range(SLOTS):
                with subscriber.receive(WAIT_S) as frame:
                    reading[lap] += faults_of_reading(frame.pixels.reshape(-1))
        # Separate the faults that delay a reader from those that the subscriber takes while it waits.
        waiting = _minor_faults() - begun - sum(reading)
    pages = SLOTS * int(np.prod(SHAPES["10 MB"])) // PAGESIZE
    connection.send(Attached(first_frame_ms, reading[0], reading[1], waiting, pages))


def measure(times: int) -> list[Attached]:
    """Attach ``times`` times to a stream of 100 frames a second."""
    height, width, channels = SHAPES["10 MB"]
    # A forked child would inherit mappings that are already faulted in, and report too few faults.
    context = get_context("spawn")
    results = []
    stream = f"bench-{secrets.token_hex(4)}"
    with Publisher(stream, FrameFormat(height, width, channels), slots=SLOTS) as publisher:
        for _ in range(times):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_attach, args=(theirs, stream), daemon=True)
            process.start()
            # Close this copy of the child's end, so that a child that dies is an EOFError here.
            theirs.close()
            # Publish every 10 ms until the child has attached, read its two laps and reported.
            while not ours.poll(0.01):
                publisher.loan().publish()
                if not process.is_alive() and not ours.poll():
                    raise RuntimeError("the process that attaches to the ring died")
            results.append(ours.recv())
            process.join()
    return results


def summary(results: list[Attached]) -> dict[str, float]:
    """The median of each figure, and the range of the first frame's time."""
    return {
        "first_frame_ms": statistics.median(one.first_frame_ms for one in results),
        "first_frame_ms_least": min(one.first_frame_ms for one in results),
        "first_frame_ms_most": max(one.first_frame_ms for one in results),
        "first_lap_faults": statistics.median(one.first_lap_faults for one in results),
        "second_lap_faults": statistics.median(one.second_lap_faults for one in results),
        "waiting_faults": statistics.median(one.waiting_faults for one in results),
        "touched_pages": results[0].touched_pages,
    }
