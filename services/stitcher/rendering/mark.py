"""Placeholder for a camera that is gone: grey stripes and its name."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from services.stitcher.rendering.convert import Image

GREY, STRIPE, TEXT = 48, 64, 200
STRIPE_PX = 48


def hatch(height_px: int, start: int, end: int) -> Image:
    """Return grey stripes for columns ``start`` up to ``end``, exclusive. They continue seamlessly across regions."""
    diagonal = np.arange(start, end)[None, :] + np.arange(height_px)[:, None]
    grey = np.where(diagonal // STRIPE_PX % 2, STRIPE, GREY).astype(np.uint8)
    return np.ascontiguousarray(grey[:, :, None].repeat(3, axis=2))


def write(mark: Image, lines: Sequence[str]) -> None:
    """Write lines across the middle of a placeholder, in a font size that fits."""
    height_px, width_px = mark.shape[:2]
    for index, line in enumerate(lines):
        # The width at scale 1 says how much of the placeholder the text would take.
        (natural_px, _), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 2)
        scale = min(2.0, height_px / 200, 0.8 * width_px / max(natural_px, 1))
        (text_px, text_height_px), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
        place = ((width_px - text_px) // 2, height_px // 2 + round((index - 0.5) * 2 * text_height_px))
        cv2.putText(mark, line, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (TEXT,) * 3, 2, cv2.LINE_AA)
