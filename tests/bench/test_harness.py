"""The harness runs real peers side by side, and recognises the faults of a peer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest

from bench.harness import Candidate, Outcome, Scenario, run_scenario, start_process
from bench.peers import Config, Peer, Pixels, Receiver, Sender, all_peers
from bench.worker import RUN, SEQUENCE, stamp_words

pytestmark = pytest.mark.slow

WARM_UP, FRAMES, ROUNDS = 2, 6, 2
FAULT_AT = 5
"""Sequence of the frame with which a faulty peer has its fault, in each round."""
NO_FRAME_S = 1.0


class PipeSender(Sender):
    def __init__(self, config: Config) -> None:
        self._writer = config.handles[1]
        self._pixels: Pixels = np.zeros(config.shape, np.uint8)

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        self.send(self._pixels, *stamp_words(self._pixels)[[RUN, SEQUENCE]].tolist())

    def send(self, pixels: Pixels, run: int, sequence: int) -> None:
        del run, sequence
        self._writer.send_bytes(pixels.reshape(-1).data)


class PipeReceiver(Receiver):
    def __init__(self, config: Config) -> None:
        self._reader = config.handles[0]
        self._shape = config.shape

    def receive(self, timeout_s: float) -> Pixels:
        if not self._reader.poll(min(timeout_s, NO_FRAME_S)):
            raise TimeoutError
        return np.frombuffer(self._reader.recv_bytes(), np.uint8).reshape(self._shape)


class Sound(Peer):
    """A pipe, without a fault."""

    name = title = "sound"
    how = "A pipe."
    side: type[PipeSender] = PipeSender

    @contextmanager
    def prepare(self, config: Config) -> Iterator[Any]:
        reader, writer = Pipe(duplex=False)
        with reader, writer:
            yield reader, writer

    def sender(self, config: Config) -> Sender:
        return self.side(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        return PipeReceiver(config)


class TearingSender(PipeSender):
    def send(self, pixels: Pixels, run: int, sequence: int) -> None:
        if sequence == FAULT_AT:
            pixels[-1] += 1
        super().send(pixels, run, sequence)


class DroppingSender(PipeSender):
    def send(self, pixels: Pixels, run: int, sequence: int) -> None:
        if sequence != FAULT_AT:
            super().send(pixels, run, sequence)


class RepeatingSender(PipeSender):
    def send(self, pixels: Pixels, run: int, sequence: int) -> None:
        for _ in range(1 + (sequence == FAULT_AT)):
            super().send(pixels, run, sequence)


class DyingSender(PipeSender):
    def send(self, pixels: Pixels, run: int, sequence: int) -> None:
        if (run, sequence) == (ROUNDS, FAULT_AT):
            os._exit(3)
        super().send(pixels, run, sequence)


class RaisingSender(PipeSender):
    def send(self, pixels: Pixels, run: int, sequence: int) -> None:
        if (run, sequence) == (ROUNDS, FAULT_AT):
            raise RuntimeError("the wire is cut")
        super().send(pixels, run, sequence)


class Tearing(Sound):
    name = "tearing"
    side = TearingSender


class Dropping(Sound):
    name = "dropping"
    side = DroppingSender


class Repeating(Sound):
    name = "repeating"
    side = RepeatingSender


class Dying(Sound):
    name = "dying"
    side = DyingSender


class Raising(Sound):
    name = "raising"
    side = RaisingSender


class Unprepared(Sound):
    name = "unprepared"

    @contextmanager
    def prepare(self, config: Config) -> Iterator[Any]:
        raise OSError("no server answers")
        yield


class Closed(Sound):
    name = "closed"

    def receiver(self, config: Config, index: int) -> Receiver:
        raise RuntimeError("no peer lets it in")


FAULTY = (Sound(), Tearing(), Dropping(), Repeating(), Dying(), Raising(), Unprepared(), Closed())


def run(peers: dict[str, Peer], fps: float) -> dict[str, Outcome]:
    """Return the outcome of two short rounds for each peer."""
    candidates = tuple(Candidate(name, "0.1 MB") for name in peers)
    scenario = Scenario("test", candidates, fps, ROUNDS, FRAMES, WARM_UP, pinned=False)
    told: list[str] = []
    outcomes = run_scenario(scenario, peers, {"processes": start_process}, told.append)
    assert len(told) == 1 + ROUNDS
    return {candidate.peer: outcomes[candidate.key] for candidate in candidates}


def test_a_short_session_of_framebus_and_a_floor_has_no_failure() -> None:
    every = all_peers()
    for outcome in run({name: every[name] for name in ("framebus-futex", "floor-futex")}, 100).values():
        assert outcome.failure == ""
        assert len(outcome.rounds) == ROUNDS
        for result in outcome.rounds:
            (received,) = result.received
            assert result.sent.frames == WARM_UP + FRAMES
            assert len(received.latencies_ns) + received.skipped == FRAMES, "the last frame is never skipped"
            assert (received.torn, received.disordered) == (0, 0)
            assert min(result.sent.cpu_ns, received.cpu_ns, *received.latencies_ns) > 0
        assert len(outcome.idle) == 2
        assert all(memory.rss_bytes > memory.private_bytes > 0 for memory in outcome.idle)


@pytest.mark.long
def test_each_fault_is_recognised_and_affects_no_other_peer() -> None:
    outcomes = run({peer.name: peer for peer in FAULTY}, 200)

    def seen(name: str) -> list[tuple[int, int, int, int]]:
        """Return the receiver's counts of each round: measured, skipped, torn and disordered frames."""
        return [
            (len(side.latencies_ns), side.skipped, side.torn, side.disordered)
            for result in outcomes[name].rounds
            for side in result.received
        ]

    assert seen("sound") == [(FRAMES, 0, 0, 0)] * ROUNDS
    assert seen("tearing") == [(FRAMES, 0, 1, 0)] * ROUNDS
    assert seen("dropping") == [(FRAMES - 1, 1, 0, 0)] * ROUNDS
    assert [disordered for *_, disordered in seen("repeating")] == [1] * ROUNDS
    assert seen("dying") == seen("raising") == [(FRAMES, 0, 0, 0)] * (ROUNDS - 1)
    assert seen("unprepared") == seen("closed") == []
    failures = {name: outcome.failure for name, outcome in outcomes.items()}
    assert {name for name, failure in failures.items() if failure} == {"dying", "raising", "unprepared", "closed"}
    assert failures["dying"] == "dying sender died"
    assert failures["raising"].rstrip().endswith("RuntimeError: the wire is cut")
    assert failures["unprepared"] == "no server answers"
    assert failures["closed"].startswith("closed receiver-0: ")
    assert "RuntimeError: no peer lets it in" in failures["closed"]
