"""Fixtures of the cases."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Exclude the objects of the tests' modules from garbage collection, so that collections are quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
