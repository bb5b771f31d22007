"""Processes that are killed at every step of their work, again and again, while others go on.

``python -m tests.race.kills --kills 10000`` prints a report as JSON and ends with status 1 if a promise was broken.

The program is a warm fork server of one thread. It forks publishers, one after the other, which hold up to two loans
and publish them in either order, and subscribers, two at a time; each dies of SIGKILL at one point of its work
(points.py), drawn at random, or at a random moment, some after a SIGSTOP. Three residents, each with another way to
wait, take the newest frame or every frame, live through all of it and check each byte. Beside them lives a stream of
its own, of which no frame may be lost. The commands ``framebus gc`` and ``framebus doctor`` run in between; at the end
each leftover must be named by the doctor and removed by gc.
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
from collections import Counter
from typing import Any, Final

from framebus import Publisher, StreamNotFound, Subscriber
from framebus.inspect.streams import inspect
from tests.race.points import AT_RANDOM, NEW_FILE, POINTS
from tests.race.upkeep import Bystanders, leave_everything, sweep, sweep_all
from tests.race.victims import FORMAT, MAX_LOANS, STUCK_AFTER_S, fork, publish, subscribe, write_two
from tests.support import files_of

GEOMETRIES: Final = (13, 15)
"""Numbers of slots. The first leaves exactly the seats that residents and victims ask for together."""
RESIDENTS: Final[tuple[Any, ...]] = (("newest", "zmq"), ("every", "futex"), ("newest", "predict"))
VICTIM_SUBSCRIBERS: Final = 2
SWEEP_EVERY: Final = 97
"""Kills between two runs of gc, so that it comes at any point of the others' work."""
ENOUGH: Final = 40
"""Kills for each point, after which a point at which no process died is a fault of this program."""
SPARE_DESCRIPTORS: Final = 2
"""A connection to the notifications that came after the first count."""


def reside(stream: str, mode: Any, wake: Any, done: int) -> dict[str, int]:
    """A resident's life: check every frame until the other end of the pipe ``done`` closes."""
    received = torn = backwards = last = epoch = reattached = 0
    with Subscriber(
        stream, name=f"resident-{wake}", mode=mode, wake=wake, attach_timeout_s=STUCK_AFTER_S, gone_after_s=None
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


def other_slots(stream: str) -> int:
    """A number of slots that the ring does not have, so that another takes its place."""
    try:
        return next(slots for slots in GEOMETRIES if slots != inspect(stream).slots)
    except StreamNotFound:
        return GEOMETRIES[0]


def run(kills: int, seed: int) -> dict[str, Any]:
    """Kill ``kills`` processes and report what was seen."""
    chance = random.Random(seed)
    stream = f"kills-{secrets.token_hex(6)}"
    bystanders = Bystanders(f"{stream}-b")
    sweeps = swept = 0
    done_reader, done_writer = os.pipe()
    answers: list[int] = []
    started_s = time.monotonic()

    def resident(mode: str, wake: str, answer: int) -> None:
        os.close(done_writer)
        os.write(answer, json.dumps(reside(stream, mode, wake, done_reader)).encode())

    lives: dict[int, tuple[str, str]] = {}
    killed: Counter[str] = Counter()
    broken: list[str] = []

    decks: dict[str, list[str]] = {role: [] for role in POINTS}

    def draw(role: str) -> str:
        deck = decks[role]
        if not deck:
            deck += chance.sample(POINTS[role], len(POINTS[role]))
        return deck.pop()

    def live(role: str) -> None:
        point = draw(role)
        life = publish if role == "publisher" else subscribe
        slots = other_slots(stream) if point in NEW_FILE else GEOMETRIES[0]
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
        if pid not in lives:
            broken.append(f"a resident ended with status {status}")
            break
        role, point = lives.pop(pid)
        if os.WIFSIGNALED(status):
            killed[f"{role}: {point}"] += 1
        elif os.WEXITSTATUS(status):
            broken.append(f"a {role} that was to die {point!r} ended with status {os.WEXITSTATUS(status)}")
        if sum(killed.values()) // SWEEP_EVERY > sweeps:
            sweeps += 1
            swept += len(sweep(stream))
        live(role)
    for pid in lives:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    with Publisher(stream, FORMAT, slots=GEOMETRIES[0], max_loans=MAX_LOANS) as publisher:
        deadline_s = time.monotonic() + STUCK_AFTER_S
        while (info := inspect(stream)).seats_taken != 2 * len(RESIDENTS) and time.monotonic() < deadline_s:
            time.sleep(0.01)  # residents notice a replaced ring within a tick
        if info.slots_held > len(RESIDENTS):
            broken.append(f"{info.slots_held} slots are held by {len(RESIDENTS)} residents")
        if info.seats_taken != 2 * len(RESIDENTS):
            broken.append(f"{info.seats_taken} seats are taken, not {2 * len(RESIDENTS)}")
        os.close(done_writer)
        for _ in range(10):
            write_two(publisher)
            time.sleep(0.01)
        if publisher.statistics.dropped:
            broken.append(f"the last publisher had no slot for {publisher.statistics.dropped} loans")
        reports = [json.loads(os.read(reader, 65536) or b"{}") for reader in answers]
        for pid in residents:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for report in reports:
            if not report or report["torn"] or report["backwards"] or report["descriptors grown"] > SPARE_DESCRIPTORS:
                broken.append(f"a resident saw {report}")
        swept += len(sweep(stream))
        for path in files_of(stream):
            if path.partition(f"{stream}.")[2] not in ("ring", "lock", "sock"):
                broken.append(f"{path} was not removed as left over")
    if files_of(stream):
        broken.append(f"left at the end: {files_of(stream)}")
    leave_everything(stream)
    named, faults = sweep_all(stream, bystanders.stream)
    lost = bystanders.end()
    broken += [*faults, *lost]
    points = [f"{role}: {point}" for role in POINTS for point in POINTS[role]]
    if kills >= ENOUGH * len(points):
        broken += [f"no process ever died at {point!r}" for point in points if point not in killed]
    return {
        "kills": sum(killed.values()),
        "by point": dict(sorted(killed.items())),
        "seed": seed,
        "residents": reports,
        "leftovers removed": swept + len(named),
        "leftovers named by the doctor": named,
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
