"""Draw a calibration for the operator: each camera's picture, the seams, and how well neighbours fit.

Overlapping pictures are blended half transparent, so that a misalignment shows as a double image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPose
from services.stitcher.inspection.outline import between, matches, outline, seams
from services.stitcher.rendering.panorama import Panorama, source_maps

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

WIDTH_PX: Final = 1600
MARGIN_PX: Final = 20
MAX_VIEW_PX: Final = 900
"""Largest height of the view of the cameras' pictures; a taller one is scaled down."""
THUMBNAIL_PX: Final = 320
LINE_PX: Final = 24
MANY: Final = 6
"""Number of cameras beyond which the picture has no room for all details."""
FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
GROUND: Final = (24, 24, 24)
TEXT: Final = (230, 230, 230)
FAINT: Final = (160, 160, 160)
GOOD, FAIR, POOR = (96, 200, 80), (40, 180, 240), (80, 80, 250)
FAIR_PX, POOR_PX = 1.5, 3.0
COLOURS: Final = ((240, 180, 90), (120, 200, 250), (140, 220, 140), (220, 150, 220), (120, 220, 220), (150, 160, 250))
COLUMNS: Final = (
    ("camera", 0),
    ("yaw", 320),
    ("pitch", 450),
    ("roll", 570),
    ("field of view", 700),
    ("focal length", 870),
    ("k1", 1040),
    ("residual", 1160),
)


def draw(calibration: Calibration, panorama: Panorama, pictures: Mapping[str, Image], *, title: str = "") -> bytes:
    """Draw a calibration.

    Args:
        calibration: The calibration, including the cameras that are not placed.
        panorama: Its panorama.
        pictures: By camera, uint8 BGR of shape ``(height, width, 3)``, including those of cameras that are not placed.
            For a camera without a picture, only the outline is drawn.
        title: A sentence for the first line, such as the coverage.

    Returns:
        A PNG file, 1600 pixels wide.

    Raises:
        CalibrationError: The picture cannot be encoded.
    """
    cameras = calibration.cameras
    colours = {camera.name: COLOURS[index % len(COLOURS)] for index, camera in enumerate(cameras)}
    view, canvas = _view(calibration, panorama, pictures)
    _draw_matches(canvas, view, calibration, colours)
    for camera in cameras:
        _draw_outline(canvas, view, camera, colours[camera.name])
    _draw_shown(canvas, view, panorama)
    for camera in cameras:
        _draw_name(canvas, outline(camera, view), camera.name, colours[camera.name])
    _draw_residuals(canvas, view, calibration)
    parts = [_header(calibration, title), canvas, _table(cameras, colours)]
    parts += [_unplaced(name, calibration.reasons.get(name, ""), pictures.get(name)) for name in calibration.unplaced]
    done, buffer = cv2.imencode(".png", np.concatenate(parts))
    if not done:
        raise CalibrationError("the picture of the calibration cannot be encoded")
    return bytes(buffer.tobytes())


def _view(calibration: Calibration, panorama: Panorama, pictures: Mapping[str, Image]) -> tuple[Panorama, Image]:
    """Render everything that the cameras see as a separate panorama. Return its geometry and the blended pictures."""
    # Include the frame of the panorama, which may show bars beyond the cameras' pictures.
    shown = np.array([[0.0, 0.0], [panorama.width_px, panorama.height_px]])
    ends = np.concatenate([shown, *(outline(camera, panorama) for camera in calibration.cameras)])
    low, high = ends.min(axis=0), ends.max(axis=0)
    room = WIDTH_PX - 2 * MARGIN_PX
    shrink = min(room / (high[0] - low[0]), MAX_VIEW_PX / (high[1] - low[1]))
    scale_px = panorama.scale_px * shrink
    width, height = WIDTH_PX, math.ceil((high[1] - low[1]) * shrink) + 2 * MARGIN_PX
    beside = (width - (high[0] - low[0]) * shrink) / 2
    view = replace(
        panorama,
        width_px=width,
        height_px=height,
        scale_px=scale_px,
        yaw_min_rad=panorama.yaw_min_rad + low[0] / panorama.scale_px - beside / scale_px,
        v_min=panorama.v_min + low[1] / panorama.scale_px - MARGIN_PX / scale_px,
    )
    total, count = np.zeros((height, width, 3), np.float32), np.zeros((height, width, 1), np.float32)
    for camera in calibration.cameras:
        x, y = source_maps(view, camera, 0, width)
        inside = (x >= 0) & (x <= camera.width_px - 1) & (y >= 0) & (y <= camera.height_px - 1)
        if (picture := pictures.get(camera.name)) is not None:
            if picture.shape[:2] != (camera.height_px, camera.width_px):
                size = camera.width_px, camera.height_px
                picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
            # Smooth pictures that are scaled down, to avoid aliasing.
            blur = camera.focal_px / scale_px / 3
            smooth = cv2.GaussianBlur(picture, (0, 0), blur) if blur > 0.5 else picture
            total += cv2.remap(smooth, x, y, cv2.INTER_LINEAR) * inside[..., None]
            count += inside[..., None]
    mean = np.where(count > 0, total / np.maximum(count, 1), np.float32(GROUND[0]))
    (left, top), (right, bottom) = (_place(view, panorama, x, y) for x, y in ((0, 0), shown[1]))
    # What the panorama leaves out is darker.
    dim = np.full((height, width, 1), 0.45, np.float32)
    dim[max(round(top), 0) : round(bottom), max(round(left), 0) : round(right)] = 1.0
    return view, np.ascontiguousarray(np.clip(np.where(count > 0, mean * dim, mean), 0, 255).astype(np.uint8))


