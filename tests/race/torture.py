"""Everything that programs do to publishers and subscribers at once: ``python -m tests.race.torture --minutes 10``.

Prints a report as JSON and ends with status 1 if a promise was broken. In one process, threads open, receive in every
way, close each other's subscribers, drop them unclosed and in cycles, lose loans, fork, run out of descriptors and
collect garbage, while a signal handler raises in the main thread at random; on a stream of the same process, and on one
of another. What must hold:

- nothing hangs: a process that does not end in time prints the stacks of its threads, and so does a forked child;
- nothing aborts: exit statuses are 0;
- no pixel is wrong: each frame is of one value, which its metadata tells, when it comes and when it is let go;
- no error but those that the calls document, and none that the program gave no cause for: a loan that is lost is not
  outstanding, a frame in garbage is not held;
- a forked child uses nothing of its parent's, and takes nothing from it;
- descriptors, threads and memory are as they were after the first round, and /dev/shm is clean at the end.

An exception of a signal handler may come in a finalizer, which it ends, and between a system call that opens a
descriptor and the store of that: CPython has no means against either. The first are counted and allowed for; so that
the second do not come, the handler does not raise while the main thread opens something.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import faulthandler
import gc
import json
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from framebus import (
    Closed,
    Frame,
    FrameFormat,
    FrameReleased,
    Loan,
    LoanOutstanding,
    Publisher,
    ReceiveTimeout,
    ResourceExhausted,
    StreamExists,
    StreamGone,
    StreamNotFound,
    Subscriber,
    SubscriberLimitReached,
    TooManyLeases,
    remove_leftovers,
)
from framebus.bus import lifecycle
from framebus.bus.attachment import Attachment
from framebus.shm import forks, segment
from tests.support import ROOT, files_of

FORMAT: Final = FrameFormat(24, 40)
WAKES: Final = ("zmq", "futex", "predict", "busy")
RECEIVERS: Final = 4
ROUNDS: Final = 3
PATIENCE_S: Final = 20.0
CHILD_PATIENCE_S: Final = 8.0
MEMORY_SLACK: Final = 24 << 20
EXPECTED: Final = (Closed, ReceiveTimeout, StreamGone, StreamNotFound, SubscriberLimitReached)
"""What a receiver may meet while others close what it uses."""
UNTOUCHED, READ_PARENTS_FRAME, USED_PARENTS, NO_ERROR, OTHER_ERROR = 0, 3, 4, 5, 6
"""Exit statuses of a forked child."""


class Interrupted(Exception):
    """What the signal handler raises."""


class Cycle:
    """Keeps what it is given until the garbage collector comes."""

    def __init__(self, *held: object) -> None:
        self.me = self
        self.held = held


class Torture:
    """One process's threads, and what they saw."""

    def __init__(self, stream: str, seed: int) -> None:
        self.own, self.foreign = f"{stream}-own", f"{stream}-foreign"
        self.main = f"{stream}-main"
        self.counted: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.over = threading.Event()
        self.open: list[Publisher | Subscriber] = []
        """What any thread may close, and a forked child inherits."""
        self.frames: list[Frame] = []
        """What a forked child must not be able to read."""
        self.chance = random.Random(seed)

    def report(self, what: str) -> None:
        """Note a broken promise."""
        self.broken[what] += 1

    def check(self, frame: Frame) -> None:
        """Check that the frame is whole."""
        pixels = frame.pixels
        if not (pixels == frame.metadata["value"]).all():
            self.report(f"wrong pixels in {frame!r}")

    def run(self, seconds: float) -> None:
        """Let the threads work for some seconds, and end them."""
        self.over.clear()
        works = [self.feed, self.close_others, self.collect, self.fork, *[self.receive] * RECEIVERS]
        threads = [
            threading.Thread(target=self.work, args=(work, random.Random(self.chance.random())), daemon=True)
            for work in works
        ]
        for thread in threads:
            thread.start()
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.interrupted(self.chance)
        self.over.set()
        for thread in threads:
            thread.join()
        self.open.clear()
        self.frames.clear()
        gc.collect()

    def work(self, work: Callable[[random.Random], None], chance: random.Random) -> None:
        """Do something again and again, and report what it raises but for what it may."""
        while not self.over.is_set():
            try:
                work(chance)
                self.counted[work.__name__] += 1
            except EXPECTED as error:
                self.counted[type(error).__name__] += 1
                time.sleep(0.001)
            except BaseException as error:  # noqa: BLE001  all else is a broken promise
                where = " > ".join(f"{one.name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)[1:])
                self.report(f"{type(error).__name__}: {error} at {where}")
                time.sleep(0.05)

    @contextlib.contextmanager
    def shared(self, opened: Publisher | Subscriber) -> Iterator[None]:
        """Let other threads close it, and children inherit it, meanwhile."""
        self.open.append(opened)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                self.open.remove(opened)

    # What the threads do

    def feed(self, chance: random.Random) -> None:
        """Publish on the stream of this process, with several loans of which some are lost."""
        with Publisher(self.own, FORMAT, slots=60, max_loans=3) as publisher, self.shared(publisher):
            for _ in range(chance.randrange(5, 200)):
                publish(self, publisher, chance)
                time.sleep(chance.random() * 0.002)
                if self.over.is_set():
                    return

    def receive(self, chance: random.Random) -> None:
        """Open a subscriber, receive with it, and end it in some way."""
        options: dict[str, Any] = {
            "mode": chance.choice(("newest", "every")),
            "wake": chance.choice(WAKES),
            "max_leases": chance.randrange(1, 4),
            "history": chance.choice((0, 0, 5)),
        }
        stream = chance.choice((self.own, self.foreign))
        subscriber = Subscriber(stream, attach_timeout_s=0.2, gone_after_s=0.3, **options)
        with self.shared(subscriber):
            if options["wake"] == "zmq" and chance.random() < 0.4:
                asyncio.run(self.receive_async(subscriber, chance))
            else:
                self.receive_some(subscriber, options["max_leases"], chance)
        end = chance.randrange(4)
        if end == 0:
            subscriber.close()
        elif end == 1:
            Cycle(subscriber)
        elif end == 2:
            with contextlib.suppress(ReceiveTimeout), subscriber:
                for frame in subscriber:
                    self.check(frame)
                    break

    def receive_some(self, subscriber: Subscriber, limit: int, chance: random.Random) -> None:
        """Receive some frames, and hold as many as it may."""
        held: list[Frame] = []
        try:
            for _ in range(chance.randrange(1, 30)):
                self.receive_one(subscriber, held, limit, chance)
                if self.over.is_set():
                    break
        finally:
            for frame in held:
                self.frames.remove(frame)

    def receive_one(self, subscriber: Subscriber, held: list[Frame], limit: int, chance: random.Random) -> None:
        """Receive one frame, and release some in one way or another."""
        while held and (len(held) >= limit or chance.random() < 0.5):
            frame = held.pop(0)
            self.check(frame)
            self.frames.remove(frame)
            chance.choice((frame.release, lambda: None, lambda frame=frame: Cycle(frame, frame.pixels[1:])))()
            del frame
        try:
            frame = subscriber.receive(0.3)
        except TooManyLeases:
            self.report("frames in garbage, or released, are held")
            return
        self.check(frame)
        held.append(frame)
        self.frames.append(frame)
        if chance.random() < 0.2:
            time.sleep(chance.random() * 0.005)

    async def receive_async(self, subscriber: Subscriber, chance: random.Random) -> None:
        """Receive in an event loop, with a cancel now and then."""
        for _ in range(chance.randrange(1, 20)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.choice((0.0, 0.001, 0.3))):
                    with await subscriber.receive_async(0.3) as frame:
                        self.check(frame)

    def close_others(self, chance: random.Random) -> None:
        """Close what another thread is using."""
        time.sleep(chance.random() * 0.02)
        with contextlib.suppress(IndexError):
            chance.choice(list(self.open)).close()

    def collect(self, chance: random.Random) -> None:
        """Collect garbage: the only thread that does, but for the bus itself."""
        time.sleep(chance.random() * 0.3)
        gc.collect(chance.randrange(3))

    def fork(self, chance: random.Random) -> None:
        """Fork a child that uses what it inherited, and see how it ends."""
        time.sleep(chance.random() * 0.05)
        way = chance.randrange(6)
        pid = os.fork()
        if not pid:
            self.be_child(way)
        deadline_s = time.monotonic() + CHILD_PATIENCE_S
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline_s:
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.5)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self.report(f"a forked child hangs (way {way})")
                return
            time.sleep(0.002)
        status = os.waitstatus_to_exitcode(ended[1])
        if status != (-signal.SIGKILL if way == 1 else UNTOUCHED):
            said = {
                READ_PARENTS_FRAME: "read its parent's frame",
                USED_PARENTS: "used its parent's",
                NO_ERROR: "was not refused",
            }
            self.report(f"a forked child {said.get(status, f'ended with status {status}')} (way {way})")

    def be_child(self, way: int) -> None:
        """Live as a forked child, and exit."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        status = UNTOUCHED
        try:
            for frame in list(self.frames):
                with contextlib.suppress(FrameReleased):
                    frame.pixels  # noqa: B018
                    status = READ_PARENTS_FRAME
            for opened in list(self.open):
                with contextlib.suppress(Closed):
                    opened.loan() if isinstance(opened, Publisher) else opened.receive(0)
                    status = USED_PARENTS
                if way == 2:
                    opened.close()
            if way == 3:
                self.open.clear()
                self.frames.clear()
                gc.collect()
            elif way == 4:
                atexit._run_exitfuncs()
            elif way == 5:
                status = status or self.exhaust()
        except ReceiveTimeout:
            status = USED_PARENTS
        except BaseException:  # noqa: BLE001  the status tells it
            traceback.print_exc()
            status = OTHER_ERROR
        if way == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(status)

    def exhaust(self) -> int:
        """Open a publisher with no descriptor left; a child's status."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        for attempt in (lambda: Publisher(self.main + "x", FORMAT), lambda: Subscriber(self.foreign)):
            try:
                attempt()
            except ResourceExhausted:
                continue
            except (OSError, ValueError):
                return NO_ERROR
            return NO_ERROR
        return UNTOUCHED

    def interrupted(self, chance: random.Random) -> None:
        """Publish and receive in the main thread while a signal handler raises."""
        try:
            publisher = Publisher(self.main, FORMAT, slots=12, max_loans=2)
            subscriber = Subscriber(self.main, wake=chance.choice(WAKES), mode=chance.choice(("newest", "every")))
        except StreamExists:
            self.report("a stream that was closed is taken")
            time.sleep(0.1)
            return
        for _ in range(chance.randrange(1, 30)):
            frame = None
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + chance.random() * 2e-3)
                for _ in range(3):
                    publish(self, publisher, chance)
                    frame = subscriber.receive(0.01)
                    self.check(frame)
                    frame.release()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                self.counted["interrupted"] += 1
            except (ReceiveTimeout, TooManyLeases) as error:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self.counted[f"main: {type(error).__name__}"] += 1
        frame = loan = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        lifecycle.collect_garbage()
        for value in range(14):  # each slot once
            try:
                with publisher.loan() as loan:
                    loan.pixels[:] = value
                    loan.metadata = {"value": value}
                while frame is None or frame.sequence != loan.sequence:
                    frame = None
                    frame = subscriber.receive(5)
                self.check(frame)
                frame = None
            except Exception as error:  # noqa: BLE001  a promise was broken
                self.report(f"after an interruption: {type(error).__name__}: {error}")
                break
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + chance.random() * 3e-4)
            subscriber.close()
            publisher.close()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            self.counted["interrupted in close"] += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        if chance.random() < 0.5:
            subscriber.close()
            publisher.close()
        del subscriber, publisher, loan
        lifecycle.collect_garbage()
        if files_of(self.main):
            self.report("a close that was interrupted left files")


