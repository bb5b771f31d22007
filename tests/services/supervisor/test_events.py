"""The services' output becomes short lines; if no process reads the lines, no service is blocked."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest

from services.common.logs import short_line, time_of_day
from services.supervisor import events as events_module
from services.supervisor.board import Board, Row, Step, fold_cameras, step_of, summary
from services.supervisor.events import Events, OutputReader, as_json, own_event, parse
from tests.support import wait_until

NOON = "2026-03-04T12:00:00Z"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {"event": "camera lost", "camera": "cam2", "url": "http://a", "reason": "timed out", "next_try_s": 0.53},
            "cam2: camera lost: timed out, next try in 0.53 s",
        ),
        ({"event": "failed", "reason": "no model", "level": "error"}, "failed: no model"),
        ({"event": "no free slot", "dropped": 4, "names": ["a", "b"]}, "no free slot (dropped=4, names=[a, b])"),
        ({"event": "bad task", "exception": "Traceback\n  x\nKeyError: 'a'"}, "bad task: KeyError: 'a'"),
        ({"event": "two\nlines\x1b[2J"}, "two\\nlines\\x1b[2J"),
    ],
)
def test_an_event_is_one_short_line(event: dict[str, Any], line: str) -> None:
    told = short_line({"service": "stitcher", "timestamp": NOON, **event})
    assert told == f"{time_of_day(NOON)} stitcher: {line}"


def test_a_line_that_is_not_an_event_is_shown_unchanged() -> None:
    for line in ("Traceback (most recent call last):", '{"broken', "[1]", '{"a": 1}'):
        event = parse("detector", line)
        assert (event.raw, event.is_log, event.text) == (line, False, f"detector: {line}")


def test_the_supervisors_own_events_are_json_like_the_others() -> None:
    content = json.loads(as_json(own_event("stitcher is back rtsp://u:p@host/x")))
    assert (content["event"], content["service"]) == ("stitcher is back rtsp://***@host/x", "supervisor")


def test_too_many_events_are_counted_and_the_writer_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MAX_WAITING", 10)
    events = Events()
    reading, writing = os.pipe()
    reader = OutputReader("stitcher", os.fdopen(reading, "rb"), events)
    reader.start()

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            for number in range(5_000):
                pipe.write(b'{"event": "%d"}\n' % number)
            pipe.write(b'{"event": "failed", "reason": "why"}\n')

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    reader.join(60)
    assert not reader.is_alive()
    assert not writer.is_alive()
    assert reader.last_reason == "why"
    taken = wait_until(events.take, "events")
    assert len(taken) == 11
    assert taken[-1].text == "4991 events were not shown: there were too many"


def row(name: str, mood: str, **more: str) -> Row:
    return Row(name, mood=mood, is_camera=name.startswith("cam"), **more)


def test_the_summary_is_one_short_line() -> None:
    rows = (
        row("cam0", "good", rate="25.0 fps"),
        row("cam1", "bad", remark="lost: timed out"),
        row("stitcher publish", "good", rate="24.9 fps", age="38 ms"),
        row("detector", "bad", remark="missing: no model"),
        row("streamer receive", "good", rate="24.9 fps", age="41 ms"),
        row("streamer encode", "good", rate="24.9 fps", age="44 ms"),
    )
    board = Board("http://a", "live", 1.0, (), rows)
    assert summary(board) == (
        "1 of 2 cameras, stitcher publish 24.9 fps 38 ms, detector: missing: no model, streamer receive 24.9 fps 41 ms"
    )
    assert next(folded.remark for folded in fold_cameras(rows)) == "1 of 2 connected; cam1 lost: timed out"


def test_progress_is_taken_from_the_status() -> None:
    progress = {"what": "rendering", "done": 3, "total": 350, "unit": "frames"}
    found = step_of("simulator", {"progress": progress})
    assert found == Step("simulator", "rendering", 3, 350, "frames")
    assert found is not None
    assert found.amount == "3 of 350 frames"
    for document in (None, {}, {"progress": None}, {"progress": 3}):
        assert step_of("simulator", document) is None
