"""One side of a hand-over: the stamps of the sender, and the counts of the receiver."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from bench.peers import Config, Pixels, Receiver, Sender
from bench.worker import SENT_NS, SEQUENCE, Painter, ReceivingSide, Round, SendingSide, memory, stamp_words

SETTING = Config("in-process", (48, 64, 3), 1)
ROUND = Round(3, frames=5, warm_up=2, period_s=0.0)


class Line(Sender, Receiver):
    """Keeps a copy of each published frame for the receiver."""

    def __init__(self) -> None:
        self._pixels: Pixels = np.zeros(SETTING.shape, np.uint8)
        self.frames: deque[Pixels] = deque()

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        self.frames.append(self._pixels.copy())

    def receive(self, timeout_s: float) -> Pixels:
        if not self.frames:
            raise TimeoutError
        return self.frames.popleft()

    def close(self) -> None:
        self.frames.clear()


@pytest.fixture
def line() -> Line:
    """Return a line with all frames of a round, sent and not received yet."""
    line = Line()
    sent = SendingSide(line, SETTING).run(ROUND)
    assert sent.frames == len(line.frames) == ROUND.warm_up + ROUND.frames
    assert sent.cpu_ns > 0
    return line


def receiving(line: Line, *, exact: bool = True) -> ReceivingSide:
    return ReceivingSide(line, SETTING, exact=exact)


def test_a_round_without_a_fault(line: Line) -> None:
    stamps = [stamp_words(pixels) for pixels in line.frames]
    assert [int(words[SEQUENCE]) for words in stamps] == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(int(words[SENT_NS]) for words in stamps) == [int(words[SENT_NS]) for words in stamps]
    received = receiving(line).run(ROUND)
    assert (received.frames, len(received.latencies_ns)) == (7, 5)
    assert (received.skipped, received.torn, received.disordered) == (0, 0, 0)
    assert min(received.latencies_ns) > 0


def test_lost_frames_are_skipped_and_those_of_the_warm_up_do_not_count(line: Line) -> None:
    for place in (4, 2, 0):
        del line.frames[place]
    received = receiving(line).run(ROUND)
    assert (received.frames, len(received.latencies_ns), received.skipped) == (4, 3, 2)


def test_a_lost_last_frame_ends_the_round(line: Line) -> None:
    line.frames.pop()
    received = receiving(line).run(ROUND)
    assert (received.frames, len(received.latencies_ns), received.skipped) == (6, 4, 0)


def test_a_mix_of_two_frames_is_torn_for_a_peer_that_transfers_pixels(line: Line) -> None:
    line.frames[3][-1] = line.frames[4][-1]
    assert receiving(line).run(ROUND).torn == 1


def test_pixels_are_not_checked_for_a_peer_that_transfers_only_the_stamp(line: Line) -> None:
    line.frames[3][-1] = line.frames[4][-1]
    assert receiving(line, exact=False).run(ROUND).torn == 0


def test_a_repeated_or_late_frame_is_disordered(line: Line) -> None:
    line.frames.insert(3, line.frames[1].copy())
    line.frames.insert(6, line.frames[5].copy())
    received = receiving(line).run(ROUND)
    assert (received.disordered, received.torn) == (2, 0)


def test_frames_of_another_round_are_ignored(line: Line) -> None:
    received = receiving(line).run(Round(4, frames=5, warm_up=2, period_s=0.0))
    assert (received.frames, received.latencies_ns, received.skipped) == (0, [], 0)


def test_a_round_ends_at_its_time_limit() -> None:
    line = Line()
    assert SendingSide(line, SETTING).run(Round(1, frames=500, warm_up=0, period_s=0.0, limit_s=0.0)).frames == 1
    received = receiving(line).run(Round(1, frames=500, warm_up=0, period_s=0.0))
    assert (received.frames, received.skipped) == (1, 0)


def test_neighbours_have_different_rows() -> None:
    painter = Painter(SETTING.shape)
    pixels = np.zeros(SETTING.shape, np.uint8)
    checksums = [painter.paint(pixels, sequence) for sequence in range(1, 100)]
    assert len(set(checksums)) == len(checksums)
    assert painter.checksum(pixels) == checksums[-1]
    pixels[-1, -1, -1] ^= 1
    assert painter.checksum(pixels) != checksums[-1]


def test_the_memory_of_this_process_is_read() -> None:
    own = memory()
    assert own.rss_bytes > own.private_bytes > 0
    assert own.shared_bytes >= 0
