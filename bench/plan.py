"""The scenarios of the short form, which takes five minutes, and of the full form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bench.harness import SHAPES, Candidate, Scenario

OURS: Final = ("framebus-zmq", "framebus-futex", "framebus-predict", "framebus-busy")
RIVALS: Final = ("iceoryx2-listener", "iceoryx2-busy")
FLOORS: Final = ("floor-futex", "floor-zmq", "floor-busy")
FAST: Final = OURS + RIVALS + FLOORS
"""The peers whose ratios the targets use: so few that each has a fair share of the machine's caches."""
SUBSCRIBERS: Final = (1, 2, 4, 8, 16)


def _candidates(
    peers: Iterable[str], sizes: Iterable[str] = ("10 MB",), receivers: Iterable[int] = (1,)
) -> tuple[Candidate, ...]:
    return tuple(Candidate(peer, size, count) for peer in peers for size in sizes for count in receivers)


def _steady(name: str, fps: float, rounds: int, frames: int, jitter: float = 0.0) -> Scenario:
    # Jitter matters to prediction: compare it only with ways that sleep, and with their floor.
    peers = FAST if not jitter else ("framebus-futex", "framebus-predict", "iceoryx2-listener", "floor-futex")
    return Scenario(name, _candidates(peers), fps, rounds, frames, warm_up=8, jitter=jitter)


def _containers(rounds: int, frames: int) -> Scenario:
    candidates = tuple(
        Candidate(peer, placement=placement)
        for peer in ("framebus-zmq", "framebus-futex")
        for placement in ("processes", "containers")
    )
    return Scenario("containers, 50 fps", candidates, 50, rounds, frames)


def short(peers: list[str]) -> list[Scenario]:
    """Return the scenarios of the short form, which has every available peer once."""
    return [
        # Slow peers take part here, so the rounds are short and end after limit_s.
        Scenario("peers, 25 fps", _candidates(peers), 25, rounds=3, frames=12, warm_up=3, limit_s=3.0),
        _steady("steady, 25 fps", 25, rounds=4, frames=20),
        _steady("steady, 200 fps", 200, rounds=4, frames=160),
        _steady("jitter, 25 fps", 25, rounds=3, frames=20, jitter=0.1),
        _steady("jitter, 200 fps", 200, rounds=3, frames=160, jitter=0.1),
        # Only ways without a copy are expected to be flat over the sizes.
        Scenario("sizes, 100 fps", _candidates(("framebus-futex", "iceoryx2-listener"), SHAPES), 100, 4, 50),
        Scenario(
            "subscribers, 25 fps", _candidates(("framebus-futex", "iceoryx2-listener"), receivers=(1, 4, 16)), 25, 3, 15
        ),
        _containers(rounds=4, frames=30),
    ]


def full(peers: list[str]) -> list[Scenario]:
    """Return the scenarios of the full form."""
    return [
        *(
            Scenario(f"peers, {size}, 25 fps", _candidates(peers, [size]), 25, rounds=5, frames=30, limit_s=4.0)
            for size in SHAPES
        ),
        *(
            Scenario(f"peers, {size}, flat out", _candidates(peers, [size]), 0, rounds=3, frames=1000, limit_s=1.0)
            for size in SHAPES
        ),
        *(
            Scenario(
                f"peers, {count} subscribers, 25 fps", _candidates(peers, receivers=[count]), 25, 3, 25, limit_s=4.0
            )
            for count in SUBSCRIBERS[1:]
        ),
        *(
            Scenario(
                f"peers, {count} subscribers, flat out", _candidates(peers, receivers=[count]), 0, 3, 1000, limit_s=1.0
            )
            for count in SUBSCRIBERS[1:]
        ),
        _steady("steady, 25 fps", 25, rounds=9, frames=80),
        _steady("steady, 200 fps", 200, rounds=9, frames=500),
        _steady("jitter, 25 fps", 25, rounds=7, frames=80, jitter=0.1),
        _steady("jitter, 200 fps", 200, rounds=7, frames=500, jitter=0.1),
        Scenario(
            "sizes, 100 fps",
            _candidates(("framebus-zmq", "framebus-futex", "iceoryx2-listener"), SHAPES),
            100,
            rounds=7,
            frames=100,
        ),
        Scenario(
            "subscribers, 25 fps",
            _candidates(("framebus-zmq", "framebus-futex", "iceoryx2-listener"), receivers=SUBSCRIBERS),
            25,
            rounds=5,
            frames=30,
        ),
        # All other scenarios pin the processes; this one shows what that changes.
        Scenario("cores as the scheduler likes, 25 fps", _candidates(FAST), 25, rounds=5, frames=50, pinned=False),
        _containers(rounds=7, frames=60),
    ]
