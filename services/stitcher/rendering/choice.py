"""Choose the renderer."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

from services.stitcher.rendering.renderer import OpenCvRenderer, Renderer

Wanted = Literal["auto", "opencv"]
Kind = Literal["compiled", "opencv"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A kind of renderer, and why it was chosen."""

    kind: Kind
    reason: str | None = None
    """Why the compiled renderer cannot be used, if it was requested."""


def choose(wanted: Wanted) -> Choice:
    """Choose a renderer. ``auto`` takes the compiled one if it was built and is faster on this processor."""
    if wanted == "opencv":
        return Choice("opencv")
    try:
        # Imported here, because it may not have been built.
        from services.stitcher.rendering.compiled import IS_FAST  # noqa: PLC0415
    except ImportError as error:
        return Choice("opencv", f"the compiled renderer was not built or cannot be loaded: {error}")
    if not IS_FAST:
        return Choice("opencv", "this processor has no AVX2, without which the compiled renderer is slower")
    return Choice("compiled")


def make_renderer(kind: Kind, pool: Executor | None, parts: int) -> Renderer:
    """Return a renderer.

    Args:
        kind: Kind of the renderer.
        pool: Renders in the pool's threads. If it is None, the calling thread renders alone.
        parts: Number of horizontal slices into which each camera's region is split for the pool.

    Raises:
        ImportError: The compiled renderer was not built.
    """
    if kind == "opencv":
        return OpenCvRenderer(pool, parts)
    from services.stitcher.rendering.compiled import CompiledRenderer  # noqa: PLC0415  as above

    return CompiledRenderer(pool, parts)
