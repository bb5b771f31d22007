"""The benchmark of the relay in its shortest form: all frames arrive and are in the table."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from rich.console import Console

from bench.peers.rabbitmq_server import PEERS as RABBITMQ
from bench.relay import measure, overhead, rows
from bench.relay_turns import Form
from tests.support import lacks

FRAMES, PACED, WARM_UP = 6, 2, 2
SHORT = Form(
    sizes=("0.1 MB",),
    encodings=("lz4",),
    detectors=(0, 1),
    rounds=2,
    detector_rounds=1,
    frames={"0.1 MB": FRAMES},
    paced=PACED,
    transports=("framebus-futex",),
)


def cell(name: str, policy: str, fps: float, cpu_ms: list[float], detectors: int = 0) -> dict[str, object]:
    """A cell whose rounds differ in their CPU time."""
    rounds = [{"fps": fps, "cpu_ms": one_ms, "reference_ms": 5.0} for one_ms in cpu_ms]
    common = {"size": "1 MB", "encoding": "raw", "rounds": rounds}
    return {**common, "name": name, "policy": policy, "detectors": detectors}


def test_the_overhead_is_relative_to_the_bare_loop_of_the_same_policy_and_round() -> None:
    bare, relay = cell("bare", "work", 50, [4, 8, 2]), cell("relay", "work", 40, [5, 10, 2.5])
    detected = cell("relay", "work", 9, [6], detectors=1)
    cells = [bare, relay, detected, cell("bare", "live", 100, [1])]
    assert overhead(relay, cells, "cpu_ms") == pytest.approx((1.25, 1.25, 1.25))
    assert overhead(relay, cells, "fps") == pytest.approx((1.25, 1.25, 1.25))
    assert overhead(bare, cells, "cpu_ms") is None
    assert rows(cells)[1] == (
        *("1 MB", "raw", "relay work", "0", "40", "5.00", "5.0", "", "+25% (+25 to +25)", "+25% (+25 to +25)"),
    )
    # Of the rounds with a detector, only those that the bare loop has too.
    assert rows(cells)[2][-2:] == ("+50%", "")
    assert rows([cell("relay", "live", 1, [1])])[0][-2:] == ("", "")


@pytest.mark.long  # it needs the benchmark's peers
@pytest.mark.timeout(240)
def test_every_frame_arrives_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    if (missing := RABBITMQ[0].missing()) is not None:
        lacks(missing)
    # The benchmark's picture is a panorama that the simulator renders, which takes most of the time.
    noise = np.random.default_rng(1).integers(0, 256, (120, 640, 3), np.uint8)
    monkeypatch.setattr("bench.relay.picture", lambda: noise)
    cells = asyncio.run(measure(SHORT, Console(quiet=True)))
    names = [(one["name"], one["policy"], one["detectors"]) for one in cells]
    one_policy = [("bare", 0), ("relay", 0), ("relay", 1)]
    expected = [(name, policy, count) for policy in ("live", "work") for name, count in one_policy]
    assert names == [*expected, ("framebus-futex", "", 0)]
    sent = WARM_UP + FRAMES + PACED
    for one in cells:
        assert len(one["rounds"]) == (1 if one["detectors"] else 2)
        round_ = one["rounds"][0]
        assert round_["fps"] > 0
        assert round_["cpu_ms"] > 0
        if one["name"] not in {"bare", "relay"}:
            assert round_["sent"] == FRAMES
            continue
        assert round_["sent"] == round_["references"] == sent
        assert round_["reference_ms"] > 0
        if one["name"] == "bare":
            assert all(stage_ms > 0 for stage_ms in round_["stages_ms"].values())
            assert round_["verified"] == sent
            continue
        if one["detectors"]:
            assert round_["results"] == sent
            assert round_["result_ms"] > round_["reference_ms"]
        else:
            assert round_["damaged"] == 0
            # The broker drops the oldest of a live queue, and the relay removes their objects.
            assert round_["verified"] + round_["removed"] == sent
            assert one["policy"] == "live" or round_["verified"] == sent
        assert one["counts"]["accepted"] == one["counts"]["published"] == 3 * sent
        assert not [name for name in one["counts"] if name.startswith("missed")]
