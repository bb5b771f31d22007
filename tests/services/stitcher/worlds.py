"""Worlds for the test rigs: some look like photographs, others have nothing to match."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from services.simulator import backdrop, footage
from tests.services.stitcher import scene
from tests.services.stitcher.rigs import World

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Random = np.random.Generator
V_LIMIT = 1.0


def _canvas(scale_px: float) -> tuple[int, int]:
    return round(2 * V_LIMIT * scale_px), round(2 * math.pi * scale_px)


def _clouds(random: Random, height: int, width: int, cells: tuple[int, ...], slope: float = 1.0) -> Floats:
    """Noise of many sizes, the larger the stronger, of deviation 1."""
    noise = np.zeros((height, width), np.float32)
    for cell in cells:
        grains = random.standard_normal((height // cell + 3, width // cell + 3)).astype(np.float32)
        noise += cell**slope * cv2.resize(grains, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(noise / noise.std(), np.float32)


def street(seed: int, scale_px: float = 1100.0) -> World:
    """Sky, houses with windows, trees, a pavement: large even parts and repeated ones, as in photographs."""
    random = np.random.default_rng(seed)
    height, width = _canvas(scale_px)
    horizon = height // 2
    sky = np.linspace(235, 180, height)[:, None] + 7 * _clouds(random, height, width, (200, 90, 40))
    picture = np.stack([sky, sky * 0.95, sky * 0.88], axis=-1).astype(np.float32)
    x = 0
    while x < width:
        wide = int(random.uniform(0.12, 0.4) * scale_px)
        top = horizon - int(random.uniform(0.15, 0.6) * scale_px)
        colour = random.uniform(60, 200, 3).astype(np.float32)
        picture[top : horizon + int(0.1 * scale_px), x : x + wide] = colour
        step_x, step_y = (int(random.uniform(0.035, 0.07) * scale_px) for _ in range(2))
        for wy in range(top + step_y // 2, horizon - step_y // 2, step_y):
            for wx in range(x + step_x // 3, min(x + wide, width) - step_x, step_x):
                pane = colour * random.uniform(0.3, 0.75) if random.random() < 0.9 else colour * 1.2
                picture[wy : wy + int(step_y * 0.6), wx : wx + int(step_x * 0.55)] = pane
                if random.random() < 0.4:
                    half = int(step_y * random.uniform(0.1, 0.5))
                    picture[wy : wy + half, wx : wx + int(step_x * 0.55)] = pane * random.uniform(0.6, 1.5)
        x += wide + int(random.choice([0, 0, 0.08 * scale_px]))
    ground = 110 + 18 * _clouds(random, height - horizon, width, (120, 30, 8, 3), 0.6)
    start = horizon + int(0.08 * scale_px)
    picture[start:] = ground[: height - start, :, None] * np.array([0.95, 1.0, 1.03], np.float32)
    leaves = _clouds(random, height, width, (24, 10, 5, 3), 0.5)
    for _ in range(26):
        cx, cy = int(random.uniform(0, width)), horizon + int(random.uniform(-0.3, 0.1) * scale_px)
        r = random.uniform(0.05, 0.16) * scale_px
        y0, y1, x0, x1 = max(0, int(cy - r)), int(cy + r), max(0, int(cx - r)), min(width, int(cx + r))
        yy, xx = np.mgrid[y0:y1, x0:x1]
        crown = ((xx - cx) ** 2 + (yy - cy) ** 2 < (r * (1 + 0.3 * leaves[y0:y1, x0:x1])) ** 2)[..., None]
        green = (75 + 30 * leaves[y0:y1, x0:x1])[..., None] * np.array([0.55, 1.0, 0.7], np.float32)
        picture[y0:y1, x0:x1] = np.where(crown, green, picture[y0:y1, x0:x1])
    _scatter(picture, random, int(100 * scale_px / 400), int(0.012 * scale_px), (int(0.1 * height), height))
    picture += 3 * _clouds(random, height, width, (2,))[..., None]
    soft = cv2.GaussianBlur(np.clip(picture, 0, 255), (0, 0), 0.8)
    return World(np.asarray(soft, np.float32).astype(np.uint8))


def _scatter(picture: Floats, random: Random, count: int, size: int, rows: tuple[int, int]) -> None:
    for _ in range(count):
        x, y, grow = int(random.integers(picture.shape[1])), int(random.integers(*rows)), int(random.integers(size))
        corners = np.array([x, y]) + random.integers(-4 - grow, 5 + grow, (int(random.integers(3, 6)), 2))
        cv2.fillPoly(picture, [corners.astype(np.int32)], random.uniform(20, 235, 3).tolist(), cv2.LINE_AA)


def shapes(seed: int, scale_px: float = 1100.0) -> World:
    """Return a world with features everywhere, as in the stitcher's other tests."""
    random = np.random.default_rng(seed)
    height, width = _canvas(scale_px)
    picture = np.full((height, width, 3), 120, np.float32)
    for cell, strength in ((5, 8), (24, 22), (90, 30)):
        grains = random.standard_normal((height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        picture += strength * cv2.resize(grains, (width, height), interpolation=cv2.INTER_CUBIC)
    _scatter(picture, random, 3500, 16, (0, height))
    return World(cv2.GaussianBlur(np.clip(picture, 20, 235).astype(np.uint8), (0, 0), 0.8).astype(np.uint8))


def painted(seed: int, scale_px: float = scene.SCALE_PX) -> World:
    """The world of the other tests, twice, for a full circle, and mirrored upwards."""
    both = np.concatenate([scene.paint_world(seed), scene.paint_world(seed + 500)], axis=1)
    height, width = _canvas(scale_px)
    circle = both[:, :width]
    margin = (height - circle.shape[0]) // 2
    return World(np.asarray(cv2.copyMakeBorder(circle, margin, margin, 0, 0, cv2.BORDER_REFLECT_101), np.uint8))


def film(seed: int) -> World:
    """The simulator's backdrop: a film's empty place, with boards and flower beds; 200 degrees of it are different."""
    picture, _ = backdrop.paint(footage.load().place, seed)
    scale_px = backdrop.REFERENCE_PX_PER_RAD / 1.5
    small = cv2.resize(picture, None, fx=1 / 1.5, fy=1 / 1.5, interpolation=cv2.INTER_AREA)
    height, width = _canvas(scale_px)
    margin = (height - small.shape[0]) // 2
    tall = cv2.copyMakeBorder(small, margin, height - small.shape[0] - margin, 0, 0, cv2.BORDER_REFLECT_101)
    left = (width - tall.shape[1]) // 2
    wide = cv2.copyMakeBorder(tall, 0, 0, left, width - tall.shape[1] - left, cv2.BORDER_REFLECT_101)
    return World(np.asarray(wide, np.uint8))


def facade(seed: int, scale_px: float = 1100.0) -> World:
    """Return a facade that repeats one window."""
    random = np.random.default_rng(seed)
    height, width = _canvas(scale_px)
    step = int(0.08 * scale_px)
    cell = np.full((step, step, 3), random.uniform(120, 190, 3), np.float32)
    cell[step // 5 : -step // 5, step // 4 : -step // 4] = random.uniform(30, 80, 3)
    cell[step // 2 : step // 2 + 3, step // 4 : -step // 4] = 200
    picture = np.tile(cell, (height // step + 1, width // step + 1, 1))[:height, :width]
    picture = picture + random.uniform(0.5, 4) * random.standard_normal((height, width, 1)).astype(np.float32)
    return World(cv2.GaussianBlur(np.clip(picture, 0, 255).astype(np.uint8), (0, 0), 0.8).astype(np.uint8))


def water(seed: int, scale_px: float = 1100.0) -> World:
    """Fine ripples everywhere, which no two pictures show alike: give each camera another seed."""
    random = np.random.default_rng(seed)
    height, width = _canvas(scale_px)
    grey = 110 + 14 * _clouds(random, height, width, (16, 7, 3), 0.3)
    tone = np.array([1.1, 1.0, 0.8], np.float32)
    return World(np.clip(grey[..., None] * tone, 0, 255).astype(np.uint8))


def plain(level: int = 120) -> World:
    """Return an empty view: fog, or a cap on the lens."""
    return World(np.full((64, 400, 3), level, np.uint8))


def with_thing(
    world: World, other: World, yaw_deg: float, low_px: int, size_px: tuple[int, int], distance_m: float
) -> World:
    """Return the world with one object in front of it, which shows a part of another world.

    Args:
        world: The far world.
        other: What the object shows.
        yaw_deg: Direction of the object.
        low_px: Its place below the horizon, in pixels of the world's picture.
        size_px: Its width and height.
        distance_m: Its distance.
    """
    height, width = world.picture.shape[:2]
    x, y = round((math.radians(yaw_deg) + math.pi) * world.scale_px), height // 2 + low_px
    mask = np.zeros((height, width), np.uint8)
    mask[y - size_px[1] // 2 : y + size_px[1] // 2, x - size_px[0] // 2 : x + size_px[0] // 2] = 255
    return World(world.picture, other.picture[:height, :width], mask, distance_m)


def before(world: World, seed: int, distance_m: float, share: float = 0.3) -> World:
    """Return the world with objects in front of it."""
    random = np.random.default_rng(seed)
    height, width = world.picture.shape[:2]
    scale_px = world.scale_px
    near = shapes(seed + 1000, scale_px).picture[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    while (mask > 0).mean() < share:
        x, y = int(random.integers(width)), int(random.integers(height // 4, 3 * height // 4))
        w, h = (int(random.uniform(0.05, 0.3) * scale_px) for _ in range(2))
        cv2.rectangle(mask, (x, y), (x + w, y + h), 255, -1)
    return World(world.picture, near, mask, distance_m)
