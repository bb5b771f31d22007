"""The forms of a run: the short one takes less than five minutes; the full one has more rounds and larger images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20
BASE: Final = "python:3.11-slim-bookworm"
"""The base of all images that are built."""


@dataclass(frozen=True)
class Form:
    """Rounds and sizes of a run."""

    name: str = "short"
    rounds: int = 5
    files: int = 200
    copy_up_bytes: tuple[int, ...] = (4096, MIB, 16 * MIB, 256 * MIB)
    engine_rounds: int = 1
    depths: tuple[int, ...] = ()
    """Numbers of layers of the images that are tried."""
    image: str = BASE
    """The image that the second engines load from the machine's."""
    models: int = 2
    services: int = 2
    bundle_bytes: int = 32 * MIB
    hand_over_rounds: int = 3
    hand_over_frames: int = 12
    idle_s: float = 5.0
    may_drop_caches: bool = True


SHORT: Final = Form(rounds=3)
FULL: Final = Form(
    "full", rounds=9, files=500, engine_rounds=3, depths=(126, 127, 128), image="framebus/stitcher",
    models=3, services=3, bundle_bytes=32 * MIB, hand_over_rounds=7, hand_over_frames=60, idle_s=30.0,
)  # fmt: skip
FORMS: Final = {form.name: form for form in (SHORT, FULL)}
