"""Messages survive a restart of the broker, carry the trace of their frame, and count their deliveries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import aio_pika
import pytest

from services.common.broker_messages import deliveries_before, message
from services.common.broker_names import FRAME


def test_a_message_outlives_the_broker_and_carries_its_trace() -> None:
    one, other = (message(b"body", FRAME, "roof/7/1", headers={"a": 1}, expiration=2.0) for _ in range(2))
    assert one.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert (one.type, one.message_id, one.headers["a"]) == (FRAME, "roof/7/1", 1)
    version, trace, span, flags = one.headers["traceparent"].split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01")
    assert other.headers["traceparent"].split("-")[1] == trace
    assert other.headers["traceparent"].split("-")[2] != span


@pytest.mark.parametrize(("headers", "count"), [({}, 0), ({"x-delivery-count": 3}, 3), ({"x-delivery-count": "x"}, 0)])
def test_earlier_deliveries_are_counted(headers: dict[str, Any], count: int) -> None:
    assert deliveries_before(SimpleNamespace(headers=headers)) == count  # type: ignore[arg-type]
