"""What the services' tests share: a log as it is before a service sets it up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A service or command that ran in this process leaves its level and form to no other test."""
    yield
    structlog.reset_defaults()
