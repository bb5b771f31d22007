"""Which renderer fills the panoramas."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

from services.stitcher.rendering.renderer import OpenCvRenderer, Renderer

Wanted = Literal["auto", "opencv"]
Kind = Literal["compiled", "opencv"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A renderer, and why it is this one."""

    kind: Kind
    reason: str | None = None
    """Why the compiled one cannot be used, if it was wanted."""


def choose(wanted: Wanted) -> Choice:
    """Choose: ``auto`` takes the compiled renderer where it was built and this processor makes it the faster one."""
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
    """A renderer of that kind.

    Args:
        kind: Which one.
        pool: Renders in its threads; without it the calling thread renders alone.
        parts: In how many parts, one above the other, each camera's region is given to the pool.

    Raises:
        ImportError: The compiled one was not built.
    """
    if kind == "opencv":
        return OpenCvRenderer(pool, parts)
    from services.stitcher.rendering.compiled import CompiledRenderer  # noqa: PLC0415

    return CompiledRenderer(pool, parts)
