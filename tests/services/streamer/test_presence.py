"""Services and cameras that were seen before and are silent now."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from framebus import companion_path
from services.common.status import Stage, StatusServer, status_document
from services.streamer import presence as presence_module
from services.streamer.presence import Absent, Presence
from tests.services.streamer import stitcher
from tests.support import PATIENCE_S

SILENT_AFTER_S = 0.5


@pytest.fixture(autouse=True)
def _polled_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "ASK_EVERY_S", 0.02)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await scenario()

    asyncio.run(limited())


def test_what_others_report_as_absent_is_sorted_in(stream: str) -> None:
    others = [Absent("worker", "people/one", 12.0, "silent"), Absent("worker", "people/two", 40.0, "silent")]
    presence = Presence(stream, SILENT_AFTER_S, others=lambda: list(others))
    assert presence.absent() == others[::-1]


async def until(presence: Presence, wanted: Callable[[list[Absent]], bool]) -> list[Absent]:
    while True:
        await presence.refresh()
        if wanted(found := presence.absent()):
            return found
        await asyncio.sleep(0.02)


def healthy(name: str, stage: Stage | None = None, **details: Any) -> Callable[[], dict[str, Any]]:
    stages = {} if stage is None else {"work": stage}
    return lambda: status_document(name, stages, stale_after_s=math.inf, details=details)


def test_a_service_that_ends_is_named_and_its_last_document_is_corrected(stream: str) -> None:
    async def scenario() -> None:
        presence = Presence(stream, SILENT_AFTER_S)
        stage = Stage()
        for _ in range(3):
            stage.record(0.01)
        with StatusServer(stream, "detector", healthy("detector", stage)), StatusServer(stream, "other", healthy("o")):
            await presence.refresh()
            assert presence.absent() == []
            before = (await presence.statuses())["detector"]
            assert before["healthy"] is True
            assert before["stages"]["work"]["latency_p50_ms"] is not None
        found = await until(presence, lambda absent: len(absent) == 2)
        assert {(one.kind, one.name, one.reason) for one in found} == {
            ("service", "detector", "silent"),
            ("service", "other", "silent"),
        }
        assert all(one.silent_s > SILENT_AFTER_S for one in found)
        after = (await presence.statuses())["detector"]
        assert (after["healthy"], after["silent"]) == (False, True)
        assert after["reason"].startswith("silent for ")
        work = after["stages"]["work"]
        assert (work["fps"], work["frames"], work["latency_p50_ms"]) == (0.0, 3, None)
        assert work["age_s"] > before["stages"]["work"]["age_s"]
        with StatusServer(stream, "detector", healthy("detector")):
            await until(presence, lambda absent: [one.name for one in absent] == ["other"])

    run(scenario)


def test_a_service_that_does_not_answer_is_silent_and_delays_no_other(stream: str) -> None:
    async def scenario() -> None:
        presence = Presence(stream, SILENT_AFTER_S)
        path = companion_path(stream, "status.stopped.sock")
        with ExitStack() as stack:
            with StatusServer(stream, "stopped", healthy("stopped")):
                await presence.refresh()
            # Like a process stopped by SIGSTOP, for which the kernel still accepts connections.
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(str(path))
            stack.callback(path.unlink)
            listening.listen()
            stack.enter_context(StatusServer(stream, "working", healthy("working")))
            await until(presence, lambda absent: [one.name for one in absent] == ["stopped"])
            statuses = await presence.statuses()
            assert statuses["working"]["healthy"] is True
            assert statuses["stopped"]["healthy"] is False

    run(scenario)


def test_a_service_that_is_not_healthy_is_named_with_its_reason(stream: str) -> None:
    async def scenario() -> None:
        presence = Presence(stream, SILENT_AFTER_S)
        with StatusServer(stream, "sick", lambda: status_document("sick", {"work": Stage()}, stale_after_s=1.0)):
            await presence.refresh()
            assert presence.absent() == [Absent("service", "sick", 0.0, "work: no frame yet")]

    run(scenario)


@pytest.mark.parametrize(
    ("state", "age_s", "absent"),
    [
        ("connected", 0.1, []),
        ("connected", 4.0, [Absent("camera", "cam0", 4.0, "silent")]),
        ("lost: no data in time", 9.0, [Absent("camera", "cam0", 9.0, "lost: no data in time")]),
        ("lost: the stream ended", 0.2, []),
        ("refused: 401", 9.0, [Absent("camera", "cam0", 9.0, "refused: 401")]),
        ("waiting for a key frame, 9 s", 9.0, [Absent("camera", "cam0", 9.0, "waiting for a key frame, 9 s")]),
        ("connecting", None, [Absent("camera", "cam0", 0.0, "connecting")]),
        ("waiting for a key frame", 9.0, [Absent("camera", "cam0", 9.0, "waiting for a key frame")]),
        (3, "x", [Absent("camera", "cam0", 0.0, "3")]),
    ],
)
def test_a_camera_without_pictures_is_named(stream: str, state: object, age_s: object, absent: list[Absent]) -> None:
    document = {
        "healthy": True,
        "details": {"cameras": {"cam0": {"state": state}}},
        "stages": {"cam0": {"age_s": age_s}},
    }

    async def scenario() -> None:
        presence = Presence(stream, 2.0)
        with StatusServer(stream, "stitcher", lambda: document):
            await presence.refresh()
            assert presence.absent() == absent

    run(scenario)


def test_the_cause_is_reported_unless_the_state_contains_it(stream: str) -> None:
    cameras = {
        "cam0": {"state": "connecting", "cause": "unreachable"},
        "cam1": {"state": "refused: 401", "cause": "refused"},
        "cam2": {"cause": "ended"},
        "cam3": {"state": "connected", "cause": "ended"},
    }
    document = {"healthy": True, "details": {"cameras": cameras}}

    async def scenario() -> None:
        presence = Presence(stream, 2.0)
        with StatusServer(stream, "stitcher", lambda: document):
            await presence.refresh()
            assert {one.name: one.reason for one in presence.absent()} == {
                "cam0": "connecting (unreachable)",
                "cam1": "refused: 401",
                "cam2": "ended",
                "cam3": "no picture yet",
            }

    run(scenario)


def test_cameras_without_a_place_and_cameras_that_moved_are_reported(stream: str) -> None:
    async def scenario() -> None:
        presence = Presence(stream, SILENT_AFTER_S)
        with StatusServer(stream, "stitcher", stitcher.document):
            await presence.refresh()
            assert Absent("camera", "cam5", 0.0, "not placed") in presence.absent()
            assert presence.notices() == [stitcher.WARNING, f"shown: {stitcher.SHOWN}"]
        await until(presence, lambda absent: [one.reason for one in absent] == ["silent"])
        assert presence.notices() == [], "nothing is known of a stitcher that has gone"
        with StatusServer(stream, "stitcher", stitcher.of_an_earlier_version):
            await until(presence, lambda absent: absent == [Absent("camera", "cam1", 0.0, "lost: no data in time")])
            assert presence.notices() == []

    run(scenario)


def test_invalid_documents_are_ignored(stream: str) -> None:
    documents: dict[str, dict[str, Any]] = {
        "empty": {},
        "numbers": {"details": 3, "stages": []},
        "parts": {"details": {"cameras": [1]}, "stages": {"x": 1}},
    }

    async def scenario() -> None:
        presence = Presence(stream, SILENT_AFTER_S)
        with ExitStack() as stack:
            for name, document in documents.items():
                stack.enter_context(StatusServer(stream, name, partial(dict, document)))
            await presence.refresh()
            assert presence.absent() == [Absent("service", name, 0.0, "not healthy") for name in documents]
        await until(presence, lambda absent: {one.reason for one in absent} == {"silent"})
        statuses = await presence.statuses()
        assert [statuses[name]["healthy"] for name in documents] == [False] * len(documents)

    run(scenario)