def _place(view: Panorama, panorama: Panorama, x: float, y: float) -> tuple[float, float]:
    """Return the position of a panorama's point in the view."""
    yaw = panorama.yaw_min_rad + x / panorama.scale_px
    v = panorama.v_min + y / panorama.scale_px
    return (yaw - view.yaw_min_rad) * view.scale_px, (v - view.v_min) * view.scale_px


def _draw_outline(canvas: Image, view: Panorama, camera: CameraPose, colour: Colour) -> None:
    points = np.rint(outline(camera, view, 40)).astype(np.int32)
    cv2.polylines(canvas, [points], isClosed=True, color=colour, thickness=2, lineType=cv2.LINE_AA)


def _draw_shown(canvas: Image, view: Panorama, panorama: Panorama) -> None:
    """Draw the panorama's frame, and its seams as dashed lines."""
    left, top = (round(value) for value in _place(view, panorama, 0, 0))
    right, bottom = (round(value) for value in _place(view, panorama, panorama.width_px, panorama.height_px))
    cv2.rectangle(canvas, (left, top), (right, bottom), (255, 255, 255), 2)
    for seam in seams(panorama):
        x = round(_place(view, panorama, seam, 0)[0])
        for y in range(top, bottom, 12):
            cv2.line(canvas, (x, y), (x, min(y + 6, bottom)), (255, 255, 255), 1)


