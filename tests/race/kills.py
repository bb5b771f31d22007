"""Processes that are killed at every step of their work, again and again, while others go on.

``python -m tests.race.kills --kills 10000`` prints a report as JSON and ends with status 1 if a promise was broken.

The program is a warm fork server of one thread. It forks publishers, one after the other, and subscribers, two at a
time; each dies of SIGKILL at one point of its work, drawn at random, or at a random moment, some after a SIGSTOP. Two
residents, one that takes the newest frame and one that takes every frame, live through all of it and check each byte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NoReturn

from framebus import FrameFormat, Publisher, RingFull, StreamNotFound, Subscriber, notify, remove_leftovers, ring, seats
from framebus import segment as shm
from framebus.bus import publisher as publisher_module
from framebus.bus import subscriber as subscriber_module
from framebus.directory import inspect
from framebus.wake import Futex
from tests.support import files_of

FORMAT: Final = FrameFormat(30, 50)
GEOMETRIES: Final = (10, 12)
RESIDENTS: Final[tuple[Any, ...]] = (("newest", "zmq"), ("every", "futex"))
VICTIM_SUBSCRIBERS: Final = 2
STUCK_AFTER_S: Final = 20.0
SPARE_DESCRIPTORS: Final = 2
"""A connection of ZeroMQ's that came after the first count."""


def die(*_arguments: object, **_named: object) -> NoReturn:
    """End this process as a crash does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL did not end the process")


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call the function, then die."""

    def call(*arguments: object, **named: object) -> object:
        function(*arguments, **named)
        die()

    return call


def around_unlock(*, before: bool) -> None:
    """Die before, or after, the next slot is unlocked."""
    unlock = shm.Segment.unlock
    slots = set(ring.UNLOCK)

    def call(segment: shm.Segment, command: bytes) -> None:
        if command in slots and before:
            die()
        unlock(segment, command)
        if command in slots:
            die()

    shm.Segment.unlock = call  # type: ignore[method-assign, assignment]


def patch(owner: object, name: str, make: Callable[[Any], Any] | None = None) -> None:
    """Replace a function by one that dies instead, or by what ``make`` makes of it."""
    setattr(owner, name, die if make is None else make(getattr(owner, name)))


class _NoHeader:
    pack = staticmethod(die)


OPENING: Final[dict[str, Callable[[], None]]] = {
    "exclusion taken": lambda: patch(publisher_module, "take_exclusion", after),
    "ring opened, nothing written": lambda: patch(ring.PublisherRing, "_use"),
    "ring opened": lambda: patch(ring.PublisherRing, "_use", after),
    "file created": lambda: patch(shm, "create", after),
    "before the rename": lambda: patch(shm.Segment, "take_name"),
    "after the rename": lambda: patch(shm.Segment, "take_name", after),
    "before the bind": lambda: patch(notify.Notifier, "_bind"),
    "after the bind": lambda: patch(notify.Notifier, "_bind", after),
}
PUBLISHING: Final[dict[str, Callable[[], None]]] = {
    "slot locked": lambda: patch(ring.PublisherRing, "claim", after),
    "before the header": lambda: setattr(ring, "SLOT", _NoHeader),
    "before the unlock": lambda: around_unlock(before=True),
    "before the tail": lambda: around_unlock(before=False),
    "published, nobody woken": lambda: patch(Futex, "wake"),
    "nobody notified": lambda: patch(notify.Notifier, "notify"),
    "notified": lambda: patch(notify.Notifier, "notify", after),
}
PIXELS: Final = "in the middle of the pixels"
CLOSING: Final[dict[str, Callable[[], None]]] = {
    "ring closed": lambda: patch(ring.PublisherRing, "close", after),
    "socket closed": lambda: patch(notify.Notifier, "close", after),
}
SUBSCRIBING: Final[dict[str, Callable[[], None]]] = {
    "attached": lambda: patch(ring.SubscriberRing, "is_live", after),
    "seats taken": lambda: patch(seats.shm, "let_go"),  # type: ignore[attr-defined]
    "record written": lambda: patch(subscriber_module, "Record", after),
}
RECEIVING: Final[dict[str, Callable[[], None]]] = {
    "before the lease": lambda: patch(ring.SubscriberRing, "_lease"),
    "leased": lambda: patch(subscriber_module, "Frame"),
    "before the release": lambda: around_unlock(before=True),
    "after the release": lambda: around_unlock(before=False),
    "record removed": lambda: patch(seats.Record, "remove", after),
}
AT_RANDOM: Final = "at random"
POINTS: Final = {
    "publisher": [*OPENING, *PUBLISHING, PIXELS, *CLOSING, AT_RANDOM],
    "subscriber": [*SUBSCRIBING, *RECEIVING, AT_RANDOM],
}