def publish(torture: Torture, publisher: Publisher, chance: random.Random) -> None:
    """Publish a frame of one value, after losing loans in some ways."""
    try:
        for _ in range(chance.randrange(3)):
            lose(publisher.loan(), chance)
        loan = publisher.loan()
    except LoanOutstanding:
        torture.report("a lost loan is outstanding")
        return
    with loan:
        value = chance.randrange(256)
        loan.pixels[:] = value
        loan.metadata = {"value": value}


def lose(loan: Loan, chance: random.Random) -> None:
    """Write half of a loan, and lose it or give it back."""
    loan.pixels[:12] = 255
    way = chance.randrange(3)
    if way == 0:
        Cycle(loan, loan.pixels[1:])
    elif way == 1:
        loan.abandon()


# The faults of old, to be put back


def finalizer_waits() -> None:
    """A finalizer waits for another thread, as libzmq's context did."""

    def wait(self: Subscriber) -> None:
        if not self._closed:
            threading.Event().wait()

    Subscriber.__del__ = wait  # type: ignore[method-assign,assignment]


def close_under_receiver() -> None:
    """close() gives up what another thread is using."""

    def close(self: Subscriber) -> None:
        self._closed = True
        self._leave()

    Subscriber.close = close  # type: ignore[method-assign]


