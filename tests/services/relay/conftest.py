"""What the relay's tests share: a RabbitMQ server for all of them, and services that run in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rabbitmq import RabbitMq


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    """A server."""
    with RabbitMq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server
