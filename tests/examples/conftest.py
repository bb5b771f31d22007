"""Desks whose terminals run the commands of a page."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.examples.terminals import Desk, NewDesk


@pytest.fixture
def new_desk() -> Iterator[NewDesk]:
    """Return a function that makes desks with unique stream names. None may leave a file in /dev/shm."""
    desks: list[Desk] = []

    def new(**options: object) -> Desk:
        desks.append(Desk(f"test-{secrets.token_hex(6)}", **options))  # type: ignore[arg-type]
        return desks[-1]

    yield new
    for desk in desks:
        desk.close()


@pytest.fixture
def desk(new_desk: NewDesk) -> Desk:
    """Return a desk with this interpreter and this checkout."""
    return new_desk()
