"""Fixtures of the cases."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> None:
    """Exclude what the tests before have left from garbage collection, so that collections are quick."""
    gc.collect()
    gc.freeze()
