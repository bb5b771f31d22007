"""The preparation of tiles, the choice of boxes and the names of classes, each separately."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detector.models.choose import Chooser, usable
from services.detector.models.classes import coco_names, names_of_metadata
from services.detector.models.prepare import PADDING, Preparation

BLUE_ISH = np.full((50, 100, 3), (200, 100, 50), np.uint8)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("colour", ["bgr", "rgb"])
@pytest.mark.parametrize("fit", ["stretch", "corner", "centre"])
def test_a_tile_fills_the_input(dtype: str, channels_first: bool, colour: Any, fit: Any) -> None:
    scale = 1 / 255 if dtype != "uint8" else 1.0
    preparation = Preparation(80, 80, channels_first, dtype, colour, scale, fit=fit)
    tensor = preparation.tensor(2)
    placement = preparation.fill(BLUE_ISH, tensor[1])
    assert not tensor[0].any()
    picture = tensor[1].transpose(1, 2, 0) if channels_first else tensor[1]
    wanted = np.array([200, 100, 50] if colour == "bgr" else [50, 100, 200]) * scale
    np.testing.assert_allclose(picture[40 if fit != "corner" else 20, 40], wanted, rtol=1e-3)
    top = {"stretch": 0, "corner": 0, "centre": 20}[fit]
    assert (placement.left_px, placement.top_px) == (0, top)
    if fit != "stretch":
        np.testing.assert_allclose(picture[79 if fit == "corner" else 5, 40], PADDING * scale, rtol=1e-3)
    box = np.array([[0, top, 80, top + (80 if fit == "stretch" else 40)]], np.float32)
    np.testing.assert_allclose(placement.in_tile(box), [[0, 0, 100, 50]], atol=1e-4)


def test_mean_and_deviation_apply_to_each_channel() -> None:
    preparation = Preparation(8, 8, True, "float32", "rgb", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    tensor = preparation.tensor(1)
    preparation.fill(BLUE_ISH, tensor[0])
    wanted = (np.array([50, 100, 200]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(tensor[0, :, 4, 4], wanted, rtol=1e-5)


def test_each_class_has_its_own_threshold() -> None:
    scores = np.array([[0.5, 0.9, 0.1], [0.5, 0.4, 0.7], [0.3, 0.1, 0.2]], np.float32)
    chosen = Chooser((2, 0), (0.6, 0.4)).dense(scores)
    assert chosen.rows.tolist() == [0, 1]
    assert chosen.labels.tolist() == [1, 0]
    np.testing.assert_allclose(chosen.scores, [0.5, 0.7])
    chosen = Chooser((2, 0), (0.6, 0.4)).dense(scores, np.array([0.5, 1, 1], np.float32))
    assert chosen.rows.tolist() == [1]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("with_factor", [False, True])
@pytest.mark.parametrize("thresholds", [(0.4, 0.4, 0.4), (0.9, 0.3, 0.6), (0.0, 0.5, 1.0)])
def test_each_row_is_chosen_by_its_best_class(
    dtype: str, with_factor: bool, thresholds: tuple[float, float, float]
) -> None:
    random = np.random.default_rng(1)
    scores = random.choice([0, 0.3, 0.4, 0.5, 0.6, 0.9, 1, np.nan, -np.inf, np.inf], (500, 6)).astype(dtype)
    factor = random.choice([0, 0.5, 0.8, 1, 2, np.nan], 500).astype(dtype) if with_factor else None
    rows, best, labels = [], [], []
    for row, values in enumerate(scores[:, [4, 0, 2]].astype(np.float32)):
        label = int(values.argmax())
        with np.errstate(invalid="ignore"):
            score = values[label] * (np.float32(1) if factor is None else np.float32(factor[row]))
        if not score < np.float32(thresholds[label]):
            rows.append(row)
            best.append(score)
            labels.append(label)
    assert 0 < len(rows) < len(scores)
    chosen = Chooser((4, 0, 2), thresholds).dense(scores, factor)
    assert chosen.rows.tolist() == rows
    assert chosen.labels.tolist() == labels
    assert chosen.scores.dtype == np.float32
    np.testing.assert_array_equal(chosen.scores, best)


def test_no_row_is_chosen_if_all_are_below() -> None:
    chosen = Chooser((1,), (0.5,)).dense(np.zeros((7, 3), np.float32))
    assert (len(chosen.rows), len(chosen.scores), len(chosen.labels)) == (0, 0, 0)


def test_boxes_of_unwanted_or_unknown_classes_are_dropped() -> None:
    scores = np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.1, np.nan], np.float32)
    classes = np.array([0, 1, 2, 77, -1, 0, 0])
    chosen = Chooser((2, 0), (0.5, 0.5)).listed(scores, classes)
    assert chosen.rows.tolist() == [0, 2, 6]
    assert chosen.labels.tolist() == [1, 0, 1]
    bad = Chooser((0,), (0.5,)).listed(scores[:2], np.array([np.nan, 0.0]))
    assert bad.rows.tolist() == [0, 1]
    assert np.isnan(bad.scores[0])  # to be counted as rejected


NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=20))
def test_only_valid_boxes_inside_the_tile_are_usable(rows: list[tuple[float, ...]]) -> None:
    values = np.array(rows, np.float32).reshape(-1, 5)
    good = usable(values[:, :4], values[:, 4], 300, 400)
    kept: npt.NDArray[np.float32] = np.clip(values[good, :4], 0, np.array([400, 300, 400, 300]))
    assert np.isfinite(kept).all()
    assert (kept[:, 2:] > kept[:, :2]).all()
    assert (values[good, 4] <= 1.001).all()


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"names": "{0: 'person', 1: \"driver's cab\"}"}, ("person", "driver's cab")),
        ({"names": '["person", "car"]'}, ("person", "car")),
        ({"names": '{"0": "person", "2": "car"}'}, ("person", None, "car")),
        ({"classes": "person, car"}, ("person", "car")),
        ({"names": "{0: 'a\\x1b[31mb'}"}, ("a[31mb",)),
        ({"names": "{0: __import__('os')}"}, None),
        ({"names": "{999999999: 'x'}"}, None),
        ({"names": "{-1: 'x'}"}, None),
        ({"names": "[" * 5000}, None),
        ({"names": "7"}, None),
        ({"author": "somebody"}, None),
    ],
)
def test_class_names_are_read_from_the_metadata(metadata: dict[str, str], names: tuple[str | None, ...] | None) -> None:
    assert names_of_metadata(metadata) == names


def test_coco_names_are_found_by_their_number() -> None:
    for count, person, toothbrush in ((80, 0, 79), (90, 0, 89), (91, 1, 90), (None, 0, 79)):
        names = coco_names(count)
        assert names is not None
        assert names.index("person") == person
        assert names.index("toothbrush") == toothbrush
    assert coco_names(20) is None