def lost_loans_stay() -> None:
    """Something keeps a loan that the program has lost."""
    kept: list[object] = []
    begin = Loan.__init__

    def keep(self: Loan, prepared: Any, claim: Any, *arguments: Any) -> None:
        kept.append(claim)
        begin(self, prepared, claim, *arguments)

    Loan.__init__ = keep  # type: ignore[method-assign,assignment]


def garbage_counts() -> None:
    """Frames in garbage are held."""

    def check(self: Attachment) -> None:
        if self._reader.leases >= self._max_leases:
            raise TooManyLeases("frames are still held")

    Attachment.check_leases = check  # type: ignore[method-assign]


def children_keep_all() -> None:
    """Nothing is given up in a forked child."""
    forks.register = lambda owner: None


def children_read_frames() -> None:
    """A forked child may read its parent's frames."""
    Frame._held = lambda self: self._lease  # type: ignore[method-assign,assignment,return-value]


def exhaustion_is_masked() -> None:
    """EMFILE becomes another error."""
    vars(segment)["exhausted"] = lambda error: None


def close_is_final() -> None:
    """A close that was interrupted is never finished."""

    def closed_once(original: Callable[[Any], None]) -> Callable[[Any], None]:
        def close(self: Any) -> None:
            if not self._closed:
                self._closed = True
                original(self)

        return close

    for kind in (Publisher, Subscriber):
        kind.close = closed_once(kind.close)  # type: ignore[method-assign,assignment]


