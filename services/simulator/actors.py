"""The moving actors: people who walk back and forth, and a van that drives through. All return to their start.

Time is the fraction of the loop, so that its end meets its beginning at any length. Lengths are reference pixels of the
backdrop; the actors' pictures have the resolution of their canvas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from services.simulator import backdrop
from services.simulator.footage import FRAMES_PER_SECOND as FILM_FRAMES_PER_SECOND
from services.simulator.footage import Cutout, Material, Picture

NEAREST_LANE, FARTHEST_LANE = 790.0, 490.0
"""Rows of the people's feet."""
VAN_LANE = 548.0
"""Row of the van's wheels."""
TURN_SHARPNESS = 0.985
"""How abruptly people turn: 1 would reverse their speed at once, and 0 would make it a sine."""
JACKET_TINTS = (
    (0, 0, 0), (12, 12, 82), (78, 34, 8), (16, 58, 26), (58, 14, 46), (8, 46, 74), (56, 52, 48), (84, 70, 10),
)  # fmt: skip
"""Tints of dark upper clothes, BGR, to derive many people from the few in the film."""


@dataclass(frozen=True)
class Sprite:
    """A picture to draw. Its anchor is the ground below the middle of the body."""

    colour: Picture
    """(height, width, 3), BGR; black where only the shadow is."""
    opacity: NDArray[np.float32]
    """(height, width), 0 to 1, the shadow on the ground included."""
    body: NDArray[np.float32]
    """(height, width): opacity of the body without shadow, as used for the ground truth."""
    anchor_x: float
    anchor_y: float


@dataclass(frozen=True)
class Placed:
    """A sprite's position at some time."""

    sprite: Sprite
    x: float
    """Column of the anchor, in reference pixels."""
    y: float
    """Row of the anchor, in reference pixels."""


class Actor(Protocol):
    """A moving object with a position at every time of the loop."""

    @property
    def identity(self) -> int:
        """Number that identifies the actor in every frame."""

    @property
    def label(self) -> str:
        """``person`` or ``vehicle``."""

    def at(self, time: float) -> Placed:
        """Return the position at a time from 0 to 1, the fraction of the loop."""


@dataclass(frozen=True)
class Walker:
    """A person walking back and forth on a lane, with slow turns at both ends."""

    identity: int
    rightwards: tuple[Sprite, ...]
    leftwards: tuple[Sprite, ...]
    centre: float
    reach: float
    lane: float
    start: float
    strides: int
    """Whole strides in a loop, which makes the gait seamless."""
    label: str = "person"

    def at(self, time: float) -> Placed:
        """Place at a time from 0 to 1."""
        # A triangle wave with rounded corners: constant speed, and slow turns.
        turn = 2 * math.pi * (time + self.start)
        offset = math.asin(TURN_SHARPNESS * math.sin(turn)) / math.asin(TURN_SHARPNESS)
        going_right = math.cos(turn) >= 0
        # The share of the whole way, 0 to 1. The gait follows the way and not the time, so that feet do not slide.
        walked = (1 + offset if going_right else 3 - offset) / 4
        pictures = self.rightwards if going_right else self.leftwards
        step = int(walked * self.strides * len(pictures)) % len(pictures)
        return Placed(pictures[step], self.centre + self.reach * offset, self.lane)


@dataclass(frozen=True)
class Van:
    """A van that crosses the whole scene once in a loop."""

    identity: int
    sprite: Sprite
    start: float
    lane: float = VAN_LANE
    label: str = "vehicle"

    def at(self, time: float) -> Placed:
        """Place at a time from 0 to 1."""
        # Wide enough for the whole van, so that it does not appear or vanish in the scene.
        margin = 320
        way = backdrop.WIDTH + 2 * margin
        return Placed(self.sprite, -margin + way * ((time + self.start) % 1.0), self.lane)


