"""What the cases share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Keep the collector from the objects that the modules of the tests are made of."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
