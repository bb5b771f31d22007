"""One side of a hand-over, in a process of its own, which receives commands over a connection.

A sender stamps each frame with its sequence, the time just before it is published, and a checksum of sampled rows. A
receiver reads the clock as soon as it has the array, and then checks all three. CPU time is that of the whole process,
including its input and output threads, without the time for pacing, stamping and checking.
"""

from __future__ import annotations

import os
import random
import time
import traceback
import zlib
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.peers import Config, Peer, Pixels, Receiver, Sender

STAMP_WORDS: Final = 8
RUN, SEQUENCE, SENT_NS, CHECKSUM, LAST = range(5)
SAMPLED_ROWS: Final = 8
NO_FRAME_S: Final = 5.0
"""A receiver that gets no frame for this time counts the rest of the round as lost."""


@dataclass(frozen=True)
class Round:
    """The conditions of one round."""

    run: int
    """Number that marks its frames."""
    frames: int
    """Frames that are measured."""
    warm_up: int
    """Frames that are sent before these and not measured."""
    period_s: float
    """Time between two frames; 0 sends as fast as the sender can."""
    jitter: float = 0.0
    """Largest deviation of a period, as a part of it: uniform in both directions."""
    limit_s: float = 10.0
    """The first frame that is sent after this time is the last."""


@dataclass
class Sent:
    """What a sender did in a round."""

    seconds: float
    """From the first measured frame to the last."""
    cpu_ns: int
    """CPU time of the process for all frames, warm-up included."""
    frames: int
    """Frames sent, warm-up included."""


@dataclass
class Received:
    """What a receiver saw in a round."""

    latencies_ns: list[int] = field(default_factory=list)
    """Latency of every measured frame that arrived."""
    frames: int = 0
    """Frames that arrived, warm-up included."""
    skipped: int = 0
    """Measured frames that did not arrive."""
    torn: int = 0
    """Frames whose rows differ from those that were sent."""
    disordered: int = 0
    """Frames that arrived twice, or after a later one."""
    seconds: float = 0.0
    """From the first measured arrival to the last."""
    cpu_ns: int = 0
    """CPU time of the process for all frames, warm-up included."""
    minor_faults: int = 0
    """Pages mapped during the round."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process. Shared pages count in full in rss; in the others they are divided among the processes."""

    rss_bytes: int
    private_bytes: int
    shared_bytes: int
    """This process's part of the pages in shared memory. The sum over all processes counts each page once."""


def memory() -> Memory:
    """Return the memory of this process. Source: proc(5), smaps_rollup."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kibibytes = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)}
    return Memory(kibibytes["Rss"] << 10, kibibytes["Pss_Anon"] << 10, kibibytes["Pss_Shmem"] << 10)


def stamp_words(pixels: Pixels) -> npt.NDArray[np.uint64]:
    """Return the words at the start of a frame that hold the stamp."""
    return pixels.reshape(-1)[: STAMP_WORDS * 8].view(np.uint64)


class Painter:
    """Writes and checks sampled rows. The first row is not sampled, because it holds the stamp."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._rows = np.linspace(0, shape[0] - 1, SAMPLED_ROWS + 1, dtype=np.intp)[1:]

    def paint(self, pixels: Pixels, sequence: int) -> int:
        """Fill the rows with values that depend on the sequence, and return their checksum."""
        # The value changes with the sequence and the row, so that rows of two frames never make a valid checksum.
        pixels[self._rows] = ((self._rows * 7 + sequence * 131) & 0xFF).astype(np.uint8)[:, None, None]
        return self.checksum(pixels)

    def checksum(self, pixels: Pixels) -> int:
        """Return the CRC-32 of the rows."""
        return zlib.crc32(np.ascontiguousarray(pixels[self._rows]).data)


