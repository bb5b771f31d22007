"""The second stage with a planted network and simulated clocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from structlog.testing import capture_logs

from services.detector.boxes import Boxes, Floats
from services.detector.models.errors import ModelError
from services.detector.second_stage import AGAIN_S, MOST_CROPS, SHARE, SecondStage
from services.detector.tiles import Pixels
from services.detector.tracker import Known
from tests.services.detector.test_detector import FRAME_NS, PEOPLE, Trial

LABELS = ("person", "car")


class Brightness:
    """Classifies a crop as ``dark``, ``grey`` or ``bright`` by its first pixel, in a given time for each crop."""

    name, batch = "brightness", 8
    classes: tuple[str, ...] = ("dark", "grey", "bright")
    told: tuple[str, ...] = ("dark", "bright")
    thresholds: tuple[float, ...] = (0.6, 0.6, 0.6)

    def __init__(self, applies_to: tuple[str, ...] | None = ("person",), crop_s: float = 0.01) -> None:
        self.applies_to = applies_to
        self.crop_s = crop_s
        self.time_s = 0.0
        self.calls: list[list[int]] = []
        self.fails = False

    def classify(self, crops: Sequence[Pixels]) -> Floats:
        if self.fails:
            raise ModelError("the classifier fails when it runs: out of memory")
        seen = [int(crop[0, 0, 0]) for crop in crops]
        assert all(crop.base is not None for crop in crops), "crops are views on the frame"
        self.calls.append(seen)
        self.time_s += self.crop_s * len(crops)
        rows = {0: [0.9, 0.05, 0.05], 128: [0.1, 0.8, 0.1], 255: [0.05, 0.05, 0.9], 1: [np.nan] * 3}
        return np.array([rows[value] for value in seen], np.float32).reshape(-1, 3)


class Scene:
    """Objects side by side in a frame, each of one brightness."""

    def __init__(self, network: Brightness, cpu_share: float | None = 0.2, *, every: bool = False) -> None:
        self.network = network
        self.now_s = 0.0
        self.stage = SecondStage(
            network, LABELS, cpu_share, every=every, wall_s=lambda: self.now_s, cpu_s=lambda: network.time_s
        )

    def frame(
        self,
        values: Sequence[int],
        labels: Sequence[int] | None = None,
        ages_ns: Sequence[int] | None = None,
        *,
        at_s: float | None = None,
        in_debt: bool = False,
    ) -> list[str | None]:
        """Return the classes of objects with these brightnesses; the next frame comes 0.2 s later."""
        self.now_s = self.now_s + 0.2 if at_s is None else at_s
        pixels = np.zeros((60, 40 * len(values), 3), np.uint8)
        for index, value in enumerate(values):
            pixels[:, 40 * index : 40 * index + 40] = value
        xyxy = np.array([[40 * index, 0, 40 * index + 40, 60] for index in range(len(values))], np.float32)
        count = len(values)
        boxes = Boxes(xyxy.reshape(-1, 4), np.full(count, 0.9, np.float32), np.array(labels or [0] * count, np.intp))
        known = Known(boxes, list(range(1, count + 1)), list(ages_ns or [0] * count))
        said = self.stage.refine(pixels, known, round(self.now_s * 1e9) + 1, in_debt=in_debt)
        return [None if one is None else one[0] for one in said]


def test_objects_of_the_configured_labels_get_a_class_if_it_is_certain() -> None:
    scene = Scene(Brightness(), cpu_share=None)
    assert scene.frame([0, 255, 128, 0], [0, 0, 0, 1]) == ["dark", "bright", None, None]
    assert scene.network.calls == [[0, 255, 128]]
    assert Scene(Brightness(None), None).frame([0, 0], [0, 1]) == ["dark", "dark"]
    assert Scene(Brightness(("truck",)), None).frame([0, 0], [0, 1]) == [None, None]
    assert scene.frame([]) == []


def test_recalled_objects_keep_their_class_without_a_run() -> None:
    scene = Scene(Brightness(), cpu_share=None)
    scene.frame([0, 255, 128])
    boxes = Boxes(np.zeros((4, 4), np.float32), np.full(4, 0.9, np.float32), np.array([0, 0, 1, 0], np.intp))
    # The third has become another label, and the fourth is new.
    said = scene.stage.recall(Known(boxes, [2, 1, 1, 9], [0] * 4))
    assert [None if one is None else one[0] for one in said] == ["bright", "dark", None, None]
    assert len(scene.network.calls) == 1


def test_the_number_of_crops_in_a_frame_is_limited_and_each_object_has_its_turn() -> None:
    scene = Scene(Brightness(crop_s=0.0001))
    people = [0, 255] * 5
    for _ in range(5):
        scene.frame(people)
    assert all(len(call) <= MOST_CROPS for call in scene.network.calls)
    assert scene.frame(people) == ["dark", "bright"] * 5


def test_new_objects_come_first_and_then_those_that_waited_longest() -> None:
    scene = Scene(Brightness(crop_s=0.0001))
    scene.frame([0])
    scene.frame([0, 128, 128, 128, 128, 255])
    assert scene.network.calls[-1] == [128, 128, 128, 128]
    scene.frame([0, 128, 128, 128, 128, 255], at_s=1.0)
    assert scene.network.calls[-1] == [255, 0, 128, 128]


def test_a_settled_object_is_not_classified_again_for_a_while() -> None:
    scene = Scene(Brightness(crop_s=0.0001))
    for index in range(25):
        assert scene.frame([0], at_s=0.2 * (index + 1)) == ["dark"]
    assert len(scene.network.calls) == 3
    scene.frame([0], at_s=2 + AGAIN_S)
    assert len(scene.network.calls) == 4


def test_a_single_odd_result_renames_no_object_but_several_do() -> None:
    scene = Scene(Brightness(), every=True)
    for _ in range(6):
        scene.frame([255])
    assert scene.frame([0]) == ["bright"]
    told = [scene.frame([0])[0] for _ in range(12)]
    assert told[-1] == "dark"
    assert told.index("dark") > told.index(None), "in between it is not certain"


def test_a_predicted_or_too_small_box_is_not_classified() -> None:
    scene = Scene(Brightness(), every=True)
    assert scene.frame([0, 255], ages_ns=[0, 200_000_000]) == ["dark", None]
    assert scene.frame([0, 255], ages_ns=[200_000_000, 0]) == ["dark", "bright"]
    assert scene.network.calls == [[0], [255]]
    small = Boxes(np.array([[0, 0, 9, 23]], np.float32), np.ones(1, np.float32), np.zeros(1, np.intp))
    pixels = np.zeros((60, 60, 3), np.uint8)
    assert scene.stage.refine(pixels, Known(small, [9], [0]), 10**9) == [None]


def test_a_score_of_nan_is_ignored() -> None:
    scene = Scene(Brightness(), every=True)
    assert scene.frame([1]) == [None]
    assert scene.frame([255]) == ["bright"]
    assert scene.frame([1]) == ["bright"]
    assert scene.stage.crops == 3


@pytest.mark.parametrize("crop_s", [0.002, 0.02, 0.2])
def test_the_second_stage_keeps_to_its_share_of_the_cpu(crop_s: float) -> None:
    scene = Scene(Brightness(crop_s=crop_s), cpu_share=0.2)
    for _ in range(200):
        scene.frame([0, 255] * 50)
    assert scene.network.calls
    assert scene.network.time_s <= SHARE * 0.2 * (200 * 0.2 + 1) + 2 * crop_s


def test_the_second_stage_pauses_while_the_detector_is_over_its_budget() -> None:
    scene = Scene(Brightness())
    assert scene.frame([0], in_debt=True) == [None]
    assert scene.frame([0]) == ["dark"]
    assert scene.frame([0, 255], in_debt=True) == ["dark", None]


def test_without_a_budget_each_object_is_classified_in_each_frame() -> None:
    scene = Scene(Brightness(crop_s=1.0), cpu_share=None, every=True)
    for _ in range(3):
        assert scene.frame([0, 255] * 10, in_debt=True) == ["dark", "bright"] * 10
    assert [len(call) for call in scene.network.calls] == [20] * 3


def test_a_failing_classifier_is_logged_once_and_detection_continues() -> None:
    scene = Scene(Brightness(), every=True)
    scene.frame([0])
    scene.network.fails = True
    with capture_logs() as logs:
        assert [scene.frame([0]) for _ in range(3)] == [["dark"]] * 3
    assert [entry["event"] for entry in logs] == ["second stage failed"]
    assert scene.stage.fault == "the classifier fails when it runs: out of memory"


class OnTheClock(Brightness):
    """A network on the clock of the model, which classifies everything as dark."""

    trial: Trial

    def classify(self, crops: Sequence[Pixels]) -> Floats:
        self.trial.model.time_s += self.crop_s * len(crops)
        self.calls.append([len(crops)])
        return np.array([[0.9, 0.05, 0.05]] * len(crops), np.float32)


@pytest.mark.parametrize("crop_s", [0.005, 0.05])
def test_tiles_give_up_cpu_for_the_second_stage_and_the_promise_is_kept(crop_s: float) -> None:
    network = OnTheClock(crop_s=crop_s)
    network.trial = Trial(PEOPLE, network, cpu_share=0.2, revisit_s=2.0)
    dark: set[int] = set()
    for index in range(120):
        seen = network.trial.frame(index)
        dark |= {track for track, said in zip(seen.known.tracks, seen.said, strict=True) if said is not None}
        if index > 10:
            assert network.trial.detector.longest_age_s <= 2.0
    assert network.trial.model.time_s / (120 * FRAME_NS / 1e9) < 0.23
    assert network.trial.detector.late == 0
    assert len(dark) >= 11, "each person was looked at"


def test_another_epoch_discards_earlier_classes() -> None:
    network = OnTheClock(crop_s=0.001)
    trial = network.trial = Trial(PEOPLE, network, cpu_share=None, target_fps=None)
    assert {said[0] for said in trial.frame(0).said if said} == {"dark"}
    network.fails = True
    assert trial.detector.second_stage is not None
    trial.detector.second_stage.fault = "ended"
    assert set(trial.detector.detect(PEOPLE.pixels(0), 10, epoch=2).said) == {None}