def _draw_name(canvas: Image, points: Array, name: str, colour: Colour) -> None:
    x = float(points[:, 0].min() + points[:, 0].max()) / 2
    # The upper edge of a picture, which may be curved or rolled.
    y = float(np.sort(points[:, 1])[: len(points) // 4].mean())
    _label(canvas, (x, max(y, 0) + 24), [name], colour, 0.7)


def _draw_residuals(canvas: Image, view: Panorama, calibration: Calibration) -> None:
    """Draw the residuals, in two rows because narrow overlaps are close together; with many cameras, at the bottom."""
    outlines = {camera.name: outline(camera, view) for camera in calibration.cameras}
    turn_px = 2 * math.pi * view.scale_px
    found = [
        (*between(outlines[pair.cameras[0]], outlines[pair.cameras[1]], turn_px), pair)
        for pair in calibration.pairs
        if all(name in outlines for name in pair.cameras)
    ]
    many = len(outlines) > MANY
    for index, (x, middle, bottom, pair) in enumerate(sorted(found, key=lambda entry: entry[0])):
        lines = [f"{pair.rms_px:.1f} px"] if many else [f"{pair.rms_px:.1f} px", f"{pair.matches} matches"]
        y = bottom + (index % 2) * 20 if many else middle + (index % 2 - 0.5) * 64
        _label(canvas, (x, y), lines, _judge(pair.rms_px), 0.5)


def _draw_matches(canvas: Image, view: Panorama, calibration: Calibration, colours: Mapping[str, Colour]) -> None:
    """Draw each match as two dots in the cameras' colours, and a line between them."""
    for names, ends in matches(calibration, view):
        one, other = ((round(x), round(y)) for x, y in ends.tolist())
        cv2.line(canvas, one, other, (255, 255, 255), 1, cv2.LINE_AA)
        for place, name, radius in zip((one, other), names, (4, 2), strict=True):
            cv2.circle(canvas, place, radius, colours[name], -1, cv2.LINE_AA)


def _header(calibration: Calibration, title: str) -> Image:
    count = len(calibration.cameras)
    lines = [f"{count} cameras placed" + (f", {len(calibration.unplaced)} not" if calibration.unplaced else "")]
    lines += wrap(title, 130)
    panel = _panel(LINE_PX * len(lines) + 16)
    for index, line in enumerate(lines):
        _write(panel, (MARGIN_PX, LINE_PX * (index + 1)), line, TEXT if index == 0 else FAINT, 0.65)
    return panel


def _table(cameras: Sequence[CameraPose], colours: Mapping[str, Colour]) -> Image:
    panel = _panel(LINE_PX * (len(cameras) + 1) + 24)
    for title, x in COLUMNS:
        _write(panel, (MARGIN_PX + x, LINE_PX), title, FAINT, 0.5)
    for row, camera in enumerate(cameras, start=2):
        angles_deg = np.degrees([camera.yaw_rad, camera.pitch_rad, camera.roll_rad])
        cells = (
            camera.name,
            *(f"{round(angle, 2) + 0.0:.2f} deg" for angle in angles_deg.tolist()),  # + 0.0 avoids -0.00
            f"{_field_of_view_deg(camera):.1f} deg",
            f"{camera.focal_px:.1f} px",
            f"{camera.k1:.3f}",
            "not measured" if camera.rms_px is None else f"{camera.rms_px:.2f} px",
        )
        for (title, x), cell in zip(COLUMNS, cells, strict=True):
            colour = TEXT
            if title == "camera":
                colour = colours[camera.name]
            elif title == "residual" and camera.rms_px is not None:
                colour = _judge(camera.rms_px)
            _write(panel, (MARGIN_PX + x, LINE_PX * row), cell, colour, 0.5)
    return panel


def _unplaced(name: str, reason: str, picture: Image | None) -> Image:
    height = 180
    if picture is not None:
        height = min(max(round(THUMBNAIL_PX * picture.shape[0] / picture.shape[1]), 60), 400)
    lines = wrap(reason or "no reason is known", 110)
    panel = _panel(max(height, LINE_PX * (len(lines) + 1)) + MARGIN_PX)
    if picture is None:
        cv2.rectangle(panel, (MARGIN_PX, 0), (MARGIN_PX + THUMBNAIL_PX, height), FAINT, 1)
        _write(panel, (MARGIN_PX + 110, height // 2), "no picture", FAINT, 0.5)
    else:
        thumbnail = cv2.resize(picture, (THUMBNAIL_PX, height), interpolation=cv2.INTER_AREA)
        panel[:height, MARGIN_PX : MARGIN_PX + THUMBNAIL_PX] = thumbnail
    x = MARGIN_PX * 2 + THUMBNAIL_PX
    _write(panel, (x, LINE_PX), f"{name} is not placed", POOR, 0.65)
    for index, line in enumerate(lines, start=2):
        _write(panel, (x, LINE_PX * index), line, TEXT, 0.55)
    return panel


def _field_of_view_deg(camera: CameraPose) -> float:
    """Return the angle from the left edge to the right edge, through the picture's middle."""
    middle = (camera.height_px - 1) / 2
    left, right = camera.directions(np.array([[-0.5, middle], [camera.width_px - 0.5, middle]]))
    return math.degrees(math.acos(max(-1.0, min(1.0, float(left @ right)))))


def _judge(rms_px: float) -> Colour:
    return GOOD if rms_px < FAIR_PX else FAIR if rms_px < POOR_PX else POOR


def _panel(height: int) -> Image:
    return np.full((height, WIDTH_PX, 3), GROUND[0], np.uint8)


def _label(canvas: Image, place: tuple[float, float], lines: Sequence[str], colour: Colour, scale: float) -> None:
    """Draw lines of text around a position, on a dark background, shifted to fit the canvas."""
    sizes = [cv2.getTextSize(_ascii(line), FONT, scale, 1)[0] for line in lines]
    width, step = max(size[0] for size in sizes) + 8, max(size[1] for size in sizes) + 8
    height = step * len(lines) + 4
    left = round(min(max(place[0] - width / 2, 0), canvas.shape[1] - width))
    top = round(min(max(place[1] - height / 2, 0), canvas.shape[0] - height))
    ground = canvas[top : top + height, left : left + width]
    ground[:] = ground // 5
    for index, line in enumerate(lines, start=1):
        _write(canvas, (left + 4, top + step * index - 3), line, colour, scale)


def _write(panel: Image, place: tuple[int, int], text: str, colour: Colour, scale: float) -> None:
    cv2.putText(panel, _ascii(text), place, FONT, scale, colour, 1, cv2.LINE_AA)


def _ascii(text: str) -> str:
    """Replace the characters that OpenCV's fonts lack."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)
