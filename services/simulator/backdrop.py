"""Paint the wide still picture behind the moving actors.

The film's empty scene is repeated side by side, with every other piece mirrored to make the joins fit. A piece and its
next unmirrored copy are 111 degrees apart, and two neighbouring cameras see 86 degrees, so they never see the same
thing twice. Leaves, information boards, flower beds and a slow change of light give each region unique features.

All lengths here are reference pixels: 2060 to the radian, whatever the cameras' resolution.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from services.simulator.footage import Picture

REFERENCE_PX_PER_RAD = 2060.0
YAW_LIMIT_RAD = math.radians(100.0)
"""The backdrop spans this far to both sides."""
WIDTH = round(2 * YAW_LIMIT_RAD * REFERENCE_PX_PER_RAD)
HEIGHT = 1104
MAGNIFICATION = 2.6
"""Reference pixels of one pixel of the film."""
TOP_ROW = 28
"""The film's row at the backdrop's top."""
JOIN_YAW_RAD = math.radians(28.0)
"""Position of a join, chosen to avoid joins in the overlap of two cameras."""

BOARD_YAWS_DEG = (-95, -86, -66, -58, -50, -43, -21, -14, -4, 9, 14, 18, 37, 48, 53, 60, 79, 90)
BED_YAWS_DEG = (-91, -76, -57, -49, -34, -22, -13, 2, 12, 20, 38, 50, 58, 69, 84, 96)


def paint(place: Picture, seed: int) -> tuple[Picture, NDArray[np.float32]]:
    """Paint the backdrop.

    Args:
        place: The empty scene of the film, (576, 768, 3) BGR.
        seed: Seed of everything that is drawn.

    Returns:
        The picture, (HEIGHT, WIDTH, 3) BGR, and a mask (HEIGHT, WIDTH), 1 where an object occludes the walkers.
    """
    # The order of the calls is part of the picture: each one takes random numbers from the same sequence.
    random = np.random.default_rng(seed)
    columns, mirrored = _film_columns()
    picture = _lay(place, columns)
    _roughen(picture, random)
    _scatter_leaves(picture, random)
    for yaw in BED_YAWS_DEG:
        _plant(picture, random, column_of(yaw) + int(random.integers(-40, 40)), int(random.integers(870, 1040)))
    foreground = _lay(_foreground_mask(place.shape[:2]), columns).astype(np.float32) / 255.0
    for number, yaw in enumerate(BOARD_YAWS_DEG):
        standing = number % 3 == 1
        _put_board(
            picture,
            random,
            column_of(yaw),
            int(random.integers(905, 940) if standing else random.integers(60, 250)),
            number,
            standing=standing,
        )
    _write_signs(picture, columns, mirrored)
    return _grade(picture), foreground


def parked_vehicles() -> list[tuple[int, int, int, int]]:
    """Return the boxes (left, top, right, bottom) of the film's parked vehicles."""
    columns, _ = _film_columns()
    boxes = []
    for left, top, right, bottom in ((652.0, 45.0, 723.0, 100.0), (735.0, 49.0, 768.0, 93.0)):
        inside = np.flatnonzero((columns >= left) & (columns <= right))
        # One run of columns for each repetition of the film.
        for run in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1):
            rows = (round((row - TOP_ROW) * MAGNIFICATION) for row in (top, bottom))
            boxes.append((int(run[0]), next(rows), int(run[-1]) + 1, next(rows)))
    return boxes


def column_of(yaw_deg: float) -> int:
    """Return the column of a yaw, in reference pixels."""
    return round((math.radians(yaw_deg) + YAW_LIMIT_RAD) * REFERENCE_PX_PER_RAD)


