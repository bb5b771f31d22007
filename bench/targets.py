"""The targets of framebus, as ratios within one run, and whether a run meets them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench.peers.framebus_ring import slots_for
from bench.results import Results, find

RATES: Final = ("25 fps", "200 fps")


@dataclass(frozen=True)
class Target:
    """One claim."""

    claim: str
    limit: float
    measure: Callable[[Results], float | None]
    """The value that must not exceed the limit; ``None`` if the run did not measure it."""
    unit: str = ""


@dataclass(frozen=True)
class Verdict:
    """A claim and its value in a run."""

    target: Target
    value: float | None

    @property
    def text(self) -> str:
        """Whether the target is ``met``, ``missed`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        return "met" if self.value <= self.target.limit else "missed"


def ratio(results: Results, scenario: str, candidate: str, baseline: str, figure: str = "p50_us") -> float | None:
    """Return the median, over the rounds, of the ratio of two peers' figures: in each round both had their turn."""
    return _paired(find(results, scenario, candidate), find(results, scenario, baseline), figure)


def _paired(candidate: list[dict[str, float]], baseline: list[dict[str, float]], figure: str) -> float | None:
    # Compare within a round, not between medians: other load on the machine affects both turns of a round alike.
    pairs = [
        one[figure] / other[figure]
        for one, other in zip(candidate, baseline, strict=False)
        if figure in one and other.get(figure)
    ]
    return statistics.median(pairs) if pairs else None


def _steady(candidate: str, baseline: str, limit: float, figure: str = "p50_us", what: str = "") -> Iterator[Target]:
    for rate in RATES:
        yield Target(
            f"{candidate} to {baseline}, {what or 'p50'}, {rate}",
            limit,
            lambda results, rate=rate: ratio(results, f"steady, {rate}", candidate, baseline, figure),  # type: ignore[misc]
        )


def _jitter(candidate: str, baseline: str, limit: float) -> Iterator[Target]:
    for rate in RATES:
        yield Target(
            f"{candidate} to {baseline}, p50, {rate} with 10 % of jitter",
            limit,
            lambda results, rate=rate: ratio(results, f"jitter, {rate}", candidate, baseline),  # type: ignore[misc]
        )


def _across_containers(peer: str) -> Target:
    def measure(results: Results) -> float | None:
        name = "containers, 50 fps"
        return _paired(find(results, name, peer, placement="containers"), find(results, name, peer), "p50_us")

    return Target(f"{peer} between two containers to two processes, p50, 50 fps", 1.1, measure)


def _flat(results: Results) -> float | None:
    name, peer = "sizes, 100 fps", "framebus-futex"
    return _paired(find(results, name, peer, size="50 MB"), find(results, name, peer, size="0.1 MB"), "p50_us")


def _further_subscriber_us(results: Results) -> float | None:
    name, peer = "subscribers, 25 fps", "framebus-futex"
    one, many = find(results, name, peer, receivers=1), find(results, name, peer, receivers=16)
    # 15 receivers more than one, so the difference divided by 15 is the cost of each further one.
    costs = [(b["sender_cpu_us"] - a["sender_cpu_us"]) / 15 for a, b in zip(one, many, strict=False)]
    return statistics.median(costs) if costs else None


def _first_frame_ms(results: Results) -> float | None:
    value: float | None = results["attach"].get("first_frame_ms")
    return value


def _first_lap_faults(results: Results) -> float | None:
    attach = results["attach"]
    # A share of the pages, so that the limit does not depend on the size of frames.
    return attach["first_lap_faults"] / attach["touched_pages"] if attach else None


def _pixels_with_16(results: Results) -> float | None:
    for scenario in results["scenarios"]:
        for candidate in scenario["candidates"].values():
            if (candidate["peer"], candidate["receivers"]) == ("framebus-futex", 16) and candidate["memory"]:
                return float(candidate["memory"]["shared"] / (slots_for(16) * candidate["frame_bytes"]))
    return None


TARGETS: Final = (
    *_steady("framebus-predict", "iceoryx2-listener", 0.35),
    *_steady("framebus-predict", "floor-futex", 1.0),
    *_steady("framebus-predict", "iceoryx2-listener", 1.0, "p99_us", "p99"),
    *_jitter("framebus-predict", "iceoryx2-listener", 0.8),
    *_steady("framebus-futex", "iceoryx2-listener", 1.0),
    *_steady("framebus-busy", "iceoryx2-busy", 1.0),
    *_steady("framebus-zmq", "floor-zmq", 1.25),
    _across_containers("framebus-zmq"),
    _across_containers("framebus-futex"),
    Target("framebus-futex with 50 MB to 0.1 MB, p50, 100 fps", 1.15, _flat),
    *_steady("framebus-zmq", "iceoryx2-listener", 1.0, "sender_cpu_us", "publisher's CPU"),
    *_steady("framebus-futex", "iceoryx2-listener", 0.9, "sender_cpu_us", "publisher's CPU"),
    Target("publisher's CPU for each further subscriber, framebus-futex", 10.0, _further_subscriber_us, "us"),
    Target("attaching to a ring of eight 10 MB slots, to the first frame", 10.0, _first_frame_ms, "ms"),
    Target("minor faults of the first lap to the pages read", 0.01, _first_lap_faults),
    Target("shared memory of 17 processes to the pixels of one ring", 1.05, _pixels_with_16),
)


def verdicts(results: Results) -> list[Verdict]:
    """Return every claim with its value in a run."""
    return [Verdict(target, target.measure(results)) for target in TARGETS]
