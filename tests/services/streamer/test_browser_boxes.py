"""Where the page draws boxes: at the time of the picture, by detector, epoch and track."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from framebus import FrameFormat
from services.common.detections import Detection
from tests.relay import Relay
from tests.services.streamer.browser import (
    HEIGHT,
    READ_NUMBER_AND_LEFT,
    WIDTH,
    Detecting,
    Served,
    axe_findings,
    marked,
)
from tests.services.streamer.support import RunningPublisher, StreamerProcess
from tests.support import needs_browser, wait_until

pytestmark = [pytest.mark.slow, needs_browser]

# Feeds messages to the page's own module and asks where the objects are at a time.
PLACE = """async ([messages, epoch, captured, maxAge]) => {
    const { Motion } = await import("./page/motion.js");
    const motion = new Motion();
    messages.forEach((message) => motion.add(message));
    return motion.at(epoch, captured, maxAge);
}"""
# Shows objects one after another, and counts how often they are drawn at once.
DRAWN = """([shown, scale]) => import("./page/boxes.js").then(({ Boxes }) => {
    const canvas = document.createElement("canvas");
    const view = { scale, x: 0, y: 20, width: 900, height: 500, stageWidth: 900, stageHeight: 600 };
    let drawn = 0;
    const context = canvas.getContext("2d");
    const strokeRect = context.strokeRect.bind(context);
    context.strokeRect = (...place) => { drawn++; strokeRect(...place); };
    const boxes = new Boxes(canvas, view);
    return shown.map((object) => {
        const before = drawn;
        boxes.show(object ? [{ opacity: 1, ...object }] : []);
        return canvas.hidden ? "hidden" : drawn - before;
    });
})"""
# Draws one object on a canvas of its own, and asks for the texts that are written.
TEXTS = """async ([object, scale]) => {
    const { Boxes } = await import("./page/boxes.js");
    const canvas = document.createElement("canvas");
    const view = { scale, x: 0, y: 20, width: 900, height: 500, stageWidth: 900, stageHeight: 600 };
    const texts = [];
    const context = canvas.getContext("2d");
    const write = context.fillText.bind(context);
    context.fillText = (text, ...place) => { texts.push(text); write(text, ...place); };
    new Boxes(canvas, view).show([{ opacity: 1, ...object }]);
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    return texts;
}"""
# What the page names as missing when the server's clock is at 16 s.
MISSING = """async (server) => {
    const { missing } = await import("./page/status.js");
    return missing(server, { since: (at) => 16000 - at });
}"""


@pytest.fixture(scope="module")
def modules(browser: Browser, served: Served) -> Iterator[Page]:
    """Return a page of which the tests use only the modules."""
    page = browser.new_page()
    page.goto(f"{served.url}healthz")  # a document that loads nothing by itself
    yield page
    page.close()


def walker(x: float, track: int = 7, label: str = "person") -> dict[str, Any]:
    return {"label": label, "score": 0.9, "x": x, "y": 50, "width": 20, "height": 40, "track": track}


def message(captured_ms: float, *objects: dict[str, Any], instance: str = "one", epoch: str = "a") -> dict[str, Any]:
    return {
        "instance": instance,
        "epoch": epoch,
        "captured_ms": captured_ms,
        "full_width": 4896,
        "full_height": 688,
        "objects": list(objects),
    }


def places(modules: Page, messages: list[dict[str, Any]], captured_ms: float, max_age_ms: float = 2000) -> list[float]:
    found = modules.evaluate(PLACE, [messages, "a", captured_ms, max_age_ms])
    return sorted(found_object["x"] for found_object in found["objects"])


# A walker of 0.1 pixels a millisecond, seen every 200 ms.
WALK = [message(1000 + 200 * step, walker(100 + 20 * step)) for step in range(5)]


@pytest.mark.parametrize(
    ("captured_ms", "x"),
    [
        (1000, 100),  # the picture in which it was seen
        (1300, 130),  # between two that were looked at
        (1790, 179),
        (1800, 180),
        (2100, 208.5),  # the detector is behind the picture
        (800, 81),  # the picture is behind the detector
    ],
)
def test_a_box_is_where_its_object_is_in_the_picture(modules: Page, captured_ms: float, x: float) -> None:
    # Of each 20 pixels, a twentieth of its width is not counted as movement.
    assert places(modules, WALK, captured_ms) == pytest.approx([x], abs=0.1)


def test_boxes_that_tremble_do_not_move(modules: Page) -> None:
    trembling = [message(1000 + 40 * step, walker(300 + step % 2)) for step in range(12)]
    assert places(modules, trembling, 2000) == [301]


def test_a_speed_is_measured_over_a_fifth_of_a_second(modules: Page) -> None:
    # Boxes that tremble by 2 pixels would seem to move by 50 pixels a second from one message to the next.
    walk = [message(1000 + 40 * step, walker(100 + 4 * step + 2 * (step % 2))) for step in range(11)]
    assert places(modules, walk, 1700) == pytest.approx([170], abs=5)


def test_an_object_that_turns_round_is_soon_expected_on_its_new_way(modules: Page) -> None:
    turned = [message(2000 + 200 * step, walker(160 - 20 * step)) for step in range(2)]
    assert places(modules, [*WALK, *turned], 2500) == pytest.approx([110], abs=2)


def test_an_object_that_one_message_lacks_keeps_its_speed(modules: Page) -> None:
    walk = [*WALK[:3], message(1600), WALK[4]]
    assert places(modules, walk, 2100) == pytest.approx([210], abs=3)


def test_an_untracked_object_stays_where_it_was_seen(modules: Page) -> None:
    lamps = [message(1000 + 200 * step, walker(300, track=0)) for step in range(3)]
    assert places(modules, lamps, 1950) == [300]
    assert places(modules, lamps, 1100) == [300]


@pytest.mark.parametrize(
    "second",
    [
        message(1200, walker(1385)),  # a jump of 1,285 pixels in 0.2 s
        message(1200, walker(130), epoch="b"),  # another life of the publisher
        message(1200, walker(130, label="car")),  # another kind
        message(3000, walker(130)),  # a detector that restarted meanwhile starts with the same numbers
        message(1200, {**walker(130), "width": 200, "height": 400}),  # ten times as large
    ],
    ids=["jump", "epoch", "kind", "gap", "size"],
)
def test_the_same_number_on_another_object_moves_no_box(modules: Page, second: dict[str, Any]) -> None:
    found = modules.evaluate(
        PLACE, [[message(1000, walker(100)), second], second["epoch"], second["captured_ms"] + 300, 2000]
    )
    (box,) = found["objects"]
    assert (box["x"], box["vx"], box["vy"]) == (second["objects"][0]["x"], 0, 0)
    middle_ms = (1000 + second["captured_ms"]) / 2
    found = modules.evaluate(PLACE, [[message(1000, walker(100)), second], second["epoch"], middle_ms + 1, 60_000])
    assert {round(box["x"]) for box in found["objects"]} <= {100, second["objects"][0]["x"]}


def test_equal_numbers_of_two_detectors_are_separate_tracks(modules: Page) -> None:
    messages = []
    for step in range(4):
        messages.append(message(1000 + 200 * step, walker(100 + 20 * step), instance="one"))
        messages.append(message(1100 + 200 * step, walker(1385 - 20 * step), instance="two"))
    assert places(modules, messages, 1700) == pytest.approx([170, 1325], abs=2)


def test_an_object_that_two_detectors_see_has_one_box(modules: Page) -> None:
    messages = [
        message(1000, walker(100, 1), walker(600, 2), instance="one"),
        message(1010, walker(103, 9), walker(603, 8, label="car"), instance="two"),
    ]
    found = modules.evaluate(PLACE, [messages, "a", 1010, 2000])
    assert sorted((box["instance"], box["label"], box["x"]) for box in found["objects"]) == [
        ("one", "person", 600),
        ("two", "car", 603),
        ("two", "person", 103),
    ]


@pytest.mark.parametrize(("late_ms", "opacity"), [(0, 1), (900, 1), (1500, 0.5), (1999, 0.001)])
def test_a_box_fades_with_the_time_between_it_and_the_picture(modules: Page, late_ms: float, opacity: float) -> None:
    for captured_ms in (5000 + late_ms, 5000 - late_ms):
        found = modules.evaluate(PLACE, [[message(5000, walker(100))], "a", captured_ms, 2000])
        assert found["objects"][0]["opacity"] == pytest.approx(opacity, abs=0.01)


@pytest.mark.parametrize(("late_ms", "opacity"), [(400, 1), (750, 0.5), (1100, None)])
def test_a_moving_box_disappears_twice_as_early(modules: Page, late_ms: float, opacity: float | None) -> None:
    standing = [message(1000 + 200 * step, walker(100 + 20 * step), walker(900, 8)) for step in range(5)]
    found = modules.evaluate(PLACE, [standing, "a", 1800 + late_ms, 2000])
    by_track = {box["track"]: box["opacity"] for box in found["objects"]}
    assert by_track[8] > 0.8
    assert by_track.get(7) == (None if opacity is None else pytest.approx(opacity, abs=0.01))


@pytest.mark.parametrize(("epoch", "captured_ms"), [("a", 7000), ("a", 3000), ("b", 5000)])
def test_a_box_of_a_distant_time_or_another_epoch_is_not_shown(modules: Page, epoch: str, captured_ms: float) -> None:
    found = modules.evaluate(PLACE, [[message(5000, walker(100))], epoch, captured_ms, 2000])
    assert found == {"objects": [], "seenAt": None}


def test_a_message_of_an_earlier_frame_starts_new_tracks(modules: Page) -> None:
    found = places(modules, [*WALK, message(900, walker(500))], 900)
    assert found == [500]


@pytest.mark.parametrize(
    ("sub_class", "scale", "text"),
    [
        (None, 1, "person"),
        ("helmet", 1, "person · helmet"),
        (None, 8, "person 7 · 90%"),
        ("helmet", 8, "person 7 · helmet · 90%"),
    ],
)
def test_the_class_of_the_second_stage_follows_the_label(
    modules: Page, sub_class: str | None, scale: float, text: str
) -> None:
    more = {} if sub_class is None else {"sub_class": sub_class, "sub_score": 0.8}
    assert modules.evaluate(TEXTS, [walker(50) | more, scale]) == [text]


def test_boxes_are_drawn_with_the_picture_and_only_if_they_changed(modules: Page) -> None:
    shown = [walker(50), walker(50), walker(50.1), walker(52), walker(52) | {"label": "car"}, None, None]
    assert modules.evaluate(DRAWN, [shown, 1]) == [1, 0, 0, 1, 1, "hidden", "hidden"]
    # Zoomed in, a tenth of a pixel of the frame is visible.
    assert modules.evaluate(DRAWN, [shown[:3], 8]) == [1, 0, 1]


@pytest.mark.long
def test_two_detectors_are_shown_and_named_when_they_fall_silent(served: Served, page: Page) -> None:
    stream, publisher = served.stream, served.publisher
    car = Detection("car", 0.91, 500.0, 200.0, 300.0, 100.0, 1)
    bus = Detection("bus", 0.55, 1500.0, 150.0, 150.0, 150.0, 1)
    page.goto(served.url)
    with Detecting(stream, publisher, car, instance="one"):
        with Detecting(stream, publisher, bus, instance="two"):
            expect(page.locator("#found")).to_have_text("1 bus1 car")
            expect(page.locator("#objects")).to_have_text("2")
            wait_until(lambda: marked(page, 500, 250) and marked(page, 1500, 225), "both boxes")
            # A kind is hidden and shown again by its button.
            page.get_by_role("button", name="1 bus").click()
            wait_until(lambda: not marked(page, 1500, 225), "the bus is hidden")
            assert marked(page, 500, 250)
            page.get_by_role("button", name="1 bus").click()
            wait_until(lambda: marked(page, 1500, 225), "the bus is shown")
        expect(page.locator("#missing")).to_contain_text("detector two silent for")
        assert axe_findings(page) == []
        expect(page.locator("#found")).to_have_text("1 car")
        expect(page.locator("#objects")).to_have_text("1")
        assert marked(page, 500, 250)


@pytest.mark.parametrize(
    ("state", "picture_ms", "captured_ms", "received_ms", "phrases"),
    [
        # The message was in transit for 6 s, which does not count as the detector's silence.
        ("live", 9900, 9700, 9800, []),
        ("live", 9900, 7000, 9800, ["detection 3.0 s behind"]),
        ("live", 9900, 6900, 7000, ["detector silent for 9 s"]),
        # Pictures arrive rarely, and the detector has not seen the last ones.
        ("delayed", 8500, 6000, 6100, ["detector silent for 9 s"]),
        # No pictures arrive, and the detector has seen the last one.
        ("stale", 5000, 4900, 5000, []),
        ("absent", None, 4900, 5000, []),
    ],
)
def test_on_a_slow_connection_a_detector_is_not_called_silent(
    modules: Page, state: str, picture_ms: int | None, captured_ms: int, received_ms: int, phrases: list[str]
) -> None:
    server = {
        "state": state,
        "sent_ms": 10_000,
        "captured_ms": picture_ms,
        "silent_after_ms": 2000,
        "absent": [],
        "detectors": [{"instance": "one", "captured_ms": captured_ms, "received_ms": received_ms}],
    }
    assert modules.evaluate(MISSING, server) == phrases


def test_each_kind_of_an_absent_part_is_named(modules: Page) -> None:
    parts = (
        ("worker", "people/one", 12.5, "silent"),
        ("camera", "cam3", 0, "not placed"),
        ("service", "relay", 3, "silent"),
    )
    server = {
        "state": "live",
        "sent_ms": 16_000,
        "captured_ms": 15_900,
        "silent_after_ms": 2000,
        "absent": [dict(zip(("kind", "name", "silent_s", "reason"), part, strict=True)) for part in parts],
        "detectors": [],
    }
    assert modules.evaluate(MISSING, server) == [
        "detector people/one silent for 12 s",
        "camera cam3: not placed",
        "relay silent for 3 s",
    ]


@pytest.mark.long
def test_on_a_slow_connection_a_box_stays_on_its_object(stream: str, page: Page, tmp_path: Path) -> None:
    step_px = 40.0

    def object_in(sequence: int) -> Detection:
        return Detection("car", 0.9, 100 + step_px * (sequence % 100), 300.0, 300.0, 150.0, 1 + sequence // 100)

    with (
        RunningPublisher(stream, FrameFormat(HEIGHT, WIDTH), 10, noisy=True) as publisher,
        StreamerProcess(stream, tmp_path / "log", jpeg_quality=60, stale_after_s=6) as streamer,
        Relay(int(streamer.url.rstrip("/").rpartition(":")[2])) as relay,
        Detecting(stream, publisher, find=object_in),
    ):
        relay.bytes_per_s = 250_000
        page.goto(f"http://127.0.0.1:{relay.port}/")
        expect(page.locator("#found")).to_have_text("1 car")
        page.wait_for_timeout(5000)  # by now the rate of the connection is known
        late_frames = []
        for _ in range(60):
            number, left_px = page.evaluate(READ_NUMBER_AND_LEFT, [375, WIDTH, HEIGHT])
            if left_px is not None and 10 < number % 100 < 90:
                late_frames.append((left_px - object_in(number).x_px) / step_px)
            page.wait_for_timeout(100)
        assert len(late_frames) > 20
        # The boxes are placed with each picture, by detections that may be some frames older; a frame lasts 0.1 s.
        assert float(np.median(np.abs(late_frames))) < 2
        assert float(np.mean(np.array(late_frames) > 4)) < 0.1
