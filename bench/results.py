"""The results of a run: numbers of each round, from which every figure of the report is computed. Saved as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from bench.harness import SHAPES, Candidate, Outcome, RoundResult, Scenario
from bench.peers import Peer
from bench.worker import Memory

FORMAT: Final = 1
Results = dict[str, Any]
"""What :func:`save` writes; it contains only JSON's types."""


class Figure(NamedTuple):
    """The median of the rounds, and their range."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, rounds: Iterable[float]) -> Figure | None:
        """Return the figure of one value for each round; ``None`` if there are no values."""
        values = list(rounds)
        return cls(statistics.median(values), min(values), max(values)) if values else None


class Ratio(NamedTuple):
    """The geometric mean of ratios, and its 95 % interval, which is NaN for a single ratio."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Return the ratio of two ways' figures, of which those of a round have the same index."""
        logarithms = np.log(np.array(ours) / np.array(theirs))
        middle, spread = float(logarithms.mean()), float("nan")
        if len(logarithms) > 1:
            spread = 1.96 * float(logarithms.std(ddof=1)) / math.sqrt(len(logarithms))
        return cls(*(float(np.exp(one)) for one in (middle, middle - spread, middle + spread)))


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        # Before the run, because the load average during it is that of the run.
        "load_before": round(os.getloadavg()[0], 2),
    }


def describe_peer(peer: Peer) -> dict[str, Any]:
    """Return what the report says about a peer."""
    return {"title": peer.title, "how": peer.how, "version": peer.version(), "exact": getattr(peer, "exact", True)}


def _round(result: RoundResult) -> dict[str, float]:
    latencies_us = np.array([value for side in result.received for value in side.latencies_ns], np.float64) / 1e3
    arrived = len(latencies_us)
    # A receiver that got nothing knows of no missed frames, so its share is 0 instead of undefined.
    missed = sum(side.skipped for side in result.received)
    row = {
        "delivered": arrived / (arrived + missed) if arrived else 0.0,
        "torn": float(sum(side.torn for side in result.received)),
        "disordered": float(sum(side.disordered for side in result.received)),
        "sender_cpu_us": result.sent.cpu_ns / result.sent.frames / 1e3,
    }
    if arrived:
        p50, p99 = np.percentile(latencies_us, (50, 99))
        row |= {"p50_us": float(p50), "p99_us": float(p99)}
        # Frames that a receiver skipped cost it nothing, so divide by those that it received.
        row["receiver_cpu_us"] = statistics.mean(
            side.cpu_ns / side.frames / 1e3 for side in result.received if side.frames
        )
        row["fps"] = statistics.mean(
            max(len(side.latencies_ns) - 1, 0) / side.seconds if side.seconds else 0.0 for side in result.received
        )
    return row


def _memory(idle: list[Memory]) -> dict[str, Any]:
    sender, *receivers = idle
    return {
        "sender_rss": sender.rss_bytes,
        "receiver_rss": statistics.mean(one.rss_bytes for one in receivers),
        "sender_private": sender.private_bytes,
        "receiver_private": statistics.mean(one.private_bytes for one in receivers),
        # Each process has its part of the shared pages, so the sum counts each page once.
        "shared": sum(one.shared_bytes for one in idle),
    }


def now() -> str:
    """Return the time in the format of the results."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def scenario_results(scenario: Scenario, outcomes: Mapping[str, Outcome], started: str) -> dict[str, Any]:
    """Return a scenario in the saved form."""
    return {
        "name": scenario.name,
        "started": started,
        "fps": scenario.fps,
        "jitter": scenario.jitter,
        "pinned": scenario.pinned,
        "frames": scenario.frames,
        "candidates": {
            candidate.key: _candidate(candidate, outcomes[candidate.key]) for candidate in scenario.candidates
        },
    }


def _candidate(candidate: Candidate, outcome: Outcome) -> dict[str, Any]:
    return {
        "peer": candidate.peer,
        "size": candidate.size,
        "frame_bytes": int(np.prod(SHAPES[candidate.size])),
        "receivers": candidate.receivers,
        "where": candidate.placement,
        "rounds": [_round(result) for result in outcome.rounds],
        "memory": _memory(outcome.idle) if outcome.idle else None,
        "failure": outcome.failure,
    }


def copy_us(size: str, times: int = 7) -> list[float]:
    """Return the times of ``times`` copies of a frame, the floor of every peer that copies."""
    source, target = np.zeros(SHAPES[size], np.uint8), np.zeros(SHAPES[size], np.uint8)
    np.copyto(target, source)
    taken = []
    for _ in range(times):
        begun_ns = time.perf_counter_ns()
        np.copyto(target, source)
        taken.append((time.perf_counter_ns() - begun_ns) / 1e3)
    return taken


def find(
    results: Results, scenario: str, peer: str, *, size: str = "10 MB", receivers: int = 1, placement: str = "processes"
) -> list[dict[str, float]]:
    """Return the rounds of a candidate; none if it was not measured."""
    key = Candidate(peer, size, receivers, placement).key
    for one in results["scenarios"]:
        if one["name"] == scenario and key in one["candidates"]:
            return list(one["candidates"][key]["rounds"])
    return []


def of_panoramas(results: Results, prefix: str) -> dict[str, Any] | None:
    """Return the first scenario with 10 MB frames whose name starts with ``prefix``, if it was run."""
    for scenario in results["scenarios"]:
        sizes = {candidate["size"] for candidate in scenario["candidates"].values()}
        if scenario["name"].startswith(prefix) and "10 MB" in sizes:
            return dict(scenario)
    return None


def figure(rounds: Iterable[Mapping[str, float]], name: str) -> Figure | None:
    """Return the figure with this name over the rounds."""
    return Figure.of(row[name] for row in rounds if name in row)


def save(results: Results, path: Path) -> None:
    """Write a run's results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def load(path: Path) -> Results:
    """Read a run's results.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file has no results, or results of another format.
    """
    try:
        results: Results = json.loads(path.read_text())
    except ValueError:
        results = {}
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ValueError(f"{path} holds no results of this version of the benchmarks")
    return results
