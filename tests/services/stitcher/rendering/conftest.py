"""The renderers, for which the same tests run."""

from __future__ import annotations

import importlib.util

import pytest

from services.stitcher.rendering import stitch
from services.stitcher.rendering.choice import Choice
from tests.support import lacks


def needs_compiled() -> None:
    """Skip the test if the compiled renderer was not built."""
    if importlib.util.find_spec("services.stitcher.rendering._warp_c") is None:
        lacks("the compiled renderer was not built: install a C compiler and Python's headers, then 'make clean test'")


@pytest.fixture(params=["opencv", "compiled"])
def renderer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test once with each renderer."""
    if request.param == "compiled":
        needs_compiled()
    monkeypatch.setattr(stitch, "choose", lambda _: Choice(request.param))
