"""Types of a subscriber's options."""

from __future__ import annotations

from typing import Literal, TypedDict

Mode = Literal["newest", "every"]
Wake = Literal["zmq", "futex", "predict", "busy"]


class SubscriberOptions(TypedDict, total=False):
    """The keyword arguments of :class:`~framebus.Subscriber`, except the time to wait for a publisher."""

    name: str
    mode: Mode
    wake: Wake
    max_leases: int
    history: int
    gone_after_s: float | None
    publisher_uid: int | None
