"""A further endpoint of notifications: floods, and what it leaves."""

from __future__ import annotations

import os

import pytest
import zmq

from framebus import outlet as outlet_module
from framebus.outlet import Outlet
from tests.listeners import Flood, PlainListener, wait_until


def flood_until_reopened(outlet: Outlet) -> None:
    flood = Flood(outlet.bound)

    def reopened() -> bool:
        flood.send()
        outlet.has_listeners()
        return outlet.reopened > 0

    wait_until(reopened)
    flood.close()


def test_a_flooded_endpoint_is_bound_anew_and_serves_who_asks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet_module, "MAX_ODD_SUBSCRIPTIONS", 200)
    outlet = Outlet("tcp://127.0.0.1:*")
    flood_until_reopened(outlet)
    listener = PlainListener(outlet.bound)
    wait_until(outlet.has_listeners)
    outlet.send(b"hello")
    assert listener.take(10_000) == b"hello"
    listener.close()
    outlet.close()


def test_who_takes_the_place_of_a_flooded_endpoint_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet_module, "MAX_ODD_SUBSCRIPTIONS", 200)
    monkeypatch.setattr(outlet_module, "OPEN_AGAIN_AFTER_S", 0.0)
    outlet = Outlet("tcp://127.0.0.1:*")
    endpoint = outlet.bound
    context = zmq.Context()
    sitting = context.socket(zmq.XPUB)
    close_socket = outlet._close_socket

    def close_and_lose_it() -> None:
        close_socket()
        outlet._close_socket = close_socket  # type: ignore[method-assign]
        sitting.bind(endpoint)

    outlet._close_socket = close_and_lose_it  # type: ignore[method-assign]
    flood_until_reopened(outlet)
    assert not outlet.has_listeners()
    outlet.send(b"nobody hears it")
    sitting.close(0)
    context.term()
    listener = PlainListener(endpoint)
    wait_until(outlet.has_listeners)
    listener.close()
    outlet.close()


def test_closing_leaves_no_descriptor() -> None:
    Outlet("tcp://127.0.0.1:*").close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Outlet("tcp://127.0.0.1:*").close()
        with pytest.raises(OSError, match="cannot be bound"):
            Outlet("tcp://256.0.0.1:1")
    assert len(os.listdir("/proc/self/fd")) == before
