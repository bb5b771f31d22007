"""Status documents as Prometheus text."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common.status import Stage, status_document
from services.streamer.metrics import render


def samples(statuses: dict[str, Any]) -> dict[tuple[str, tuple[str, ...]], float]:
    found = {}
    for family in text_string_to_metric_families(render(statuses).decode()):
        for sample in family.samples:
            place = tuple(value for _, value in sorted(sample.labels.items()))
            assert (sample.name, place) not in found
            found[sample.name, place] = sample.value
    return found


def test_every_stage_of_every_service_has_its_metrics() -> None:
    receive, encode = Stage(), Stage()
    for _ in range(3):
        receive.record(0.010, skipped=2)
    healthy = status_document("one", {"receive": receive}, stale_after_s=60, details={"clients": 2, "name": "x"})
    failing = status_document("two", {"encode": encode}, stale_after_s=60, details={"gpu": {"load": 0.5}})
    found = samples({"one": healthy, "two": failing})
    assert found["framebus_service_healthy", ("one",)] == 1
    assert found["framebus_service_healthy", ("two",)] == 0
    assert found["framebus_service_detail", ("clients", "one")] == 2
    assert found["framebus_service_detail", ("gpu.load", "two")] == 0.5
    assert ("framebus_service_detail", ("name", "one")) not in found
    assert found["framebus_stage_frames_total", ("one", "receive")] == 3
    assert found["framebus_stage_skipped_total", ("one", "receive")] == 6
    assert found["framebus_stage_latency_seconds", ("0.5", "one", "receive")] == pytest.approx(0.010)
    assert found["framebus_stage_latency_seconds", ("0.99", "one", "receive")] == pytest.approx(0.010)
    assert found["framebus_stage_age_seconds", ("one", "receive")] >= 0
    assert found["framebus_stage_frames_total", ("two", "encode")] == 0
    assert ("framebus_stage_age_seconds", ("two", "encode")) not in found


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"healthy": "yes", "stages": 3, "details": []},
        {"stages": {"receive": None, "encode": {"fps": "fast", "frames": None}}},
        {"details": {"rate": float("nan"), "text": "x", "deep": {"er": [1]}}},
    ],
)
def test_a_document_that_makes_no_sense_is_left_out(document: dict[str, Any]) -> None:
    found = samples({"odd": document})
    assert {name for name, place in found if "odd" in place} == {"framebus_service_healthy"}
    assert found["framebus_service_healthy", ("odd",)] == 0


def test_the_process_itself_is_measured() -> None:
    found = samples({})
    assert found["process_resident_memory_bytes", ()] > 0
    assert found["process_cpu_seconds_total", ()] > 0
