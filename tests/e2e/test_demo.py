"""``make demo`` from end to end: five cameras, a page in a real browser, boxes on people, and a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page

from framebus import remove_leftovers
from services.common.detections import DetectionSubscriber
from tests.e2e.demo import LIVE, Demo
from tests.e2e.page import LEAST_SHOWN, collect_detections, open_page, part_shown
from tests.e2e.truth import Box, Truth, box_of, overlap
from tests.support import ROOT, complaints, files_of, needs_browser, wait_until

LEAST_IOU = 0.35

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300), needs_browser]


def wait_for(condition: Callable[[], bool], what: str, demo: Demo, patience_s: float) -> None:
    def holds() -> bool:
        assert demo.process.poll() is None, demo.output()
        return condition()

    wait_until(holds, what, timeout_s=patience_s, interval_s=0.1, detail=demo.output)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    stream = f"demo-{os.urandom(4).hex()}"
    often = {"FRAMEBUS_SUPERVISOR__STATUS_INTERVAL_S": "5"}
    running = Demo(stream, tmp_path_factory.mktemp("demo") / "log", **often)
    wait_for(lambda: LIVE in running.output(), "the panorama is live", running, 180)
    yield running
    running.kill()
    remove_leftovers(stream)


@pytest.fixture(scope="module")
def page(demo: Demo) -> Iterator[Page]:
    with open_page(demo.url) as opened:
        yield opened


def test_the_url_is_printed_and_a_status_line_follows(demo: Demo) -> None:
    assert f"{LIVE}{demo.url}" in demo.output()
    wait_for(lambda: "stitcher publish" in demo.output().partition(LIVE)[2], "a summary", demo, 30)
    # A service's warning, such as that of a detector on a slow machine, is a sentence and may be longer.
    summaries = [line for line in demo.output().splitlines() if "stitcher publish" in line]
    assert max(map(len, summaries)) < 160, summaries
    assert "waiting for the cameras" not in demo.output()


def test_the_page_shows_distinct_panoramas(demo: Demo, page: Page) -> None:
    def encoded() -> int:
        frames: int = demo.status()["services"]["streamer"]["stages"]["encode"]["frames"]
        return frames

    assert part_shown(page, encoded) >= LEAST_SHOWN, demo.status()


def test_the_status_contains_every_stage(demo: Demo) -> None:
    services = demo.status()["services"]
    stages = {(service, stage) for service, status in services.items() for stage in status["stages"]}
    wanted = {("stitcher", f"cam{i}") for i in range(5)}
    wanted |= {("stitcher", "publish"), ("detector", "detect"), ("streamer", "receive"), ("streamer", "encode")}
    assert wanted <= stages
    for service, stage in wanted:
        numbers = services[service]["stages"][stage]
        assert numbers["fps"] > 0, (service, stage)
        assert 0 < numbers["latency_p50_ms"] <= numbers["latency_p99_ms"]
        assert numbers["skipped"] >= 0


def test_boxes_are_on_the_true_people(demo: Demo, page: Page) -> None:
    truth = Truth(demo.stream)
    at_page = collect_detections(page)
    recalls: list[float] = []
    detections = DetectionSubscriber(demo.stream)
    deadline_s = time.monotonic() + 90
    captured_ns: dict[int, int] = {}
    while len(recalls) < 12 and time.monotonic() < deadline_s:
        detections.look_for_detectors()
        for found in detections.receive(0.2):
            # A person in a tile that was never looked at is not missed: wait until every tile was looked at.
            if all(tile.age_ms is not None for tile in found.tiles):
                captured_ns[found.sequence] = found.captured_ns
        page.wait_for_timeout(200)
        for sequence in sorted(at_page.keys() & captured_ns.keys()):
            people = truth.people(captured_ns.pop(sequence) / 1e6)
            recalls.append(recall(list(people.values()), at_page[sequence]))
    detections.close()
    assert len(recalls) >= 12, (len(recalls), demo.status())
    assert np.median(recalls) >= 0.5, recalls


def recall(people: Sequence[Box], objects: list[dict[str, Any]]) -> float:
    """Return the share of the true people that have a box labelled person."""
    found = [box_of(one) for one in objects if one["label"] == "person"]
    return sum(any(overlap(person, box) >= LEAST_IOU for box in found) for person in people) / len(people)


def test_a_second_demo_says_that_one_runs_and_does_not_affect_it(demo: Demo) -> None:
    second = subprocess.run(
        ["make", "--no-print-directory", "demo"],
        cwd=ROOT,
        env=demo.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert "run already" in second.stdout + second.stderr
    assert complaints(second.stdout + second.stderr) == []
    assert demo.status()["services"]["stitcher"]["healthy"]


@pytest.mark.parametrize("service", ["detector", pytest.param("stitcher", marks=pytest.mark.long)])
def test_a_killed_service_comes_back(demo: Demo, service: str) -> None:
    others = {name: demo.service_pid(name) for name in {"simulator", "stitcher", "detector", "streamer"} - {service}}
    victim = demo.service(service)
    assert victim is not None
    victim.send_signal(signal.SIGKILL)
    wait_for(lambda: f"{service} ended by signal SIGKILL" in demo.output(), "the supervisor notices", demo, 20)
    wait_for(lambda: demo.service_pid(service) not in (0, victim.pid), f"another {service} runs", demo, 20)

    def works() -> bool:
        statuses = demo.status()["services"]
        return all(
            name in statuses and statuses[name]["healthy"] for name in ("stitcher", "detector", "streamer")
        ) and bool(statuses[service]["stages"])

    wait_for(works, "all services are healthy", demo, 60)
    assert {name: demo.service_pid(name) for name in others} == others


def test_ctrl_c_leaves_no_process_and_no_file(demo: Demo) -> None:
    processes = demo.processes()
    assert len(processes) >= 6
    before = demo.output()
    demo.interrupt()
    assert [process for process in processes if process.is_running() and process.status() != "zombie"] == []
    assert files_of(demo.stream) == []
    assert complaints(demo.output()) == []
    end = demo.output()[len(before) :].splitlines()
    assert len(end) == 1, end
    assert "all is ended after" in end[0]


@pytest.mark.long
def test_a_service_that_stays_dead_ends_the_demo(stream: str, tmp_path: Path) -> None:
    demo = Demo(stream, tmp_path / "log", FRAMEBUS_SUPERVISOR__RESTARTS="1", FRAMEBUS_STREAMER__HOST="192.0.2.1")
    try:
        assert demo.process.wait(120) != 0
        output = demo.output()
        assert "streamer ended with status 1, 2 times" in output
        assert complaints(output) == []
        assert files_of(stream) == []
    finally:
        demo.kill()
