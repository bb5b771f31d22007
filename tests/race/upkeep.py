"""``framebus doctor`` and ``framebus gc`` among the dead, and the living beside them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
from typing import Any, Final

from framebus import FrameFormat, Publisher, Subscriber
from framebus.cli import main
from tests.race.victims import STUCK_AFTER_S, fork, publish, subscribe
from tests.support import SHM, files_of

BYSTANDER: Final = FrameFormat(20, 30)
BYSTANDER_SLOTS: Final = 255
"""Two seconds of frames: so long the subscriber may be kept from running by what else the machine does."""
PERIOD_S: Final = 0.01
KINDS: Final = {"lock", "ring", "sock", "ring.", "sub."}


class Bystanders:
    """A publisher and a subscriber of their own stream, which are never killed and lose no frame."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self._told, told = os.pipe()
        done, self._done = os.pipe()
        self._publisher = fork(self._publish, done)
        self._subscriber = fork(self._subscribe, told)
        os.close(told)
        os.close(done)
        os.read(self._told, 1)

    def _publish(self, done: int) -> None:
        os.close(self._done)
        os.set_blocking(done, False)
        with Publisher(self.stream, BYSTANDER, slots=BYSTANDER_SLOTS) as publisher:
            while not _is_at_end(done):
                with publisher.loan() as loan:
                    loan.pixels[:] = (publisher.statistics.sequence + 1) % 251
                time.sleep(PERIOD_S)
            assert publisher.statistics.dropped == 0
            with publisher.loan() as loan:
                loan.metadata = {"last": True}
                loan.pixels[:] = (publisher.statistics.sequence + 1) % 251
            signal.pause()

    def _subscribe(self, told: int) -> None:
        os.close(self._done)
        received = torn = 0
        with Subscriber(
            self.stream, name="bystander", mode="every", wake="futex", attach_timeout_s=STUCK_AFTER_S
        ) as subscriber:
            os.write(told, b"\n")
            for frame in subscriber:
                received += 1
                torn += not bool((frame.pixels == frame.sequence % 251).all())
                if frame.metadata:
                    break
            statistics = subscriber.statistics
            os.write(told, json.dumps([received, torn, statistics.skipped, statistics.reattached]).encode())
            signal.pause()

    def end(self) -> list[str]:
        """Let the last frame come and end both; what they lost."""
        os.close(self._done)
        content = os.read(self._told, 4096)
        os.close(self._told)
        faults = []
        try:
            received, torn, skipped, reattached = json.loads(content)
            if torn or skipped or reattached:
                faults.append(f"the stream beside: {received} received, {torn=}, {skipped=}, {reattached=}")
        except ValueError:
            faults.append("the subscriber of the stream beside did not come to its end")
        for pid in (self._publisher, self._subscriber):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it should not have ended by itself
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        removed = set(sweep(self.stream))
        if {kind_of(path, self.stream) for path in removed} != {"lock", "ring", "sock", "sub."} or files_of(
            self.stream
        ):
            faults.append(f"of the stream beside gc removed {sorted(removed)} and left {files_of(self.stream)}")
        return faults


def _is_at_end(reader: int) -> bool:
    try:
        return os.read(reader, 1) == b""
    except BlockingIOError:
        return False


def kind_of(path: str, stream: str) -> str:
    """Which of a stream's files it is, without the random end of its name."""
    suffix = path.partition(f"{stream}.")[2]
    first, dot, _ = suffix.partition(".")
    return first + dot


def command(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and JSON answer of ``framebus ARGUMENTS --json``."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = main([*arguments, "--json"])
    return status, json.loads(output.getvalue())


def sweep(stream: str) -> list[str]:
    """What ``framebus gc`` removes of the stream."""
    status, rows = command("gc", "--stream", stream)
    assert status == 0, rows
    return [row["path"] for row in rows]


def named_by_doctor(stream: str) -> list[str]:
    """What ``framebus doctor`` names as left over of the stream, each with the remedy."""
    _, findings = command("doctor")
    about = [finding["what"] for finding in findings if finding["remedy"] == "run 'framebus gc'"]
    return sorted(what.partition(" is left over: ")[0] for what in about if f"{stream}." in what)


def leave_everything(stream: str) -> None:
    """Leave a file of every kind: of a subscriber, of a publisher, of one that was making another ring."""
    subscriber = fork(subscribe, stream, "", 1_000_000)
    publisher = fork(publish, stream, "at random", 0, 10)
    deadline_s = time.monotonic() + STUCK_AFTER_S
    while (
        not {kind_of(path, stream) for path in files_of(stream)} >= {"sock", "sub."} and time.monotonic() < deadline_s
    ):
        time.sleep(0.001)
    for pid in (subscriber, publisher):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.waitpid(fork(publish, stream, "file created", 0, 12), 0)


def sweep_all(stream: str, living: str) -> tuple[list[str], list[str]]:
    """Let the doctor name what is left of a stream, gc remove it and the doctor look again; what was named, and faults.

    Args:
        stream: The stream of the dead, with a file of every kind.
        living: The stream beside it, of which nothing may be touched.
    """
    faults = []
    left, beside = files_of(stream), files_of(living)
    if {kind_of(path, stream) for path in left} != KINDS:
        faults.append(f"left are not files of every kind, but {left}")
    named = named_by_doctor(stream)
    if [str(SHM / path) for path in left] != named:
        faults.append(f"left are {left}, the doctor named {named}")
    removed = sweep(stream)
    if sorted(removed) != named or files_of(stream):
        faults.append(f"gc removed {removed} and left {files_of(stream)}")
    if again := named_by_doctor(stream):
        faults.append(f"after gc the doctor named {again}")
    if (taken := sweep(living)) or named_by_doctor(living) or files_of(living) != beside:
        faults.append(f"of the stream beside gc removed {taken}, and left {files_of(living)} of {beside}")
    return named, faults
