"""Notifications: hints that reach who listens, and garbage that harms nobody."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable

import msgpack
import pytest
import zmq

from framebus.notify import Listener, Notifier, socket_path


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def message(stream: str, sequence: int) -> tuple[object, ...]:
    return stream, 1, sequence, 0, 2, 3, 1, "|u1", "gray", 10, 20


def test_a_hint_arrives_and_the_descriptor_tells_of_it(stream: str) -> None:
    notifier, listener = Notifier(stream), Listener(stream)
    wait_until(notifier.has_listeners)
    notifier.notify(message(stream, 1))
    poller = zmq.Poller()
    poller.register(listener.fileno(), zmq.POLLIN)
    assert poller.poll(10_000)
    listener.wait(10.0)
    listener.drain()
    assert listener.rejected == 0
    listener.close()
    wait_until(lambda: not notifier.has_listeners())
    notifier.close()


def test_the_socket_is_for_the_group_and_is_removed(stream: str) -> None:
    notifier = Notifier(stream)
    path = socket_path(stream)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    notifier.close()
    assert not path.exists()


def test_other_languages_read_one_msgpack_part(stream: str) -> None:
    notifier = Notifier(stream, "tcp://127.0.0.1:*")
    endpoint = notifier._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    socket.connect(endpoint)
    wait_until(notifier.has_listeners)
    notifier.notify(message(stream, 9))
    assert socket.poll(10_000)
    (part,) = socket.recv_multipart()
    assert msgpack.unpackb(part) == list(message(stream, 9))
    socket.close(0)
    context.term()
    notifier.close()


@pytest.mark.parametrize(
    "garbage", [b"", b"\xc1", b"\x93\x01\x02\x03", msgpack.packb([1] * 11), b"\xdd\xff\xff\xff\xff", b"x" * 4000]
)
def test_garbage_is_counted(stream: str, garbage: bytes) -> None:
    context = zmq.Context()
    intruder = context.socket(zmq.XPUB)
    intruder.bind(f"ipc://{socket_path(stream)}")
    listener = Listener(stream)
    intruder.recv()
    intruder.send(garbage)

    def drained() -> bool:
        listener.drain()
        return listener.rejected == 1

    wait_until(drained)
    listener.close()
    intruder.close(0)
    context.term()
    socket_path(stream).unlink(missing_ok=True)


def test_an_endpoint_that_cannot_be_bound_leaves_nothing(stream: str) -> None:
    with pytest.raises(OSError, match="cannot be bound"):
        Notifier(stream, "tcp://256.0.0.1:99")
    assert not socket_path(stream).exists()