class SendingSide:
    """Sends rounds of frames."""

    def __init__(self, sender: Sender, config: Config) -> None:
        self._sender = sender
        self._painter = Painter(config.shape)

    def run(self, round_: Round) -> Sent:
        """Send the frames of a round, one in each period."""
        sender, painter = self._sender, self._painter
        # The seed is the round's number, so that every peer has the same jitter in a round.
        noise = random.Random(round_.run)
        total = round_.warm_up + round_.frames
        own_ns = 0
        begun_s = due_s = time.monotonic()
        end_s = begun_s + round_.limit_s
        cpu_ns = time.process_time_ns()
        for sequence in range(1, total + 1):
            own_since_ns = time.thread_time_ns()
            if round_.period_s:
                now_s = time.monotonic()
                # After a delay, continue from now instead of sending the missed frames in a burst.
                due_s = max(due_s + round_.period_s * (1 + noise.uniform(-round_.jitter, round_.jitter)), now_s)
                time.sleep(due_s - now_s)
            if sequence == round_.warm_up + 1:
                begun_s = time.monotonic()
            own_ns += time.thread_time_ns() - own_since_ns
            pixels = sender.loan()
            own_since_ns = time.thread_time_ns()
            words = stamp_words(pixels)
            last = sequence == total or time.monotonic() >= end_s
            words[:] = (round_.run, sequence, 0, painter.paint(pixels, sequence), last, 0, 0, 0)
            # Stamping is work of the harness, not of the peer, so its CPU time is subtracted at the end.
            own_ns += time.thread_time_ns() - own_since_ns
            del pixels
            # Read the clock last, so that the latency contains nothing but the peer's work.
            words[SENT_NS] = time.monotonic_ns()
            del words
            sender.publish()
            if last:
                break
        ended_s = time.monotonic()
        return Sent(ended_s - begun_s, time.process_time_ns() - cpu_ns - own_ns, sequence)

    def close(self) -> None:
        """Close the peer."""
        self._sender.close()


class ReceivingSide:
    """Receives rounds of frames."""

    def __init__(self, receiver: Receiver, config: Config, *, exact: bool) -> None:
        self._receiver = receiver
        self._painter = Painter(config.shape)
        self._exact = exact

    def run(self, round_: Round) -> Received:
        """Receive until the round's last frame, or until no frame arrives in time."""
        receiver = self._receiver
        result = Received()
        is_over = False
        last = own_ns = 0
        begun_ns = ended_ns = 0
        faults = getrusage(RUSAGE_SELF).ru_minflt
        cpu_ns = time.process_time_ns()
        while not is_over:
            try:
                pixels = receiver.receive(NO_FRAME_S)
            except TimeoutError:
                break
            # Read the clock first: the checks below must not count as latency.
            now_ns = time.monotonic_ns()
            own_since_ns = time.thread_time_ns()
            run, sequence, sent_ns, checksum, is_last, *_ = stamp_words(pixels).tolist()
            # A frame of an earlier round may still be on its way.
            if run == round_.run:
                result.frames += 1
                if self._exact and self._painter.checksum(pixels) != checksum:
                    result.torn += 1
                if sequence <= last:
                    result.disordered += 1
                elif sequence > round_.warm_up:
                    result.latencies_ns.append(now_ns - sent_ns)
                    begun_ns, ended_ns = begun_ns or now_ns, now_ns
                last = max(last, sequence)
                is_over = bool(is_last)
            del pixels
            own_ns += time.thread_time_ns() - own_since_ns
            receiver.release()
        result.cpu_ns = time.process_time_ns() - cpu_ns - own_ns
        result.minor_faults = getrusage(RUSAGE_SELF).ru_minflt - faults
        # Sequences begin at 1 in each round, so the last one tells how many measured frames were sent.
        result.skipped = max(last - round_.warm_up, 0) - len(result.latencies_ns)
        result.seconds = (ended_ns - begun_ns) / 1e9
        return result

    def close(self) -> None:
        """Close the peer."""
        self._receiver.close()


def pin(index: int | None) -> None:
    """Keep the sender on a core of its own and the receivers on the others, so that the scheduler does not decide."""
    first, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {first} if index is None or not others else {others[index % len(others)]})


def serve(connection: Connection[Any, Any], peer: Peer, config: Config, index: int | None) -> None:
    """Open one side (the sender if ``index`` is ``None``), and answer commands until the command to close.

    A command is a :class:`Round`, ``"memory"`` or ``"close"``. When the side is open, the first message is ``None``.
    Each answer is the result, or a text that says what failed.
    """
    side: SendingSide | ReceivingSide
    if config.pinned:
        pin(index)
    try:
        if index is None:
            side = SendingSide(peer.sender(config), config)
        else:
            side = ReceivingSide(peer.receiver(config, index), config, exact=getattr(peer, "exact", True))
    except Exception:  # noqa: BLE001  any error of a peer is reported, and the others continue
        connection.send(traceback.format_exc())
        return
    connection.send(None)
    try:
        while (command := connection.recv()) != "close":
            try:
                connection.send(memory() if command == "memory" else side.run(command))
            except Exception:  # noqa: BLE001  as above
                connection.send(traceback.format_exc())
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        side.close()
        connection.close()