def publish(stream: str, point: str, frames: int, slots: int) -> None:
    """A publisher's life: some good frames, then death at the point."""
    if point in OPENING:
        OPENING[point]()
    keep_ring = point not in CLOSING
    with Publisher(stream, FORMAT, slots=slots, keep_ring=keep_ring) as publisher:
        for _ in range(frames if point != AT_RANDOM else 1_000_000):
            write(publisher)
            time.sleep(0.0005)
        if point in PUBLISHING:
            PUBLISHING[point]()
        write(publisher, die_in_the_middle=point == PIXELS)
        if point in CLOSING:
            CLOSING[point]()


def write(publisher: Publisher, *, die_in_the_middle: bool = False) -> None:
    """Publish a frame whose every byte is its sequence modulo 251."""
    with contextlib.suppress(RingFull), publisher.loan() as loan:
        value = (publisher.statistics.sequence + 1) % 251
        loan.pixels[: FORMAT.height // 2] = value
        if die_in_the_middle:
            die()
        loan.pixels[FORMAT.height // 2 :] = value


def subscribe(stream: str, point: str, frames: int, _slots: int) -> None:
    """A subscriber's life: some frames, then death at the point."""
    if point in SUBSCRIBING:
        SUBSCRIBING[point]()
    with Subscriber(stream, name="victim", wait_s=STUCK_AFTER_S, gone_after_s=None, max_leases=1) as subscriber:
        for _ in range(frames if point != AT_RANDOM else 1_000_000):
            subscriber.receive(STUCK_AFTER_S).release()
        if point in RECEIVING:
            RECEIVING[point]()
        subscriber.receive(STUCK_AFTER_S).release()


def reside(stream: str, mode: Any, wake: Any, done: int) -> dict[str, int]:
    """A resident's life: check every frame until the other end of the pipe ``done`` closes."""
    received = torn = backwards = last = epoch = reattached = 0
    with Subscriber(
        stream, name=f"resident-{mode}", mode=mode, wake=wake, wait_s=STUCK_AFTER_S, gone_after_s=None
    ) as subscriber:
        descriptors = len(os.listdir("/proc/self/fd"))
        while not select.select([done], [], [], 0)[0]:
            try:
                frame = subscriber.receive(STUCK_AFTER_S)
            except TimeoutError:
                if select.select([done], [], [], 0)[0]:
                    break
                raise
            with frame:
                received += 1
                torn += not bool((frame.pixels == frame.sequence % 251).all())
                # Sequences begin anew only in a new file, after a publisher that took the old one's name away.
                anew = frame.epoch != epoch and subscriber.statistics.reattached != reattached
                backwards += frame.sequence <= last and not anew
                last, epoch, reattached = frame.sequence, frame.epoch, subscriber.statistics.reattached
        statistics = subscriber.statistics
        return {
            "received": received,
            "torn": torn,
            "backwards": backwards,
            "skipped": statistics.skipped,
            "reattached": statistics.reattached,
            "descriptors grown": max(len(os.listdir("/proc/self/fd")) - descriptors, 0),
        }


def fork(function: Callable[..., Any], *arguments: Any) -> int:
    """Run the function in a child; it ends with status 0, or 1 and a traceback when the function raises."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*arguments)
        os._exit(0)
    except (StreamNotFound, RingFull):
        os._exit(0)  # nobody publishes for the moment, or all seats are taken: an honest answer
    except BaseException:  # noqa: BLE001  it must not run on as a second server
        traceback.print_exc()
        os._exit(1)


def run(kills: int, seed: int) -> dict[str, Any]:
    """Kill ``kills`` processes and report what was seen."""
    chance = random.Random(seed)
    stream = f"kills-{secrets.token_hex(6)}"
    done_reader, done_writer = os.pipe()
    answers: list[int] = []
    started_s = time.monotonic()

    def resident(mode: str, wake: str, answer: int) -> None:
        os.close(done_writer)
        os.write(answer, json.dumps(reside(stream, mode, wake, done_reader)).encode())

    lives: dict[int, tuple[str, str]] = {}
    killed: Counter[str] = Counter()
    broken: list[str] = []

    def live(role: str) -> None:
        point = chance.choice(POINTS[role])
        life = publish if role == "publisher" else subscribe
        slots = GEOMETRIES[chance.random() < 0.05]
        pid = fork(life, stream, point, chance.randrange(8), slots)
        lives[pid] = role, point
        if point == AT_RANDOM:
            time.sleep(chance.random() * 0.02)
            if chance.random() < 0.3:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(chance.random() * 0.05)
            os.kill(pid, signal.SIGKILL)

    live("publisher")
    residents = []
    for mode, wake in RESIDENTS:
        reader, writer = os.pipe()
        residents.append(fork(resident, mode, wake, writer))
        os.close(writer)
        answers.append(reader)
    for _ in range(VICTIM_SUBSCRIBERS):
        live("subscriber")
    while sum(killed.values()) < kills and not broken:
        pid, status = os.wait()
        if pid in residents:
            broken.append(f"a resident ended with status {status}")
            break
        role, point = lives.pop(pid)
        if os.WIFSIGNALED(status):
            killed[f"{role}: {point}"] += 1
        elif os.WEXITSTATUS(status):
            broken.append(f"a {role} that was to die {point!r} ended with status {os.WEXITSTATUS(status)}")
        live(role)
    for pid in lives:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    with Publisher(stream, FORMAT, slots=GEOMETRIES[0]) as publisher:
        last = publisher.statistics.sequence
        time.sleep(0.3)  # residents notice a replaced ring within a tick
        info = inspect(stream)
        if info.slots_held > len(RESIDENTS):
            broken.append(f"{info.slots_held} slots are held by {len(RESIDENTS)} residents")
        if info.seats_taken != 2 * len(RESIDENTS):
            broken.append(f"{info.seats_taken} seats are taken, not {2 * len(RESIDENTS)}")
        os.close(done_writer)
        for _ in range(10):
            write(publisher)
            time.sleep(0.01)
        reports = [json.loads(os.read(reader, 65536) or b"{}") for reader in answers]
        for pid in residents:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for report in reports:
            if not report or report["torn"] or report["backwards"] or report["descriptors grown"] > SPARE_DESCRIPTORS:
                broken.append(f"a resident saw {report}")
        removed = len(remove_leftovers(stream))
        for path in files_of(stream):
            if path.partition(f"{stream}.")[2] not in ("ring", "lock", "sock"):
                broken.append(f"{path} was not removed as left over")
    if files_of(stream):
        broken.append(f"left at the end: {files_of(stream)}")
    return {
        "kills": sum(killed.values()),
        "by point": dict(sorted(killed.items())),
        "seed": seed,
        "frames published": last,
        "residents": reports,
        "leftovers removed": removed,
        "broken promises": broken,
        "seconds": round(time.monotonic() - started_s, 1),
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.race.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    report = run(options.kills, options.seed)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return int(bool(report["broken promises"]))


if __name__ == "__main__":
    raise SystemExit(main())
