"""Fixtures of the relay's tests: one RabbitMQ server for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.relay import take, topology
from tests.rabbitmq import RabbitMq


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    """A server."""
    with RabbitMq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(autouse=True)
def no_wait_for_new_queues(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the wait that protects new queues from a kill of the broker within a second: no such kill happens here."""
    if "rabbitmq" in request.fixturenames:
        monkeypatch.setattr(topology, "NEW_QUEUE_S", 0.0)


@pytest.fixture(autouse=True)
def stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the thread that takes frames notice a stop at once: each test stops a relay."""
    monkeypatch.setattr(take, "SLICE_S", 0.02)
