"""Results in the format of a run, with figures that a test chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from bench import plan
from bench.harness import SHAPES, Candidate, Scenario
from bench.peers import all_peers
from bench.pipeline import AT_THE_PAGE, HAND_OVER
from bench.results import FORMAT, Results

Row = dict[str, float]
GIB = 2**30
FAILURE = "Traceback (most recent call last):\n  ...\nRuntimeError: the server is gone\n"


def row(p50_us: float, **others: float) -> Row:
    """Return the figures of a round."""
    usual = {"p99_us": 2 * p50_us, "sender_cpu_us": 50.0, "receiver_cpu_us": 60.0, "fps": 25.0}
    return {"p50_us": p50_us, **usual, "delivered": 1.0, "torn": 0.0, "disordered": 0.0, **others}


def scenario(
    plan: Scenario, rounds: Callable[[Candidate, int], Row | None], failures: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return the results of a scenario: each candidate has the rounds that are not ``None``."""
    return {
        "name": plan.name,
        "started": "2030-01-02 03:05 UTC",
        "fps": plan.fps,
        "jitter": plan.jitter,
        "pinned": plan.pinned,
        "frames": plan.frames,
        "candidates": {
            one.key: {
                "peer": one.peer,
                "size": one.size,
                "frame_bytes": math.prod(SHAPES[one.size]),
                "receivers": one.receivers,
                "where": one.placement,
                "rounds": [figures for number in range(plan.rounds) if (figures := rounds(one, number)) is not None],
                "memory": {
                    "sender_rss": GIB,
                    "receiver_rss": GIB,
                    "sender_private": 5e6,
                    "receiver_private": 6e6,
                    "shared": 35 * math.prod(SHAPES[one.size]),
                },
                "failure": (failures or {}).get(one.peer, ""),
            }
            for one in plan.candidates
        },
    }


def results(scenarios: Iterable[dict[str, Any]], **others: Any) -> Results:
    """Return the results of a whole run."""
    return {
        "format": FORMAT,
        "form": "short",
        "only": "",
        "started": "2030-01-02 03:04 UTC",
        "seconds": 240.0,
        "machine": {
            "cpu": "a machine of the test",
            "cores": 2,
            "memory_gib": 8.0,
            "kernel": "6.1",
            "python": "3.11.9",
            "load_before": 0.5,
        },
        "missing": {},
        "peers": {
            name: {"title": peer.title, "how": peer.how, "version": "1.2.3", "exact": getattr(peer, "exact", True)}
            for name, peer in all_peers().items()
        },
        "scenarios": list(scenarios),
        "attach": {},
        "copy_us": {size: [100.0, 120.0, 110.0] for size in SHAPES},
        **others,
    }


def whole_run() -> Results:
    """Return a run of the short form, in which Redis failed after its first round and iceoryx2 is not installed."""

    def figures(one: Candidate, number: int) -> Row | None:
        if one.peer == "iceoryx2-listener" or (one.peer.startswith("redis") and number):
            return None
        cheap = {"sender_cpu_us": 12.0} if one.peer in ("pipe", "floor-zmq") else {}
        return row(100.0 * (1 + number), torn=float(number if one.peer == "tmpfs-file" else 0), **cheap)

    peers = list(all_peers())
    scenarios = [
        scenario(one, figures, {name: FAILURE for name in peers if name.startswith("redis")})
        for one in plan.short(peers)
    ]
    attach = {"first_frame_ms": 4.5, "first_frame_ms_least": 4.0, "first_frame_ms_most": 9.0}
    faults = {"first_lap_faults": 12.0, "second_lap_faults": 0.0, "waiting_faults": 1085.0, "touched_pages": 19_800.0}
    pipeline = {
        "started": "2030-01-02 04:00 UTC",
        "seconds": 60.0,
        "panoramas_per_s": 24.9,
        "skipped": 3,
        "pictures_per_s": 24.5,
        "boxes_per_s": 2.5,
        "stages_ms": {HAND_OVER: [0.25, 1.5], AT_THE_PAGE: [100.0, 150.0]},
        "hand_over_part": 0.0025,
        "cores": {"stitcher": 0.75},
    }
    return results(
        scenarios, attach=attach | faults, pipeline=pipeline, missing={"two containers": "no engine answers"}
    )
