"""Fixtures of the services' tests: logging as it is before a service sets it up."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Restore the logging after a service or command that ran in this process, so that other tests do not see it."""
    before = logging.root.handlers.copy()
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    for handler in logging.root.handlers.copy():
        if handler not in before:
            logging.root.removeHandler(handler)
