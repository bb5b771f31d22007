"""ZeroMQ's protocol on the Unix socket: with libzmq at the other end, byte by byte, and with hostile peers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framebus.notify import server as server_module
from framebus.notify import zmtp
from framebus.notify.local_socket import LocalSocket, socket_path
from framebus.notify.server import NotificationServer
from framebus.notify.zmtp import GREETING, command, frame_header, hello
from framebus.ring.message import send_all
from tests.framebus.listeners import PlainListener
from tests.support import wait_until

HELLO = hello(b"XPUB")
TOPIC = b"\x9b\xa5panos"
MESSAGE = TOPIC + b"and what is told"
READY = command(b"READY", b"\x0bSocket-Type\0\0\0\3SUB")
ALL = b"\0\1\1"
"""A subscription to everything."""


@pytest.fixture
def path(stream: str) -> Path:
    return socket_path(stream)


@pytest.fixture
def server(path: Path) -> Iterator[NotificationServer]:
    opened = NotificationServer(path, TOPIC)
    yield opened
    opened.close()


@pytest.fixture
def connect(path: Path) -> Iterator[Callable[..., socket.socket]]:
    """Connects, sends what it is given, and has what the server answers at once."""
    opened = []

    def connect(content: bytes = b"") -> socket.socket:
        connected = socket.socket(socket.AF_UNIX)
        opened.append(connected)
        connected.settimeout(10)
        connected.connect(str(path))
        connected.sendall(content)
        return connected

    yield connect
    for connected in opened:
        connected.close()


def hears(server: NotificationServer) -> bool:
    """Poll; whether any peer subscribes."""
    server.poll(0)
    return bool(server.listening)


def look(server: NotificationServer) -> bool:
    """Poll until nothing new arrives: a peer that is accepted in one poll is read in the next."""
    return [hears(server) for _ in range(3)][-1]


def send(server: NotificationServer, message: bytes = MESSAGE) -> None:
    send_all(server.listening, frame_header(len(message)) + message)


def take(connected: socket.socket, size: int) -> bytes:
    return connected.recv(size, socket.MSG_WAITALL)


def take_all(connected: socket.socket) -> bytes:
    """What is there; if the other end is closed, all that came before."""
    received = bytearray()
    connected.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while chunk := connected.recv(4096):
            received += chunk
    return bytes(received)


def is_closed(connected: socket.socket) -> bool:
    take_all(connected)
    try:
        return connected.recv(1) == b""
    except BlockingIOError:
        return False


def test_the_socket_is_for_the_group_and_is_removed(path: Path) -> None:
    path.write_bytes(b"left by one that was killed")
    server = NotificationServer(path, TOPIC)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_ISSOCK(path.stat().st_mode)
    server.close()
    assert not path.exists()


def test_a_path_that_cannot_be_bound_is_told_of(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="sock cannot be bound: No such file or directory"):
        NotificationServer(tmp_path / "nowhere" / "sock", TOPIC)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("prefix", [b"", TOPIC[:1], TOPIC])
def test_libzmq_receives_the_topics_that_it_subscribes_to(
    server: NotificationServer, path: Path, prefix: bytes
) -> None:
    context = zmq.Context()
    listener = context.socket(zmq.SUB)
    listener.connect(f"ipc://{path}")
    listener.subscribe(prefix)
    wait_until(lambda: hears(server), "the server hears the listener")
    send(server)
    assert listener.poll(10_000)
    assert listener.recv_multipart() == [MESSAGE]
    listener.unsubscribe(prefix)
    wait_until(lambda: not hears(server), "the server hears that the listener has gone")
    listener.subscribe(prefix)
    wait_until(lambda: hears(server), "the server hears the listener")
    listener.close(0)
    wait_until(lambda: not hears(server), "the server hears that the listener has gone")
    context.term()


def test_a_peer_with_another_subscription_receives_nothing(server: NotificationServer, path: Path) -> None:
    context = zmq.Context()
    other, all_ = (context.socket(zmq.SUB) for _ in range(2))
    other.connect(f"ipc://{path}")
    other.subscribe(TOPIC + b"x")
    all_.connect(f"ipc://{path}")
    all_.subscribe(b"")
    wait_until(lambda: hears(server), "the server hears the listener")
    wait_until(lambda: hears(server) and len(server._connections) == 2, "the server hears the other listener too")
    assert len(server.listening) == 1
    send(server)
    assert all_.poll(10_000)
    assert not other.poll(0)
    for listener in (other, all_):
        listener.close(0)
    context.term()


def test_the_heartbeats_of_libzmq_are_answered(server: NotificationServer, path: Path) -> None:
    listener = PlainListener(f"ipc://{path}", heartbeat_ms=50)
    wait_until(lambda: hears(server), "the server hears the listener")
    answered = 0
    handle = server_module.Connection._handle

    def count(connection: server_module.Connection, flags: int, body: bytes) -> None:
        nonlocal answered
        answered += body.startswith(b"\4PING")
        handle(connection, flags, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module.Connection, "_handle", count)
        wait_until(lambda: hears(server) and answered > 5, "five heartbeats are answered")
    assert not listener.has_seen(zmq.EVENT_DISCONNECTED)
    wait_until(lambda: listener.has_seen(zmq.EVENT_DISCONNECTED), "an unanswered heartbeat ends the connection")
    listener.close()


def test_a_subscriber_of_another_language_byte_by_byte(
    server: NotificationServer, connect: Callable[..., socket.socket]
) -> None:
    connected = connect()
    look(server)
    assert take(connected, 64) == GREETING
    assert take(connected, 28) == command(b"READY", b"\x0bSocket-Type\0\0\0\4XPUB")
    for byte in GREETING + READY + ALL:
        assert not server.listening
        connected.send(bytes((byte,)))
        hears(server)
    send(server)
    assert take(connected, 2 + len(MESSAGE)) == bytes((0, len(MESSAGE))) + MESSAGE
    connected.sendall(command(b"PING", b"\0\x0acontext"))
    look(server)
    assert take(connected, 14) == command(b"PONG", b"context")


def test_the_commands_of_zmtp_3_1_subscribe_too(
    server: NotificationServer, connect: Callable[..., socket.socket]
) -> None:
    connected = connect(GREETING + READY + command(b"SUBSCRIBE", TOPIC[:3]))
    assert look(server)
    connected.sendall(command(b"CANCEL", TOPIC[:3]))
    assert not look(server)


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 64,
        GREETING[:10] + b"\1" + GREETING[11:],  # ZMTP 2
        GREETING[:9] + b"\0" + GREETING[10:],  # ZMTP 1
        GREETING.replace(b"NULL", b"CURVE")[:64],
        GREETING + READY.replace(b"SUB", b"REQ"),
        GREETING + ALL,
        GREETING + b"\4\0" + ALL,
        GREETING + READY + b"\2" + (1 << 40).to_bytes(8, "big"),
        GREETING + READY + b"\2" + (256).to_bytes(8, "big"),
        GREETING + READY + command(b"ERROR", b"\3why"),
        GREETING + READY + b"\0\2\1x" * 101,
        GREETING + READY + b"\0\1\0" * 101,
    ],
)
def test_a_peer_that_is_not_a_subscriber_is_disconnected(
    server: NotificationServer, connect: Callable[..., socket.socket], content: bytes
) -> None:
    connected, honest = connect(content), connect(GREETING + READY + ALL)
    odd = connect(GREETING + READY + b"\0\2\1x" * server_module.MAX_UNKNOWN_SUBSCRIPTIONS)
    for _ in range(5):
        look(server)
    assert is_closed(connected)
    assert not is_closed(odd)
    assert len(server.listening) == 1
    send(server)
    assert take(honest, len(HELLO) + 2 + len(MESSAGE)).endswith(MESSAGE)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(
        st.sampled_from([GREETING, READY, ALL, command(b"PING", b"\0\0" + bytes(20)), b"\0\1\0", b"\2" + bytes(8)])
        | st.binary(max_size=80)
    )
)
def test_arbitrary_bytes_do_not_harm_their_reader(content: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = server_module.Connection(LocalSocket(ours.detach()), TOPIC)
        theirs.setblocking(False)
        sent = b"".join(content)
        while sent:
            sent = sent[theirs.send(sent) :]
            try:
                for _ in range(4):
                    connection.read()
            except zmtp.ProtocolError:
                return
            assert len(connection._decoder._received) < server_module.READ_BYTES + zmtp.MAX_FRAME_BYTES + 9
            assert 0 <= connection.subscriptions <= b"".join(content).count(b"\1")
            take_all(theirs)


def test_a_peer_that_does_not_read_gets_whole_messages_later_and_delays_no_other(
    server: NotificationServer, connect: Callable[..., socket.socket]
) -> None:
    asleep, awake = connect(GREETING + READY + ALL), connect(GREETING + READY + ALL)
    assert look(server)
    assert len(server.listening) == 2
    for connected in (asleep, awake):
        assert take(connected, len(HELLO)) == HELLO
    size = zmtp.FRAME_HEADER_BYTES + 200
    for number in range(5000):
        send(server, number.to_bytes(4, "big") * 50)
        assert take(awake, size)[2:] == number.to_bytes(4, "big") * 50
    kept = take_all(asleep)
    numbers = []
    for begin in range(0, len(kept), size):
        sequence = kept[begin + 2 : begin + 6]
        assert kept[begin : begin + size] == frame_header(200) + sequence * 50
        numbers.append(int.from_bytes(sequence, "big"))
    assert numbers[:5] == [0, 1, 2, 3, 4]
    assert numbers == sorted(numbers)
    assert len(numbers) < 500
    send(server, b"last" * 50)
    assert asleep.recv(size) == frame_header(200) + b"last" * 50


def test_an_idle_connection_is_closed_for_a_new_one_and_a_subscribed_one_stays(
    server: NotificationServer, connect: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
    idle = [connect() for _ in range(10)]
    look(server)
    listening = [connect(GREETING + READY + ALL) for _ in range(3)]
    for _ in range(3):
        assert look(server)
    assert len(server.listening) == 3
    late = connect(GREETING + READY + ALL)
    look(server)
    assert all(map(is_closed, (*idle, late)))
    send(server)
    for connected in listening:
        assert take(connected, len(HELLO) + 2 + len(MESSAGE)).endswith(MESSAGE)


def test_a_forked_child_keeps_no_connection(path: Path, connect: Callable[..., socket.socket]) -> None:
    server = NotificationServer(path, TOPIC)
    connected = connect(GREETING + READY + ALL)
    assert look(server)
    child = os.fork()
    if not child:
        signal.pause()
    try:
        connected.shutdown(socket.SHUT_WR)
        assert not look(server)
        assert not server._connections
        assert take(connected, 1000) == HELLO
        assert server._epoll.poll(0) == []
        server.close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_closing_leaves_no_descriptor(path: Path, connect: Callable[..., socket.socket]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    server = NotificationServer(path, TOPIC)
    connected = connect(GREETING + READY + ALL)
    assert look(server)
    server.close()
    connected.close()
    assert len(os.listdir("/proc/self/fd")) == before
