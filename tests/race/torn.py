"""A publisher at full speed, and subscribers that hold frames for random times and check every byte of them.

``python -m tests.race.torn --minutes 10`` prints a report as JSON. Its exit status is 1 if a check failed.

The publisher fills each frame with random bytes, and stores their CRC-32 and the sequence in the frame's metadata. It
holds up to two loans, or three in a ring of another geometry, and publishes them in random order. At random it abandons
a loan, or drops its last reference, half-written or whole; reopens the stream with open loans (adopting the ring, or
replacing it with one of another geometry); or pauses. Subscribers hold every seat of the smaller ring. Each checks a
frame when it receives the frame, and again before it releases it.

These events are allowed:

- *Skipped frames*: the mode ``newest`` skips by design; in the mode ``every``, a slot may be reused before its turn,
  because the publisher never waits, or the publisher continues in a new file without the old frames. Received and
  skipped frames must add up to the sequences from the first frame to the last.
- *Overruns*: a slot is reused between R1 and R2. They are counted, and the subscriber retries.
- *New rings* (``reattached``): the publisher came back with another geometry.
- *Abandoned and lost loans, and lives*: the publisher does this on purpose.

Everything else is a failure: a checksum that does not match the bytes (``torn``), a repeated or decreasing sequence, or
one that differs from the metadata (``mislabelled``), a gap that is not counted, an invalid header or notification
(``rejected``), a frame that the publisher had to drop, although admission leaves it a slot for each loan, a loan that
is not counted as published, abandoned or lost (``miscounted``), a subscriber that ends, hangs, or does not reach the
last frame when the publisher pauses, and a file that is left at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import select
import signal
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from framebus import Frame, FrameFormat, Loan, Publisher, Subscriber, remove_leftovers
from tests.race.victims import STUCK_AFTER_S, fork
from tests.support import files_of

FORMAT: Final = FrameFormat(60, 100)
GEOMETRIES: Final = ((17, 2), (20, 3))
"""Slots and loans of the two kinds of ring."""
NEW_GEOMETRY: Final = 0.3
"""How likely at an opening."""
OPEN_AGAIN: Final = 0.002
"""How likely before a loan is taken or ended; so is the next."""
REST: Final = 0.03
TAKE: Final = 0.5
"""How likely a loan is taken while others are out."""
ABANDON: Final = 0.02
LOSE: Final = 0.02
"""How likely a loan ends so, and not by its publication."""
OPEN: Final = b"open\n"
ANSWER: Final = object()
"""Stands for the descriptor that a process answers on."""


class Reader(NamedTuple):
    """How a subscriber takes its frames."""

    mode: Any
    wake: Any
    hold_ms: float
    """Longest time that it keeps one."""
    leases: int = 2


READERS: Final = (
    Reader("newest", "zmq", 0.0),
    Reader("newest", "futex", 20.0, 3),
    Reader("every", "zmq", 1.0),
    Reader("every", "futex", 0.0),
    Reader("every", "futex", 4.0, 3),
    Reader("newest", "predict", 2.0, 1),
    Reader("every", "busy", 0.0, 1),
)


class Renderer:
    """One life of a publisher, and what it has done with its loans."""

    def __init__(self, publisher: Publisher, max_loans: int, chance: random.Random, content: NDArray[np.uint8]) -> None:
        self.publisher = publisher
        self.did = Counter[str]()
        self._max_loans = max_loans
        self._chance = chance
        self._content = content
        self._loans: list[Loan] = []

    def step(self) -> None:
        """Take a loan, or end one of those that are out."""
        is_full = len(self._loans) == self._max_loans
        if not self._loans or (not is_full and self._chance.random() < TAKE):
            loan = self.publisher.loan()
            loan.pixels[: FORMAT.height // 2] = 0
            self._loans.append(loan)
        else:
            self.end_one()

    def end_one(self) -> None:
        """Publish, abandon or lose any of the loans."""
        loan = self._loans.pop(self._chance.randrange(len(self._loans)))
        draw = self._chance.random()
        if draw < ABANDON:
            loan.abandon()
            self.did["abandoned"] += 1
        elif draw < ABANDON + LOSE:
            self.did["lost"] += 1  # the loan's last reference goes when this returns
        else:
            self.publish(loan)

    def publish(self, loan: Loan, *, last: bool = False) -> None:
        """Publish random bytes with their checksum and sequence."""
        start = self._chance.randrange(FORMAT.frame_bytes)
        pixels = self._content[start : start + FORMAT.frame_bytes].tobytes()
        loan.pixels.reshape(-1)[:] = np.frombuffer(pixels, np.uint8)
        sequence = self.publisher.statistics.sequence + 1
        loan.metadata = {"crc": zlib.crc32(pixels), "sequence": sequence, "last": last}
        loan.publish()
        self.did["published"] += 1

    def finish(self, *, last: bool) -> dict[str, int]:
        """Have one loan at most still out, publish the stream's last frame if ``last``; the publisher's counters."""
        while len(self._loans) > (0 if last else 1):
            self.end_one()
        loan = self.publisher.loan()  # lost loans are counted now at the latest
        if last:
            self.publish(loan, last=True)
        else:
            loan.abandon()
            self.did["abandoned"] += 1
        statistics = self.publisher.statistics
        done = {"published": statistics.published, "abandoned": statistics.abandoned, "lost": statistics.lost}
        expected = {**self.did, "abandoned": self.did["abandoned"] + self.did["lost"]}
        return {
            **done,
            "dropped": statistics.dropped,
            "miscounted": sum(done[name] != expected.get(name, 0) for name in done),
        }


def publish(stream: str, seconds: float, seed: int, answer: int, go_on: int) -> None:
    """Publish in many lives for some seconds after it is told to, then one last frame."""
    chance = random.Random(seed)
    content = np.random.default_rng(seed).integers(0, 256, 2 * FORMAT.frame_bytes, np.uint8)
    counted: Counter[str] = Counter()
    end_s = float("inf")
    ends = False
    while not ends:
        slots, max_loans = GEOMETRIES[chance.random() < NEW_GEOMETRY]
        with Publisher(stream, FORMAT, slots=slots, max_loans=max_loans, keep_ring=True) as publisher:
            if not counted["lives"]:
                os.write(answer, OPEN)
                os.read(go_on, 1)
                end_s = time.monotonic() + seconds
            renderer = Renderer(publisher, max_loans, chance, content)
            while time.monotonic() < end_s and chance.random() > OPEN_AGAIN:
                if chance.random() < REST:
                    time.sleep(chance.random() * 0.02)
                renderer.step()
            ends = time.monotonic() >= end_s
            counted.update(renderer.finish(last=ends))
            counted["lives"] += 1
            if ends:
                last = publisher.statistics.sequence
                os.write(answer, json.dumps({**counted, "last": last}).encode())
                os.read(go_on, 1)
        del renderer  # until then a loan that is still out keeps its slot in the closed ring, which is adopted


def subscribe(stream: str, reader: Reader, seed: int, answer: int) -> None:
    """Receive and check until the last frame."""
    chance = random.Random(seed)
    torn = backwards = mislabelled = first = last = 0
    held: deque[Frame] = deque()
    with Subscriber(
        stream, name="checker", mode=reader.mode, wake=reader.wake, max_leases=reader.leases, gone_after_s=STUCK_AFTER_S
    ) as subscriber:
        os.write(answer, OPEN)
        ends = False
        while not ends:
            frame = subscriber.receive(STUCK_AFTER_S)
            torn += not is_whole(frame)
            backwards += frame.sequence <= last
            mislabelled += frame.metadata["sequence"] != frame.sequence
            first, last, ends = first or frame.sequence, frame.sequence, frame.metadata["last"]
            held.append(frame)
            time.sleep(chance.random() * reader.hold_ms / 1e3)
            while held and (ends or len(held) >= reader.leases or chance.random() < 0.5):
                with held.popleft() as old:
                    torn += not is_whole(old)
        statistics = subscriber.statistics
    report = {
        "torn": torn,
        "backwards": backwards,
        "mislabelled": mislabelled,
        "uncounted": last - first + 1 - statistics.received - statistics.skipped,
        "rejected": statistics.rejected + statistics.notifications_rejected,
        "received": statistics.received,
        "skipped": statistics.skipped,
        "overruns": statistics.overruns,
        "reattached": statistics.reattached,
        "last": last,
    }
    os.write(answer, json.dumps(report).encode())


def is_whole(frame: Frame) -> bool:
    """Whether the checksum beside the pixels is theirs."""
    return zlib.crc32(frame.pixels.data) == int(frame.metadata["crc"])


NEVER: Final = ("torn", "backwards", "mislabelled", "uncounted", "rejected")


def run(seconds: float, seed: int) -> dict[str, Any]:
    """Let them race, and report what was seen."""
    chance = random.Random(seed)
    stream = f"torn-{secrets.token_hex(6)}"
    hold, go_on = os.pipe()
    started: list[tuple[int, int]] = []

    def start(function: Callable[..., None], *arguments: object) -> None:
        reader, writer = os.pipe()

        def live() -> None:
            os.close(go_on)
            function(*(writer if argument is ANSWER else argument for argument in arguments))

        started.append((fork(live), reader))
        os.close(writer)
        if os.read(reader, len(OPEN)) != OPEN:
            raise RuntimeError(f"{arguments} did not begin")

    broken: list[str] = []
    reports: list[dict[str, int]] = []
    try:
        start(publish, stream, seconds, chance.getrandbits(32), ANSWER, hold)
        for reader in READERS:
            start(subscribe, stream, reader, chance.getrandbits(32), ANSWER)
        os.write(go_on, b"\n")
        for _, answer in started:
            patience_s = seconds + 3 * STUCK_AFTER_S
            content = os.read(answer, 65536) if select.select([answer], [], [], patience_s)[0] else b""
            reports.append(json.loads(content or b"{}"))
    finally:
        for pid, answer in started:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(answer)
        os.close(go_on)
        os.close(hold)
        remove_leftovers(stream)
    published, *received = reports
    if not published or published["dropped"] or published["miscounted"]:
        broken.append(f"the publisher said {published}")
    for reader, report in zip(READERS, received, strict=True):
        if not report or any(report[name] for name in NEVER) or report["last"] != published.get("last"):
            broken.append(f"{reader} said {report}")
    if files_of(stream):
        broken.append(f"left at the end: {files_of(stream)}")
    return {
        "seconds": seconds,
        "seed": seed,
        "publisher": published,
        "subscribers": [{**reader._asdict(), **report} for reader, report in zip(READERS, received, strict=True)],
        "broken promises": broken,
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.race.torn", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    report = run(options.minutes * 60, options.seed)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return int(bool(report["broken promises"]))


if __name__ == "__main__":
    raise SystemExit(main())