FAULTS: Final = {
    fault.__name__: fault
    for fault in (
        finalizer_waits,
        close_under_receiver,
        lost_loans_stay,
        garbage_counts,
        children_keep_all,
        children_read_frames,
        exhaustion_is_masked,
        close_is_final,
    )
}


def serve(stream: str, hold: int) -> None:
    """Publish on the other process's stream until the pipe is closed."""
    chance = random.Random(1)
    os.set_blocking(hold, False)
    with Publisher(stream, FORMAT, slots=60) as publisher:
        os.write(1, b"open\n")
        while True:
            with contextlib.suppress(BlockingIOError):
                if not os.read(hold, 1):
                    return
            with publisher.loan() as loan:
                value = chance.randrange(256)
                loan.pixels[:] = value
                loan.metadata = {"value": value}
            time.sleep(0.001)


def measure() -> dict[str, int]:
    """What must not grow."""
    gc.collect()
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    mapped = Path("/proc/self/maps").read_text().count("/dev/shm/framebus.")
    descriptors = len(os.listdir("/proc/self/fd"))
    return {"descriptors": descriptors, "threads": threading.active_count(), "mapped": mapped, "memory": memory}


def suffer(stream: str, seconds: float, seed: int, fault: str) -> dict[str, Any]:
    """Torture this process, and report."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    torture = Torture(stream, seed)
    lost: Counter[str] = Counter()

    def raise_it(*_: object) -> None:
        raise Interrupted

    def note(unraisable: Any) -> None:
        if unraisable.exc_type is Interrupted:
            lost["finalizers interrupted"] += 1
        else:
            torture.report(f"unraisable: {unraisable.exc_type.__name__}: {unraisable.exc_value}")

    signal.signal(signal.SIGALRM, raise_it)
    sys.unraisablehook = note
    gc.disable()
    if fault:
        FAULTS[fault]()
    torture.run(seconds / ROUNDS)
    before, already = measure(), lost["finalizers interrupted"]
    for _ in range(ROUNDS - 1):
        torture.run(seconds / ROUNDS)
    after = measure()
    allowed = lost["finalizers interrupted"] - already
    for name in ("descriptors", "threads", "mapped"):
        if after[name] > before[name] + allowed:
            torture.report(f"{name} grew from {before[name]} to {after[name]}")
    if after["memory"] > before["memory"] + MEMORY_SLACK:
        torture.report(f"memory grew from {before['memory']} to {after['memory']}")
    return {"counted": {**torture.counted, **lost}, "before": before, "after": after, "broken": dict(torture.broken)}


def run(seconds: float, seed: int, fault: str = "") -> dict[str, Any]:
    """Torture a process beside a publisher, and report what was seen."""
    stream = f"torture-{secrets.token_hex(6)}"
    streams = [f"{stream}-{kind}" for kind in ("own", "foreign", "main", "mainx")]
    command = [sys.executable, "-m", "tests.race.torture", "--stream", stream, "--seed", str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    broken: list[str] = []
    report: dict[str, Any] = {}
    with subprocess.Popen(
        [*command, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT
    ) as server:
        assert server.stdout is not None
        if server.stdout.readline() != b"open\n":
            broken.append("the publisher did not open")
        victim = subprocess.Popen(
            [*command, "--suffer", str(seconds), "--fault", fault],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            said, complained = victim.communicate(timeout=seconds + PATIENCE_S)
        except subprocess.TimeoutExpired:
            victim.send_signal(signal.SIGUSR1)
            time.sleep(1)
            os.killpg(victim.pid, signal.SIGKILL)  # its forked children too, which hold its pipes open
            said, complained = victim.communicate()
            broken.append("it hangs")
        with contextlib.suppress(ValueError):
            report = json.loads(said)
        if victim.returncode or complained:
            broken.append(f"it ended with status {victim.returncode} and said: {complained}")
    broken += [f"{count} times: {what}" for what, count in report.pop("broken", {}).items()]
    left = [file for name in streams for file in files_of(name)]
    for name in streams:
        remove_leftovers(name)
    if left:
        broken.append(f"left at the end: {left}")
    return {"seconds": seconds, "seed": seed, "fault": fault, **report, "broken promises": broken}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.race.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--fault", default="", choices=["", *FAULTS], help="which fault of old to put back")
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--suffer", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(f"{options.stream}-foreign", 0)
        return 0
    if options.suffer:
        report = suffer(options.stream, options.suffer, options.seed, options.fault)
        sys.stdout.write(json.dumps(report) + "\n")
        return 0
    report = run(options.minutes * 60, options.seed, options.fault)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return int(bool(report["broken promises"]))


if __name__ == "__main__":
    raise SystemExit(main())
