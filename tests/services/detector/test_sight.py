"""A moved object is found again, to a fraction of a sample, and nowhere else."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from services.detector.boxes import Floats
from services.detector.sight import look_at
from services.detector.tiles import Pixels

HEIGHT, WIDTH = 688, 1600


def texture(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """Soft spots, so that a part of a pixel counts."""
    spots = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


GROUND: Pixels = cv2.GaussianBlur(texture(HEIGHT, WIDTH, 1) // 8 + 100, (0, 0), 3).astype(np.uint8)


def frame(x: float, y: float, width: int, height: int) -> Pixels:
    """Return a frame with an object in front of the ground, at a place between pixels."""
    shift = np.array([[1, 0, x], [0, 1, y]], np.float32)
    coat = cv2.warpAffine(texture(height, width, 2), shift, (WIDTH, HEIGHT))
    mask = cv2.warpAffine(np.full((height, width), 255, np.uint8), shift, (WIDTH, HEIGHT))
    drawn: Pixels = np.where(mask[..., None] > 127, coat, GROUND).astype(np.uint8)
    return drawn


def box(x: float, y: float, width: int, height: int) -> Floats:
    return np.array([x, y, x + width, y + height], np.float32)


@pytest.mark.parametrize(("width", "height"), [(12, 30), (45, 120), (90, 250), (400, 200)])
@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (7.3, -2.5), (-9.5, 3.0)])
def test_an_object_is_found_where_it_has_moved(width: int, height: int, x: float, y: float) -> None:
    before, after = (600.0, 300.0), (600.0 + x, 300.0 + y)
    sight = look_at(frame(*before, width, height), box(*before, width, height))
    assert sight is not None
    found = sight.find(frame(*after, width, height), box(*before, width, height))
    assert found is not None
    assert found == pytest.approx(box(*after, width, height), abs=max(0.7, 0.3 * sight.step_px))


def test_an_object_that_is_gone_or_out_of_reach_is_not_found() -> None:
    sight = look_at(frame(600, 300, 45, 120), box(600, 300, 45, 120))
    assert sight is not None
    assert sight.find(frame(800, 300, 45, 120), box(600, 300, 45, 120)) is None
    assert sight.find(GROUND, box(600, 300, 45, 120)) is None


@pytest.mark.parametrize("place", [(-30.0, 300.0), (1570.0, 300.0), (600.0, -100.0), (600.0, 660.0)])
def test_an_object_that_leaves_the_frame_is_not_an_error(place: tuple[float, float]) -> None:
    inside = look_at(frame(600, 300, 45, 120), box(600, 300, 45, 120))
    assert inside is not None
    assert inside.find(GROUND, box(*place, 45, 120)) is None


@pytest.mark.parametrize(("width", "height"), [(0, 0), (3, 5), (2, 300), (5000, 4000)])
def test_too_small_or_too_large_objects_have_no_sight(width: int, height: int) -> None:
    assert look_at(GROUND, box(600, 300, width, height)) is None


def test_an_object_without_texture_has_no_sight() -> None:
    assert look_at(np.full((HEIGHT, WIDTH, 3), 80, np.uint8), box(600, 300, 45, 120)) is None


def test_the_frame_is_read_in_place_and_not_kept() -> None:
    pixels = frame(600, 300, 45, 120)
    pixels.flags.writeable = False
    sight = look_at(pixels, box(600, 300, 45, 120))
    assert sight is not None
    assert not np.shares_memory(sight.patch, pixels)
    assert sight.patch.size <= 800
