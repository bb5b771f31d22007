"""Status documents as Prometheus text."""

from __future__ import annotations

import math
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common.status import Stage, status_document
from services.streamer.metrics import render
from tests.services.streamer import stitcher
from tests.support import lacks

STREAM = {
    "name": "panorama",
    "live": True,
    "sequence": 3,
    "age_s": 0.1,
    "slots": 8,
    "slots_held": 1,
    "seats": 6,
    "seats_taken": 2,
    "ring_bytes": 1 << 20,
    "subscribers": 1,
}
CONNECTIONS = {
    "open": 2,
    "max": 512,
    "opened": 7,
    "refused": {"address": 1, "full": 0},
    "dropped": {"head": 3},
    "forbidden": {"origin": 4},
}


def samples(
    statuses: dict[str, Any], connections: dict[str, Any] | None = None
) -> dict[tuple[str, tuple[str, ...]], float]:
    found = {}
    for family in text_string_to_metric_families(render(statuses, connections=connections).decode()):
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
def test_an_invalid_document_is_left_out(document: dict[str, Any]) -> None:
    found = samples({"odd": document})
    latency = "framebus_stage_latency_seconds"
    assert {name for name, place in found if "odd" in place} - {latency} == {
        "framebus_service_healthy",
        "framebus_service_up",
    }
    assert found["framebus_service_healthy", ("odd",)] == 0
    assert found["framebus_service_up", ("odd",)] == 1


def test_the_streamers_own_process_is_measured() -> None:
    found = samples({})
    assert found["process_resident_memory_bytes", ()] > 0
    assert found["process_cpu_seconds_total", ()] > 0


def working_service() -> dict[str, Any]:
    receive = Stage()
    receive.record(0.010)
    stages = {"receive": receive, "send": Stage()}
    return status_document("one", stages, stale_after_s=60, optional=("send",), details={"clients": 2})


def test_a_service_that_has_gone_is_still_listed_as_down() -> None:
    document = working_service()
    document["stages"]["receive"] |= {"fps": 25.0, "age_s": 7.5}
    before = samples({"one": document})
    after = samples({"one": document | {"silent": True, "silent_s": 7.5}})
    assert before.keys() == after.keys()
    assert (before["framebus_service_up", ("one",)], after["framebus_service_up", ("one",)]) == (1, 0)
    assert (before["framebus_service_healthy", ("one",)], after["framebus_service_healthy", ("one",)]) == (1, 0)
    place = ("one", "receive")
    assert (before["framebus_stage_fps", place], after["framebus_stage_fps", place]) == (25, 0)
    assert after["framebus_stage_frames_total", place] == 1
    assert after["framebus_stage_age_seconds", place] == 7.5
    assert math.isnan(after["framebus_stage_latency_seconds", ("0.5", *place)])
    assert math.isnan(after["framebus_service_detail", ("clients", "one")])


def test_cameras_and_how_well_they_fit_have_their_metrics() -> None:
    found = samples({"stitcher": stitcher.document(), "one": working_service()})
    # Labels in the order of their names: camera, cause, service.
    assert [found["framebus_camera_up", (f"cam{i}", "stitcher")] for i in range(6)] == [1, 1, 1, 0, 1, 1]
    causes = {place: value for (name, place), value in found.items() if name == "framebus_camera_cause"}
    assert causes == {("cam3", "refused", "stitcher"): 1}
    assert found["framebus_camera_skew_seconds", ("cam2", "stitcher")] == 0.008
    assert ("framebus_camera_skew_seconds", ("cam5", "stitcher")) not in found
    assert [found["framebus_camera_placed", (f"cam{i}", "stitcher")] for i in (4, 5)] == [1, 0]
    assert found["framebus_pair_residual_px", ("cam1-cam2", "stitcher")] == 7.42
    assert found["framebus_pair_drift_px", ("cam1-cam2", "stitcher")] == 7.4
    assert found["framebus_pair_parallax_px", ("cam0-cam1", "stitcher")] == 0.29
    assert ("framebus_pair_residual_px", ("cam3-cam4", "stitcher")) not in found, "there was no texture"
    assert found["framebus_panorama_shown_degrees", ("stitcher",)] == 157.2
    assert found["framebus_panorama_all_degrees", ("stitcher",)] == 193.4


def test_an_earlier_stitcher_has_the_metrics_that_it_reports() -> None:
    found = samples({"stitcher": stitcher.of_an_earlier_version()})
    ours = {(name, place): value for (name, place), value in found.items() if name.startswith("framebus_camera")}
    assert ours == {
        ("framebus_camera_up", ("cam0", "stitcher")): 1,
        ("framebus_camera_up", ("cam1", "stitcher")): 0,
        ("framebus_camera_placed", ("cam0", "stitcher")): 1,
        ("framebus_camera_placed", ("cam1", "stitcher")): 0,
    }


def test_the_cameras_of_a_stitcher_that_has_gone_are_down() -> None:
    before = samples({"stitcher": stitcher.document()})
    after = samples({"stitcher": stitcher.document() | {"silent": True, "silent_s": 7.5}})
    assert before.keys() == after.keys()
    assert after["framebus_camera_up", ("cam0", "stitcher")] == 0
    for name in ("camera_placed", "camera_skew_seconds"):
        assert math.isnan(after[f"framebus_{name}", ("cam0", "stitcher")])
    assert math.isnan(after["framebus_pair_residual_px", ("cam0-cam1", "stitcher")])
    assert math.isnan(after["framebus_panorama_shown_degrees", ("stitcher",)])


def test_connections_are_counted_by_reason() -> None:
    found = samples({}, CONNECTIONS)
    assert found["framebus_web_connections_open", ()] == 2
    assert found["framebus_web_connections_limit", ()] == 512
    assert found["framebus_web_connections_opened_total", ()] == 7
    assert found["framebus_web_connections_refused_total", ("address",)] == 1
    assert found["framebus_web_connections_dropped_total", ("head",)] == 3
    assert found["framebus_web_requests_forbidden_total", ("origin",)] == 4


def test_promtool_finds_nothing_in_the_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        lacks("no promtool here: run 'make system-packages'")
    gone = working_service() | {"silent": True, "silent_s": 7.5}
    statuses = {"one": working_service(), "two": gone, "stitcher": stitcher.document()}
    text = render(statuses, [STREAM], CONNECTIONS)

    def lint(metrics: bytes) -> tuple[int, bytes]:
        checked = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True, check=False)
        return checked.returncode, checked.stdout + checked.stderr

    assert lint(text) == (0, b"")
    as_a_gauge = text.replace(b"_latency_seconds summary", b"_latency_seconds gauge")
    assert b"quantile" in lint(as_a_gauge)[1]