def cast(material: Material, *, walkers: int, duration_s: float, seed: int, scale: float) -> list[Actor]:
    """Choose all actors.

    Args:
        material: Cut-outs of people and of the van.
        walkers: Number of people.
        duration_s: Length of the loop. People walk at the same speed as in the film.
        seed: Seed of positions and clothes.
        scale: Canvas pixels per reference pixel.

    Returns:
        The actors in drawing order, the farthest first.
    """
    # Another sequence than that of the backdrop, which takes the seed itself.
    random = np.random.default_rng(seed + 1)
    lanes = random.permutation(np.linspace(FARTHEST_LANE, NEAREST_LANE, walkers)) if walkers else np.empty(0)
    actors: list[Actor] = [Van(101, _van(material.van, scale), 0.1)]
    for number, lane in enumerate(lanes):
        cycle = material.cycles[number % len(material.cycles)]
        # The nearer a lane, the lower it is in the picture, and the taller its people are.
        height = 190 + (lane - FARTHEST_LANE) * 0.2
        magnification = height / cycle.height_px
        tint = JACKET_TINTS[(number + number // len(material.cycles) * 3) % len(JACKET_TINTS)]
        pictures = [_person(cutout, magnification * scale, tint) for cutout in cycle.cutouts]
        mirrored = [_mirror(picture) for picture in pictures]
        stride = cycle.stride_px * magnification
        # In a loop, a person walks four times this far: from the middle to one side, to the other one, and back.
        reach = stride * FILM_FRAMES_PER_SECOND / len(pictures) * duration_s / 4
        # Spread the people over the cameras' view.
        yaw_deg = -84 + 168 * (number + 0.5) / walkers + random.uniform(-4, 4)
        actors.append(
            Walker(
                identity=number + 1,
                rightwards=tuple(pictures if cycle.heading > 0 else mirrored),
                leftwards=tuple(mirrored if cycle.heading > 0 else pictures),
                centre=backdrop.column_of(yaw_deg),
                reach=reach,
                lane=float(lane),
                start=float(random.random()),
                strides=max(1, round(4 * reach / stride)),
            )
        )
    return sorted(actors, key=lambda actor: actor.at(0.0).y)


def _person(cutout: Cutout, magnification: float, tint: tuple[int, int, int]) -> Sprite:
    pixels, body = _enlarge(cutout, magnification)
    # Tint only what is dark between shoulders and hips: faces, hands and trousers keep their colours.
    rows = np.linspace(0, 1, body.shape[0], dtype=np.float32)
    inside = np.nonzero(body.max(axis=1) > 0.5)[0]
    head, feet = inside[0] / body.shape[0], inside[-1] / body.shape[0]
    down = (rows - head) / (feet - head)
    jacket = np.clip((down - 0.12) / 0.04, 0, 1) * np.clip((0.58 - down) / 0.06, 0, 1)
    dark = np.clip((75 - pixels.max(axis=2)) / 60, 0, 1) * jacket[:, None]
    # Brighten the shadows like those of the backdrop: see backdrop._grade().
    pixels = np.clip(24.0 + 0.88 * (pixels + dark[..., None] * np.array(tint, np.float32)), 0, 255).astype(np.float32)
    return _with_shadow(
        pixels, body, cutout.anchor_x * magnification, cutout.feet_y * magnification, flat=0.12, half=0.34
    )


def _van(cutout: Cutout, scale: float) -> Sprite:
    magnification = 4.5 * scale
    pixels, body = _enlarge(cutout, magnification)
    pixels = (24.0 + 0.86 * pixels).astype(np.float32)  # as for people
    return _with_shadow(
        pixels, body, cutout.anchor_x * magnification, cutout.feet_y * magnification, flat=0.09, half=0.42
    )


def _enlarge(cutout: Cutout, magnification: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    size = (round(cutout.alpha.shape[1] * magnification), round(cutout.alpha.shape[0] * magnification))
    pixels = cv2.resize(cutout.pixels, size, interpolation=cv2.INTER_CUBIC)
    # Sharpen, because the film is enlarged several times.
    pixels = cv2.addWeighted(pixels, 1.5, cv2.GaussianBlur(pixels, (0, 0), max(0.8, magnification * 0.8)), -0.5, 0)
    soft = cv2.resize(cutout.alpha, size, interpolation=cv2.INTER_CUBIC)
    # Draw the edge slightly inside the mask, because the pixels on it are half background.
    return pixels.astype(np.float32), np.clip((soft - 0.45) / 0.3, 0, 1).astype(np.float32)


def _with_shadow(
    pixels: NDArray[np.float32],
    body: NDArray[np.float32],
    anchor_x: float,
    anchor_y: float,
    *,
    flat: float,
    half: float,
) -> Sprite:
    """Combine pixels and masks, and add the shadow: an ellipse on the ground, in shares of the body's height."""
    rows, columns = np.nonzero(body > 0.5)
    tall = float(np.ptp(rows) + 1)
    wide = max(half * tall, (np.ptp(columns) + 1) * 0.55)
    middle = (columns.min() + columns.max()) / 2
    beside, below = math.ceil(wide * 1.2), math.ceil(0.1 * tall)
    pixels = np.pad(pixels, ((0, below), (beside, beside), (0, 0)))
    body = np.pad(body, ((0, below), (beside, beside)))
    y, x = np.mgrid[0 : body.shape[0], 0 : body.shape[1]].astype(np.float32)
    away = np.hypot((x - beside - middle) / wide, (y - anchor_y) / (flat * tall * 0.6))
    opacity = body + (1 - body) * 0.45 * np.clip(1.15 - away, 0, 1)
    used_rows, used_columns = np.nonzero(opacity > 0.004)
    area = (
        slice(used_rows.min(), used_rows.max() + 1),
        slice(used_columns.min(), used_columns.max() + 1),
    )
    # Blended with the opacity, this gives the body's pixels where it is, and a black shadow beside it.
    colour = pixels * (body / np.maximum(opacity, 1e-6))[..., None]
    return Sprite(
        np.ascontiguousarray(colour[area].round(), np.uint8),
        np.ascontiguousarray(opacity[area], np.float32),
        np.ascontiguousarray(body[area], np.float32),
        anchor_x + beside - area[1].start,
        anchor_y - area[0].start,
    )


def _mirror(sprite: Sprite) -> Sprite:
    return Sprite(
        np.ascontiguousarray(sprite.colour[:, ::-1]),
        np.ascontiguousarray(sprite.opacity[:, ::-1]),
        np.ascontiguousarray(sprite.body[:, ::-1]),
        sprite.body.shape[1] - 1 - sprite.anchor_x,
        sprite.anchor_y,
    )
