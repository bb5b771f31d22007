"""Base class of the formats: recognises a network, prepares tiles, and decodes outputs into boxes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from services.detector.boxes import Floats
from services.detector.models.choose import Candidates, Chooser
from services.detector.models.classes import Names
from services.detector.models.prepare import Placement, Preparation, Tensor
from services.detector.tiles import Pixels

Array = npt.NDArray[Any]
MOST_QUERIES = 1000
"""Largest number of rows of a list of detections; grids of anchors have more."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A network's interface. All shapes are known, because the network has run once on a grey picture."""

    height_px: int
    width_px: int
    channels_first: bool
    dtype: str
    """Type of the image: ``uint8``, ``float16`` or ``float32``."""
    inputs: tuple[str, ...]
    """Names of the inputs beside the image."""
    outputs: Mapping[str, Array]
    """Outputs of the first run, by name, in order."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    names: Names | None = None
    """Names of the classes, if the file or the operator gives them."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each output."""
        return tuple(output.shape for output in self.outputs.values())

    def cells(self, strides: Sequence[int]) -> int:
        """Return the number of cells of grids with these strides over the input."""
        return sum(math.ceil(self.height_px / stride) * math.ceil(self.width_px / stride) for stride in strides)

    def preparation(self, **wanted: Any) -> Preparation:
        """Return the preparation for the input; the arguments supply what its shape and type do not define."""
        return Preparation(self.height_px, self.width_px, self.channels_first, self.dtype, **wanted)


class Format(ABC):
    """One way to arrange a network's input and outputs. Each instance serves one network."""

    name: ClassVar[str]
    """Name of the format in a bundle's ``format`` and in ``detector.format``."""
    known: ClassVar[str]
    """Its outputs, for the message about a network that no format recognises."""

    def __init__(self, preparation: Preparation, classes: int | None) -> None:
        """Initialise the fields that all formats share.

        Args:
            preparation: Preparation of the input.
            classes: Number of classes with a score in the outputs; None if the outputs contain class numbers.
        """
        self.preparation = preparation
        self.classes = classes

    @classmethod
    @abstractmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Return the format for this network, or None if the network is not of this format."""

    @abstractmethod
    def decode(self, outputs: Sequence[Array], chooser: Chooser) -> Candidates:
        """Return the wanted boxes of one tile.

        Args:
            outputs: All outputs for this tile, without the axis of the batch.
            chooser: Selects the wanted rows.
        """

    def prepare(self, tile: Pixels, out: Tensor) -> Placement:
        """Write a tile into one picture of the input. Return its placement."""
        return self.preparation.fill(tile, out)


@dataclass(frozen=True, slots=True)
class Grid:
    """Centre and stride of each cell of several grids over the input, row by row."""

    centres: Floats
    """x and y in pixels: ``(cells, 2)``."""
    strides: Floats
    """Stride of each cell, in pixels: ``(cells,)``."""

    @classmethod
    def over(cls, height_px: int, width_px: int, strides: Sequence[int], offset: float) -> Grid:
        """Create the grids; a cell's centre is ``(index + offset) * stride``."""
        centres, sizes = [], []
        for stride in strides:
            rows, columns = np.mgrid[: math.ceil(height_px / stride), : math.ceil(width_px / stride)]
            centres.append((np.stack([columns.ravel(), rows.ravel()], axis=1) + offset) * stride)
            sizes.append(np.full(rows.size, stride))
        return cls(np.concatenate(centres).astype(np.float32), np.concatenate(sizes).astype(np.float32))


def around(centres: Array, sizes: Array) -> Floats:
    """Return boxes ``(n, 4)`` from centres and sizes, both ``(n, 2)``."""
    # A network may give any number. What is not finite is dropped later, by usable().
    with np.errstate(invalid="ignore", over="ignore"):
        middle, half = np.asarray(centres, np.float32), np.asarray(sizes, np.float32) / 2
        return np.concatenate([middle - half, middle + half], axis=1)


def sigmoid(values: Array) -> Floats:
    """Return the logistic function of the values, without overflow."""
    # By tanh(), because exp() overflows for large negative values.
    result: Floats = 0.5 * (1 + np.tanh(0.5 * np.asarray(values, np.float32)))
    return result
