"""Notifications reach the subscribers that listen, and garbage harms no process."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import msgpack
import pytest
import zmq

from framebus import FrameFormat, Publisher, ReceiveTimeout, Subscriber
from framebus.notify import zmtp
from framebus.notify.listener import Listener
from framebus.notify.local_socket import socket_path
from framebus.notify.notification import topic
from framebus.notify.server import CONNECTING_NS, POLL_CLOSELY_NS, POLL_EVERY_NS, NotificationServer
from tests.framebus.listeners import PlainListener, listens, listens_to
from tests.support import PATIENCE_S, publish, wait_until

FORMAT = FrameFormat(2, 3, 1, pixel_format="gray")


def wait_until_heard(condition: Callable[[], object], listener: Listener) -> None:
    """Wait until the other side hears the listener, which connects and subscribes while it drains."""

    def drain_and_look() -> object:
        listener.drain()
        return condition()

    wait_until(drain_and_look, "the listener is heard")


def test_a_hint_arrives_and_the_descriptor_tells_of_it(stream: str) -> None:
    with Publisher(stream, FORMAT) as publisher:
        listener = Listener(stream)
        wait_until_heard(lambda: listens_to(publisher), listener)
        publish(publisher)
        poller = zmq.Poller()
        poller.register(listener.fileno(), zmq.POLLIN)
        assert poller.poll(10_000)
        listener.wait(10.0)
        listener.drain()
        assert listener.rejected == 0
        listener.close()
        wait_until(lambda: not listens_to(publisher), "the publisher sees that the listener has gone")


def test_connections_are_polled_with_every_frame_of_the_first_second(stream: str) -> None:
    server, listener = NotificationServer(socket_path(stream), topic(stream)), Listener(stream)
    now_ns = time.monotonic_ns()
    wait_until_heard(lambda: listens(server), listener)
    server.poll(now_ns)
    assert server.poll_at_ns == now_ns
    later_ns = now_ns + POLL_CLOSELY_NS
    server.poll(later_ns)
    assert server.poll_at_ns == later_ns + POLL_EVERY_NS
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(str(socket_path(stream)))
    server.poll(later_ns)
    assert server.poll_at_ns == later_ns
    patience_ns = later_ns + CONNECTING_NS + POLL_EVERY_NS
    server.poll(patience_ns)
    assert server.poll_at_ns == patience_ns + POLL_EVERY_NS, "a peer that never subscribes is not polled every frame"
    stranger.close()
    listener.close()
    server.close()


@pytest.mark.usefixtures("each_steps")
def test_other_languages_read_one_msgpack_part(stream: str) -> None:
    with Publisher(stream, FORMAT) as publisher, Subscriber(stream) as subscriber:
        listener = PlainListener(f"ipc://{socket_path(stream)}")
        with pytest.raises(ReceiveTimeout):
            subscriber.receive(0.5)
        wait_until(lambda: listens_to(publisher), "the publisher hears the listener")
        for number, captured_ns in enumerate((10, -(1 << 63), (1 << 63) - 1), start=1):
            loan = publisher.loan()
            loan.captured_ns = captured_ns
            loan.publish()
            with subscriber.receive(10) as frame:
                slot, told = frame._held().slot, [2, 3, 1, "|u1", "gray", captured_ns, frame.published_ns]
            message = msgpack.unpackb(listener.take(10_000) or b"")
            assert message == [stream, publisher.statistics.epoch, number, slot, *told]
        listener.close()


@pytest.mark.parametrize(
    "garbage", [b"", b"\xc1", b"\x93\x01\x02\x03", msgpack.packb([1] * 11), b"\xdd\xff\xff\xff\xff", b"x" * 4000]
)
def test_garbage_is_counted(stream: str, garbage: bytes) -> None:
    context = zmq.Context()
    intruder = context.socket(zmq.XPUB)
    intruder.bind(f"ipc://{socket_path(stream)}")
    listener = Listener(stream)
    wait_until_heard(lambda: intruder.poll(0), listener)
    intruder.recv()
    intruder.send(garbage)

    def drained() -> bool:
        listener.drain()
        return listener.rejected == 1

    wait_until(drained, "the listener rejects the garbage")
    listener.close()
    intruder.close(0)
    context.term()
    socket_path(stream).unlink(missing_ok=True)


@contextlib.contextmanager
def connected_to(stream: str) -> Iterator[tuple[socket.socket, Listener]]:
    """Bind a socket in place of the publisher's, and connect a listener to it; yield both."""
    with socket.socket(socket.AF_UNIX) as publisher:
        publisher.bind(str(socket_path(stream)))
        publisher.listen()
        listener = Listener(stream)
        connected, _ = publisher.accept()
        connected.settimeout(PATIENCE_S)
        with connected:
            yield connected, listener
        listener.close()
    socket_path(stream).unlink()


def test_a_listener_answers_heartbeats(stream: str) -> None:
    with connected_to(stream) as (connected, listener):
        connected.sendall(zmtp.hello(b"XPUB") + zmtp.command(b"PING", b"\0\0seen?"))
        listener.drain()
        expected = zmtp.hello(b"SUB") + zmtp.SUBSCRIBE_TO_ALL + zmtp.command(b"PONG", b"seen?")
        assert connected.recv(len(expected), socket.MSG_WAITALL) == expected
        assert listener.rejected == 0


def test_a_peer_that_is_not_a_publisher_is_disconnected_and_counted(stream: str) -> None:
    with connected_to(stream) as (connected, listener):
        connected.sendall(b"220 mail.example ESMTP ready".ljust(100))
        listener.drain()
        assert listener.rejected == 1
        hello = zmtp.hello(b"SUB")
        assert connected.recv(len(hello), socket.MSG_WAITALL) == hello
        with contextlib.suppress(ConnectionResetError):
            assert connected.recv(1) == b"", "the listener has closed the connection"
