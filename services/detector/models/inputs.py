"""A network's inputs: an image of some size and type and, for RT-DETR, its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.detector.models.bundle import Manifest
from services.detector.models.errors import ModelError
from services.detector.models.formats.detr import SIZES

DEFAULT_INPUT_PX = 640
"""Default side of the input of a network that takes any size."""
LARGEST_INPUT_PX = 4096
TYPES = {"tensor(uint8)": "uint8", "tensor(float16)": "float16", "tensor(float)": "float32"}
SIZE_TYPES = {"tensor(int64)": "int64", "tensor(int32)": "int32"}


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A network's image input."""

    name: str
    dtype: str
    height_px: int
    width_px: int
    channels_first: bool
    batch: int | None
    """Batch size; None if dynamic."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor, for the smallest batch."""
        sides = (self.height_px, self.width_px)
        return (self.batch or 1, 3, *sides) if self.channels_first else (self.batch or 1, *sides, 3)


def read_inputs(
    path: Path,
    session: Any,
    manifest: Manifest | None,
    metadata: Mapping[str, str],
    usual_px: int = DEFAULT_INPUT_PX,
) -> tuple[ImageInput, dict[str, str]]:
    """Return a network's image input, and the type of each other input.

    Args:
        path: The file, for messages.
        session: The ``onnxruntime.InferenceSession``.
        manifest: Manifest of the bundle, which may define the size of a dynamic input.
        metadata: Metadata of the file, in which Ultralytics' exporter stores the size.
        usual_px: Default side of a dynamic input.

    Raises:
        ModelError: The inputs are not an image and, optionally, RT-DETR's sizes.
    """
    inputs = {value.name: (value.type, list(value.shape)) for value in session.get_inputs()}
    told = ", ".join(f"{name} {kind} {shape}" for name, (kind, shape) in inputs.items())
    images = [name for name, (_, shape) in inputs.items() if len(shape) == 4 and (shape[1] == 3 or shape[3] == 3)]
    others = {name: kind for name, (kind, _) in inputs.items() if name not in images}
    if len(images) != 1 or set(others) - {SIZES}:
        raise ModelError(
            f"the model {path} takes {told}; one image of three channels is needed, (N, 3, height, width) or "
            f"(N, height, width, 3), and beside it at most RT-DETR's {SIZES}"
        )
    kind, shape = inputs[images[0]]
    if kind not in TYPES:
        raise ModelError(f"the model {path} takes {told}; an image of {', '.join(TYPES)} is needed")
    first = shape[1] == 3
    wanted = (None, None) if manifest is None else (manifest.input.height_px, manifest.input.width_px)
    sides = _sides(path, shape[2:4] if first else shape[1:3], wanted, metadata, usual_px)
    # Some exports declare a dynamic batch but return the boxes of a single picture.
    single = any(output.shape and output.shape[0] == 1 for output in session.get_outputs())
    batch = shape[0] if isinstance(shape[0], int) else 1 if single else None
    types = {name: SIZE_TYPES.get(other, "float32") for name, other in others.items()}
    return ImageInput(images[0], TYPES[kind], *sides, first, batch), types


def _sides(
    path: Path,
    declared: Sequence[object],
    wanted: tuple[int | None, int | None],
    metadata: Mapping[str, str],
    usual_px: int,
) -> tuple[int, int]:
    """Return height and width of the input: those of the file or, if dynamic, of bundle, exporter or default."""
    told = metadata.get("imgsz", "").strip("[]() ").split(",")
    sides = []
    for axis, side in enumerate(declared):
        asked = wanted[axis]
        if isinstance(side, int) and asked not in (None, side):
            raise ModelError(f"the model {path} takes {list(declared)} pixels, and its bundle says {list(wanted)}")
        # Ultralytics writes "[640, 640]"; a single number is the side of a square.
        exported = told[axis if len(told) > axis else 0].strip()
        usual = min(int(exported), LARGEST_INPUT_PX) if exported.isdecimal() else usual_px
        sides.append(side if isinstance(side, int) else asked or usual)
    return sides[0], sides[1]
