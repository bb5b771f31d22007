"""The scene at any frame: one wide cylindrical canvas, and the ground truth of the visible objects."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from services.simulator import actors, backdrop, footage
from services.simulator.camera import Camera, Cylinder, lookup
from services.simulator.config import FRAMES_PER_SECOND, SimulatorSection
from services.simulator.footage import Picture

LEAST_VISIBLE = 0.4
"""Least visible share of an object, in the scene and within a camera's picture, to be part of the ground truth."""


@dataclass(frozen=True)
class Drawn:
    """An actor on the canvas."""

    identity: int
    label: str
    area: tuple[slice, slice]
    """Rows and columns of the canvas that were painted."""
    body: NDArray[np.bool_]
    """Which of these pixels the actor covers, including occluded ones."""
    size: int
    """Number of pixels of the whole actor, including those beyond the canvas."""


class Scene:
    """Backdrop and actors in the resolution of a set of cameras."""

    def __init__(self, section: SimulatorSection) -> None:
        self.cameras = section.cameras
        self.frames = section.frames
        # In the middle of a camera's picture, a pixel of the canvas is as large as one of the picture.
        scale = self.cameras[0].focal_px / backdrop.REFERENCE_PX_PER_RAD
        material = footage.load()
        still, foreground = backdrop.paint(material.place, section.seed)
        size = (round(backdrop.WIDTH * scale), round(backdrop.HEIGHT * scale))
        shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        self.still: Picture = np.asarray(cv2.resize(still, size, interpolation=shrink), np.uint8)
        """The canvas without actors, (height, width, 3) BGR."""
        self._uncovered = 1.0 - cv2.resize(foreground, size, interpolation=cv2.INTER_AREA)
        # The exact scale, because the canvas has whole pixels.
        self._scale = (size[0] / backdrop.WIDTH, size[1] / backdrop.HEIGHT)
        half_height = backdrop.HEIGHT / 2 / backdrop.REFERENCE_PX_PER_RAD
        self.cylinder = Cylinder(
            *size, -backdrop.YAW_LIMIT_RAD, backdrop.YAW_LIMIT_RAD, v_min=-half_height, v_max=half_height
        )
        """Geometry of the canvas."""
        self._actors = actors.cast(
            material,
            walkers=section.walkers,
            duration_s=section.frames / FRAMES_PER_SECOND,
            seed=section.seed,
            scale=scale,
        )
        self._parked = [self._parked_vehicle(number, box) for number, box in enumerate(backdrop.parked_vehicles())]

    def compose(self, index: int, canvas: Picture) -> list[Drawn]:
        """Draw the actors of a frame onto a canvas equal to :attr:`still`, the farthest first."""
        drawn = (self._draw(actor, actor.at(index % self.frames / self.frames), canvas) for actor in self._actors)
        return [one for one in drawn if one is not None]

    def erase(self, drawn: list[Drawn], canvas: Picture) -> None:
        """Restore the canvas to :attr:`still`."""
        for one in drawn:
            canvas[one.area] = self.still[one.area]

    def truth(self, drawn: list[Drawn]) -> list[dict[str, Any]]:
        """Return the visible objects, as in the file ``truth.json``.

        Returns:
            A dictionary for each object: ``id``; ``label`` (``person`` or ``vehicle``); ``visible``, the unoccluded
            share; ``yaw_min_rad``, ``yaw_max_rad``, ``v_min``, ``v_max``; and ``cameras``, with ``[x, y, w, h]`` in
            pixels for each camera that shows enough of it, clipped to the picture.
        """
        told = list(self._parked)
        for order, one in enumerate(drawn):
            visible = one.body & (self._uncovered[one.area] > 0.5)
            # Actors are drawn from the farthest to the nearest, so those that follow may occlude this one.
            for nearer in drawn[order + 1 :]:
                _subtract(visible, one.area, nearer)
            share = int(np.count_nonzero(visible)) / one.size
            if share >= LEAST_VISIBLE:
                contours, _ = cv2.findContours(visible.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                outline = np.concatenate(contours)[:, 0, :] + (one.area[1].start, one.area[0].start)
                told.append(self._describe(one.identity, one.label, share, outline.astype(np.float64)))
        return told

    def _draw(self, actor: actors.Actor, placed: actors.Placed, canvas: Picture) -> Drawn | None:
        sprite = placed.sprite
        height, width = sprite.body.shape
        # Columns to a fraction of a pixel, so that people walk smoothly; rows do not change in a walk.
        x = placed.x * self._scale[0] - sprite.anchor_x
        top = round(placed.y * self._scale[1] - sprite.anchor_y)
        left = int(np.floor(x))
        columns = slice(max(0, left), min(canvas.shape[1], left + width + 1))
        rows = slice(max(0, top), min(canvas.shape[0], top + height))
        if columns.start >= columns.stop or rows.start >= rows.stop:
            return None
        area, cut = (
            (rows, columns),
            (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)),
        )
        shift = np.array([[1, 0, x - left], [0, 1, 0]], np.float64)
        colour, opacity, body = (
            cv2.warpAffine(plane, shift, (width + 1, height)) for plane in (sprite.colour, sprite.opacity, sprite.body)
        )
        weight = opacity[cut] * self._uncovered[area]
        canvas[area] = cv2.blendLinear(colour[cut], canvas[area], weight, 1.0 - weight)
        filled = body > 0.5
        return Drawn(actor.identity, actor.label, area, filled[cut], max(1, int(np.count_nonzero(filled))))

    def _parked_vehicle(self, number: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
        left, top, right, bottom = box
        # Points along both edges, because a straight edge is a curve in a camera's picture.
        x = np.linspace(left, right - 1, 50) * self._scale[0]
        edges = np.concatenate([np.column_stack([x, np.full(50, row * self._scale[1])]) for row in (top, bottom - 1)])
        return self._describe(201 + number, "vehicle", 1.0, edges)

    def _describe(self, identity: int, label: str, share: float, outline: NDArray[np.float64]) -> dict[str, Any]:
        # An outline goes through the middles of pixels, and a box along their edges.
        (left, top), (right, bottom) = outline.min(axis=0) - 0.5, outline.max(axis=0) + 0.5
        (yaw_min, yaw_max), (v_min, v_max) = self.cylinder.direction(np.array([left, right]), np.array([top, bottom]))
        directions = self.cylinder.direction(outline[:, 0], outline[:, 1])
        seen = {camera.name: _box(camera, *directions) for camera in self.cameras}
        return {
            "id": identity,
            "label": label,
            "visible": round(share, 3),
            "yaw_min_rad": round(float(yaw_min), 6),
            "yaw_max_rad": round(float(yaw_max), 6),
            "v_min": round(float(v_min), 6),
            "v_max": round(float(v_max), 6),
            "cameras": {name: box for name, box in seen.items() if box is not None},
        }


def _subtract(visible: NDArray[np.bool_], area: tuple[slice, slice], nearer: Drawn) -> None:
    """Clear the pixels that a nearer actor occludes."""
    rows = slice(max(area[0].start, nearer.area[0].start), min(area[0].stop, nearer.area[0].stop))
    columns = slice(max(area[1].start, nearer.area[1].start), min(area[1].stop, nearer.area[1].stop))
    if rows.start < rows.stop and columns.start < columns.stop:
        mine, theirs = (
            (
                slice(rows.start - base[0].start, rows.stop - base[0].start),
                slice(columns.start - base[1].start, columns.stop - base[1].start),
            )
            for base in (area, nearer.area)
        )
        visible[mine] &= ~nearer.body[theirs]


def _box(camera: Camera, yaw: NDArray[np.float64], v: NDArray[np.float64]) -> list[float] | None:
    """Return the box of an outline in a camera's picture, clipped to it, or None if too little is inside."""
    if np.abs(yaw - camera.yaw_rad).max() > camera.hfov_rad:
        return None
    x, y = camera.project(yaw, v)
    left, top, right, bottom = x.min(), y.min(), x.max() + 1.0, y.max() + 1.0
    inside_x = min(right, camera.width_px) - max(left, 0.0)
    inside_y = min(bottom, camera.height_px) - max(top, 0.0)
    if min(inside_x, inside_y) <= 0 or inside_x * inside_y < LEAST_VISIBLE * (right - left) * (bottom - top):
        return None
    return [round(float(value), 2) for value in (max(left, 0.0), max(top, 0.0), inside_x, inside_y)]


@functools.lru_cache(maxsize=2)
def scene(section: SimulatorSection) -> Scene:
    """Return the scene of a section, which is built once per process."""
    return Scene(section)


def ground_truth(  # noqa: PLR0917  a cylinder is six numbers
    section: SimulatorSection,
    frame_index: int,
    width_px: int,
    height_px: int,
    yaw_min_rad: float,
    yaw_max_rad: float,
    v_min: float,
    v_max: float,
) -> Picture:
    """Render the panorama of a perfect stitch of a frame, directly from the scene.

    Args:
        section: The scene's parameters.
        frame_index: Frame of the loop; it may exceed the loop's length.
        width_px: Columns, equal steps of yaw from the left edge ``yaw_min_rad`` to the right edge ``yaw_max_rad``.
        height_px: Rows, equal steps of the pitch's tangent from the top ``v_min`` to the bottom ``v_max``.
        yaw_min_rad: Radians to the right.
        yaw_max_rad: Radians to the right.
        v_min: Tangent of the pitch, growing downwards.
        v_max: Tangent of the pitch, growing downwards.

    Returns:
        (height_px, width_px, 3) uint8, BGR.
    """
    stage = scene(section)
    canvas = stage.still.copy()
    stage.compose(frame_index, canvas)
    view = Cylinder(width_px, height_px, yaw_min_rad, yaw_max_rad, v_min, v_max)
    columns, rows = lookup(view, stage.cylinder)
    return np.asarray(cv2.remap(canvas, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)
