"""Prepare a tile for the network: size, order of axes and colours, and range of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from services.detector.boxes import Floats
from services.detector.tiles import Pixels

PADDING = 114
"""Grey of the border around a tile of another aspect ratio, as in YOLO's training."""
Tensor = npt.NDArray[Any]
Fit = Literal["stretch", "corner", "centre"]
"""How a tile of another aspect ratio fills the input: stretched, or padded with the picture in the top left corner or
in the middle."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Placement of a tile in the network's input: input = tile x scale + offset."""

    scale_x: float
    scale_y: float
    left_px: int
    top_px: int

    def in_tile(self, xyxy: Floats) -> Floats:
        """Convert boxes ``(n, 4)`` from pixels of the input to pixels of the tile."""
        offset = np.array([self.left_px, self.top_px] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        moved: Floats = (xyxy - offset) / scale
        return moved


@dataclass(frozen=True, slots=True)
class Preparation:
    """Preparation of a network's input. Values of uint8 inputs are unchanged."""

    height_px: int
    width_px: int
    channels_first: bool
    dtype: str
    """``uint8``, ``float16`` or ``float32``."""
    colour: Literal["bgr", "rgb"] = "rgb"
    scale: float = 1.0
    """Factor of the pixels' 0 to 255, before mean and standard deviation."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtrahend of each channel, in the order of ``colour``."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divisor of each channel, applied after the mean."""
    fit: Fit = "stretch"

    def tensor(self, batch: int) -> Tensor:
        """Return an input for ``batch`` tiles, to be filled."""
        shape = (3, self.height_px, self.width_px) if self.channels_first else (self.height_px, self.width_px, 3)
        return np.zeros((batch, *shape), self.dtype)

    def fill(self, tile: Pixels, out: Tensor) -> Placement:
        """Write a tile into one picture of the input.

        Args:
            tile: uint8 BGR of shape ``(height, width, 3)``, of any size and row stride; read only.
            out: One picture of :meth:`tensor`.

        Returns:
            Placement of the tile.
        """
        placement, width_px, height_px = self._place(*tile.shape[:2])
        plain = self.dtype == "uint8" and not self.channels_first
        whole = (height_px, width_px) == (self.height_px, self.width_px)
        # Bilinear, as in the networks' training. An area average costs ten times as much and finds no more objects.
        # The default model takes this path: the resize writes into the input, without a copy.
        if plain and whole and self.colour == "bgr":
            cv2.resize(tile, (width_px, height_px), dst=out, interpolation=cv2.INTER_LINEAR)
            return placement
        small = cv2.resize(tile, (width_px, height_px), interpolation=cv2.INTER_LINEAR)
        if not whole:
            top, left = placement.top_px, placement.left_px
            canvas = np.full((self.height_px, self.width_px, 3), PADDING, np.uint8)
            canvas[top : top + height_px, left : left + width_px] = small
            small = canvas
        if plain:
            cv2.cvtColor(small, cv2.COLOR_BGR2RGB, dst=out) if self.colour == "rgb" else np.copyto(out, small)
            return placement
        channels = cv2.split(small)
        for index, channel in enumerate(channels if self.colour == "bgr" else channels[::-1]):
            target = out[index] if self.channels_first else out[..., index]
            if self.dtype == "uint8":
                target[...] = channel
                continue
            # (value * scale - mean) / std, as one multiplication and one subtraction.
            factor = np.float32(self.scale / self.std[index])
            shift = np.float32(self.mean[index] / self.std[index])
            np.subtract(channel * factor, shift, out=target, casting="same_kind")
        return placement

    def _place(self, tile_height_px: int, tile_width_px: int) -> tuple[Placement, int, int]:
        """Return the placement of a tile, and the width and height to resize it to."""
        if self.fit == "stretch":
            scale_x, scale_y = self.width_px / tile_width_px, self.height_px / tile_height_px
            return Placement(scale_x, scale_y, 0, 0), self.width_px, self.height_px
        scale = min(self.width_px / tile_width_px, self.height_px / tile_height_px)
        width_px = min(self.width_px, max(1, round(tile_width_px * scale)))
        height_px = min(self.height_px, max(1, round(tile_height_px * scale)))
        left = (self.width_px - width_px) // 2 if self.fit == "centre" else 0
        top = (self.height_px - height_px) // 2 if self.fit == "centre" else 0
        return Placement(scale, scale, left, top), width_px, height_px