def _film_columns() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the film's column for each of the backdrop's columns, and whether it is in a mirrored piece."""
    yaw = (np.arange(WIDTH) + 0.5) / REFERENCE_PX_PER_RAD - YAW_LIMIT_RAD
    piece = (yaw - JOIN_YAW_RAD) * REFERENCE_PX_PER_RAD / (768 * MAGNIFICATION)
    mirrored = np.floor(piece) % 2 == 0
    within = np.where(mirrored, 1 - piece % 1, piece % 1)
    # Leave out the outermost columns of the film.
    return (2 + within * 763).astype(np.float32), mirrored


def _lay(source: Picture, columns: NDArray[np.float32]) -> Picture:
    rows = np.linspace(TOP_ROW, TOP_ROW + HEIGHT / MAGNIFICATION, HEIGHT, endpoint=False, dtype=np.float32)
    map_x, map_y = np.broadcast_to(columns, (HEIGHT, WIDTH)), np.broadcast_to(rows[:, None], (HEIGHT, WIDTH))
    laid = cv2.remap(
        source, np.ascontiguousarray(map_x), np.ascontiguousarray(map_y), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(laid, np.uint8)


def _foreground_mask(shape: tuple[int, ...]) -> Picture:
    """Return the mask of the lamp post with its sign and of the tripod, which are in front of all lanes."""
    mask = np.zeros((shape[0], shape[1]), np.uint8)
    cv2.fillPoly(mask, [np.array([(425, 90), (428, 90), (438, 392), (428, 392)])], 255)
    cv2.rectangle(mask, (413, 203), (445, 243), 255, cv2.FILLED)
    return mask


def _roughen(picture: Picture, random: np.random.Generator) -> None:
    """Add unique stains and unevenness, a few grey levels strong."""
    relief = np.zeros((HEIGHT, WIDTH), np.float32)
    for cell, strength in ((9, 3.5), (22, 4.0), (60, 4.0)):
        coarse = random.standard_normal((HEIGHT // cell + 3, WIDTH // cell + 3)).astype(np.float32)
        relief += strength * cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    ground = np.clip((np.arange(HEIGHT, dtype=np.float32) - 60) / 200, 0.25, 1.0)[:, None]
    picture[:] = np.clip(picture + (relief * ground)[..., None], 0, 255).astype(np.uint8)


def _scatter_leaves(picture: Picture, random: np.random.Generator) -> None:
    colours = np.array([(40, 95, 160), (35, 130, 190), (50, 70, 120), (70, 165, 200), (45, 110, 110), (60, 60, 150)])
    for _ in range(2600):
        # Larger where the ground is nearer.
        row = 235 + (HEIGHT - 240) * random.random() ** 0.8
        size = (4 + 7 * (row - 235) / (HEIGHT - 235)) * random.uniform(0.7, 1.3)
        centre = (float(random.uniform(0, WIDTH)), float(row))
        colour = colours[random.integers(len(colours))] * random.uniform(0.8, 1.25)
        box = (centre, (size * 2, size * random.uniform(0.6, 1.1)), float(random.uniform(0, 180)))
        cv2.ellipse(picture, box, [float(c) for c in np.clip(colour, 0, 255)], cv2.FILLED, cv2.LINE_AA)


def _plant(picture: Picture, random: np.random.Generator, x: int, y: int) -> None:
    """Draw a flower bed around (x, y)."""
    colour = np.array([(60, 60, 215), (60, 190, 235), (215, 120, 190), (235, 235, 240), (200, 90, 80)])[
        random.integers(5)
    ]
    across, down = int(random.integers(90, 150)), int(random.integers(24, 42))
    cv2.ellipse(picture, (x, y), (across, down), 0, 0, 360, (38, 52, 66), cv2.FILLED, cv2.LINE_AA)
    for _ in range(110):
        # The root spreads the flowers evenly over the area of the ellipse.
        angle, radius = random.uniform(0, 2 * math.pi), math.sqrt(random.random())
        centre = (int(x + 0.93 * across * radius * math.cos(angle)), int(y + 0.9 * down * radius * math.sin(angle)))
        green = random.random() < 0.45
        shade = (np.array((60, 120, 50)) if green else colour) * random.uniform(0.75, 1.1)
        size = int(random.integers(4, 9))
        cv2.circle(picture, centre, size, [float(c) for c in np.clip(shade, 0, 255)], cv2.FILLED, cv2.LINE_AA)


def _put_board(picture: Picture, random: np.random.Generator, x: int, y: int, number: int, *, standing: bool) -> None:
    """Draw a board with its top at row ``y``: on two posts in the grass, or on the wall or lawn behind."""
    # Draw at three times the size and scale down, for smooth edges and legible text.
    fine = 3
    width, height = (int(random.integers(120, 165)), int(random.integers(85, 115)))
    sheet = np.empty((height * fine, width * fine, 3), np.uint8)
    sheet[:] = random.integers(90, 225, 3)
    for _ in range(9):
        shape = int(random.integers(3))
        colour = [int(c) for c in random.integers(30, 245, 3)]
        ax, bx = (int(v) for v in random.integers(0, width * fine, 2))
        ay, by = (int(v) for v in random.integers(0, height * fine, 2))
        if shape == 0:
            cv2.rectangle(sheet, (ax, ay), (bx, by), colour, cv2.FILLED)
        elif shape == 1:
            cv2.circle(sheet, (ax, ay), int(random.integers(20, 90)), colour, cv2.FILLED, cv2.LINE_AA)
        else:
            corners = np.column_stack([random.integers(0, width * fine, 3), random.integers(0, height * fine, 3)])
            cv2.fillPoly(sheet, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    words = ("LIBRARY", "ATLAS", "MUSIC", "FORUM", "GEOLOGY", "PHYSICS", "GARDEN", "THEATRE", "SPORTS")
    cv2.rectangle(sheet, (0, 0), (width * fine, 30 * fine), [int(c) for c in random.integers(60, 110, 3)], cv2.FILLED)
    text = f"{words[number % len(words)]} {number + 1}"
    size = 0.9 * width * fine / cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 1.0, 4)[0][0]
    cv2.putText(
        sheet, text, (6 * fine, 23 * fine), cv2.FONT_HERSHEY_DUPLEX, size, (240, 240, 240), 2 * fine, cv2.LINE_AA
    )
    cv2.rectangle(sheet, (0, 0), (width * fine - 1, height * fine - 1), (70, 66, 60), 5 * fine)
    small = cv2.resize(sheet, (width, height), interpolation=cv2.INTER_AREA)
    left = min(max(0, x - width // 2), WIDTH - width)
    if standing:
        for post in (left + 14, left + width - 20):
            cv2.rectangle(picture, (post, y), (post + 6, y + height + 55), (96, 90, 84), cv2.FILLED)
    # As soft as the enlarged film around it.
    picture[y : y + height, left : left + width] = cv2.GaussianBlur(small, (0, 0), 0.8)


def _write_signs(picture: Picture, columns: NDArray[np.float32], mirrored: NDArray[np.bool_]) -> None:
    """Write a separate text on each lamp post's sign, because the film's text would be mirrored on every other post."""
    left, right, top, bottom = 413.5, 445.0, 203.0, 243.5
    inside = np.flatnonzero((columns > left) & (columns < right))
    for number, run in enumerate(np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)):
        rows = slice(round((top - TOP_ROW) * MAGNIFICATION), round((bottom - TOP_ROW) * MAGNIFICATION))
        sign = np.full((rows.stop - rows.start, run.size, 3), (128, 142, 40), np.uint8)
        cv2.rectangle(sign, (0, 0), (run.size - 1, sign.shape[0] - 1), (225, 228, 220), 4)
        for line, text in enumerate(("AREA", "ABCDEFG"[number], "NORTH" if mirrored[run[0]] else "SOUTH")):
            (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 0.62, 1)
            start = ((run.size - wide) // 2, 32 + 30 * line)
            cv2.putText(sign, text, start, cv2.FONT_HERSHEY_DUPLEX, 0.62, (235, 240, 235), 1, cv2.LINE_AA)
        picture[rows, run[0] : run[-1] + 1] = cv2.GaussianBlur(sign, (0, 0), 0.8)


def _grade(picture: Picture) -> Picture:
    """Sharpen, brighten the shadows, and vary the light slowly from left to right.

    Colour is smoothed, because the clips have chroma at half the resolution.
    """
    soft = cv2.GaussianBlur(picture, (0, 0), 2.2)
    sharp = cv2.addWeighted(picture, 1.5, soft, -0.5, 0)
    # Waves of different lengths, so that the mixture of warmth and light is another one everywhere.
    yaw = np.linspace(-1.0, 1.0, WIDTH, dtype=np.float32)
    warmth = 0.07 * np.sin(2.1 * yaw + 0.4)
    light = 1.0 + 0.08 * np.cos(3.7 * yaw)
    gains = np.stack([light * (1 - warmth), light, light * (1 + warmth)], axis=1)
    graded = np.clip(26.0 + sharp * (gains * 0.87)[None], 0, 255).astype(np.uint8)
    luminance, red, blue = cv2.split(cv2.cvtColor(graded, cv2.COLOR_BGR2YCrCb))
    smooth = cv2.merge([luminance, cv2.GaussianBlur(red, (0, 0), 1.6), cv2.GaussianBlur(blue, (0, 0), 1.6)])
    return np.asarray(cv2.cvtColor(smooth, cv2.COLOR_YCrCb2BGR), np.uint8)
