"""Fixtures of the relay's tests: waits that they do not need are shorter."""

from __future__ import annotations

import pytest

from services.common import broker
from services.relay import take, topology


@pytest.fixture(autouse=True)
def no_wait_for_new_queues(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the wait that protects new queues from a kill of the broker within a second: no such kill happens here."""
    if "rabbitmq" in request.fixturenames:
        monkeypatch.setattr(topology, "NEW_QUEUE_S", 0.0)


@pytest.fixture(autouse=True)
def stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the parts that poll for a stop notice it at once: each test stops a relay, and most stop a detector."""
    monkeypatch.setattr(take, "SLICE_S", 0.02)
    monkeypatch.setattr(broker, "STOP_SLICE_S", 0.02)
