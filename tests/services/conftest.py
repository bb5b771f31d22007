"""Fixtures of the services' tests: logging as it is before a service sets it up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Restore the logging after a service or command that ran in this process, so that other tests do not see it."""
    yield
    structlog.reset_defaults()
