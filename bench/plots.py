"""Draws the pictures of a run's report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

# Select the backend before pyplot is imported: the machine may have no display.
mpl.use("Agg")

import matplotlib.pyplot as plt

from bench.results import Figure, Results, figure, of_panoramas

OURS_COLOUR = "#1f6f8b"
OTHERS_COLOUR = "#b0b6bb"
FLOOR_COLOUR = "#d9a441"


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the pictures whose scenarios the run has, and return their files."""
    plots = (
        ("latency-by-peer", _by_peer, "peers"),
        ("latency-by-frame-size", _by_size, "sizes"),
        ("cost-by-subscribers", _by_subscribers, "subscribers"),
    )
    files = []
    for name, plot, prefix in plots:
        scenario = of_panoramas(results, prefix)
        if scenario is None:
            continue
        chart, axes = plt.subplots(figsize=(9, 5.5))
        plot(axes, scenario, results["peers"])
        axes.grid(which="major", alpha=0.3)
        axes.set_axisbelow(True)
        chart.tight_layout()
        file = folder / f"{name}.png"
        # Without the version of matplotlib in the file, the same figures give the same bytes.
        chart.savefig(file, dpi=110, metadata={"Software": None})
        plt.close(chart)
        files.append(file)
    return files


def _colour(peer: str) -> str:
    if peer.startswith("framebus"):
        return OURS_COLOUR
    return FLOOR_COLOUR if peer.startswith("floor") else OTHERS_COLOUR


def _by_peer(axes: Any, scenario: dict[str, Any], peers: dict[str, Any]) -> None:
    rows = []
    for one in scenario["candidates"].values():
        p50, p99 = figure(one["rounds"], "p50_us"), figure(one["rounds"], "p99_us")
        if p50 and p99:
            rows.append((p50.median, p99.median, one["peer"]))
    rows.sort(reverse=True)
    places = range(len(rows))
    # Draw p99 first and p50 over it, so that both start at the axis.
    axes.barh(places, [p99 for _, p99, _ in rows], color=[_colour(peer) for *_, peer in rows], alpha=0.35)
    axes.barh(places, [p50 for p50, _, _ in rows], color=[_colour(peer) for *_, peer in rows])
    axes.set_yticks(places, [peers[peer]["title"] for *_, peer in rows])
    axes.set_xscale("log")
    axes.set_xlabel("hand-over of a 10 MB frame, microseconds: p50 (dark) and p99 (light)")
    axes.set_title(f"Latency by peer, {scenario['fps']:g} frames a second")


def _lines(scenario: dict[str, Any], over: str, name: str) -> Iterator[tuple[str, list[float], list[Figure]]]:
    """Yield, for each peer, the values of ``over`` and the figure at each of them, in order."""
    for peer in dict.fromkeys(one["peer"] for one in scenario["candidates"].values()):
        points = [
            (one[over], value)
            for one in scenario["candidates"].values()
            if one["peer"] == peer and (value := figure(one["rounds"], name))
        ]
        points.sort(key=lambda point: point[0])
        if points:
            yield peer, [x for x, _ in points], [value for _, value in points]


def _draw_lines(axes: Any, scenario: dict[str, Any], peers: dict[str, Any], over: str, name: str) -> None:
    for peer, at, values in _lines(scenario, over, name):
        middle = [value.median for value in values]
        spread = [
            [value.median - value.least for value in values],
            [value.most - value.median for value in values],
        ]
        axes.errorbar(at, middle, yerr=spread, marker="o", capsize=3, label=peers[peer]["title"])
    # The axis begins at zero, because a cut axis would exaggerate the differences.
    axes.set_ylim(bottom=0)
    axes.legend()


def _by_size(axes: Any, scenario: dict[str, Any], peers: dict[str, Any]) -> None:
    _draw_lines(axes, scenario, peers, "frame_bytes", "p50_us")
    axes.set_xscale("log")
    axes.set_xlabel("frame, bytes")
    axes.set_ylabel("hand-over, p50, microseconds")
    axes.set_title(f"Latency by frame size, {scenario['fps']:g} frames a second")


def _by_subscribers(axes: Any, scenario: dict[str, Any], peers: dict[str, Any]) -> None:
    _draw_lines(axes, scenario, peers, "receivers", "sender_cpu_us")
    axes.set_xlabel("subscribers")
    axes.set_ylabel("publisher's CPU for each frame, microseconds")
    axes.set_title(f"Cost by subscribers, {scenario['fps']:g} frames a second")
