"""Deadlines and caps: clients that keep a connection, and a process without descriptors."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import resource
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framebus import FrameFormat, Publisher
from services.common.detections import Detection, DetectionPublisher, Detections
from services.common.health import fault_of_service
from tests.services.streamer.support import HEIGHT, WIDTH, RunningPublisher, StreamerProcess, publish
from tests.support import PATIENCE_S, complaints, own_stream, wait_until

pytestmark = pytest.mark.slow

NOISY = FrameFormat(256, 2048)
TINY_BUFFER_BYTES = 2048
MJPEG = b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
WEBSOCKET = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamerProcess]:
    """Run a streamer with short deadlines and pictures that fill buffers; no test may leave a connection open."""
    deadlines = {"head_timeout_s": 0.6, "idle_timeout_s": 0.8, "write_timeout_s": 1}
    with (
        own_stream() as name,
        RunningPublisher(name, NOISY, 20, noisy=True),
        StreamerProcess(name, tmp_path_factory.mktemp("impatient") / "log", max_clients=4, **deadlines) as process,
    ):
        wait_until(lambda: process.events("attached"), "the streamer attaches")
        yield process


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamerProcess]:
    """Run a streamer that was started with few descriptors, and whose publisher publishes only one frame."""
    log = tmp_path_factory.mktemp("limited") / "log"
    with (
        own_stream() as name,
        Publisher(name, FrameFormat(HEIGHT, WIDTH), slots=8) as publisher,
        contextlib.ExitStack() as stack,
    ):
        with soft_limit(100):
            process = stack.enter_context(StreamerProcess(name, log, max_connections=200, stale_after_s=3600))
        wait_until(lambda: process.events("attached"), "the streamer attaches")
        publish(publisher)
        yield process


class Clients(contextlib.ExitStack):
    """Raw connections to a streamer, closed at the end."""

    def __init__(self, streamer: StreamerProcess) -> None:
        super().__init__()
        self._port = int(streamer.url.rstrip("/").rpartition(":")[2])

    def connect(self, sent: bytes = b"", *, buffer_bytes: int | None = None) -> socket.socket:
        """Open a connection and send; a small receive buffer is full soon."""
        client = self.enter_context(socket.socket())
        if buffer_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", self._port))
        client.sendall(sent)
        return client


def status(streamer: StreamerProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"{streamer.url}api/status", timeout=PATIENCE_S) as answer:
        document: dict[str, Any] = json.load(answer)
    return document


def dropped(streamer: StreamerProcess) -> Counter[str]:
    """Return the connections closed so far, by reason."""
    return Counter(status(streamer)["connections"]["dropped"])


def read_until_closed(client: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection, as it must."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            received += part
    return received


def test_a_request_head_must_be_complete_in_time(impatient: StreamerProcess) -> None:
    with Clients(impatient) as clients:
        before = dropped(impatient)
        halves = [
            b"",
            b"G",
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
            HEALTH[:-1],
            b"\r\n",
            b"POST / HTTP/1.1\r\n",
        ]
        held = [clients.connect(half) for half in halves]
        trickled = clients.connect()
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012  one byte after the other
            for byte in b"GET /" + bytes(1000).replace(b"\0", b"x"):
                trickled.send(bytes([byte]))
                time.sleep(0.02)
        for client in held:
            assert read_until_closed(client) == b""
        assert dropped(impatient) - before == {"head": len(halves) + 1}


def test_an_idle_connection_is_closed_after_a_while(impatient: StreamerProcess) -> None:
    with Clients(impatient) as clients:
        before = dropped(impatient)
        resting = clients.connect(HEALTH)
        assert resting.recv(65536).startswith(b"HTTP/1.1 200 ")
        half = clients.connect(HEALTH)
        assert half.recv(65536).startswith(b"HTTP/1.1 200 ")
        half.sendall(HEALTH[:20])
        assert read_until_closed(half) == b""
        assert read_until_closed(resting) == b""
        assert dropped(impatient) - before == {"head": 1, "idle": 1}


def test_pipelined_requests_are_answered_one_after_the_other(impatient: StreamerProcess) -> None:
    with Clients(impatient) as clients:
        before = dropped(impatient)
        client = clients.connect(HEALTH * 40 + HEALTH[:-2])
        assert read_until_closed(client).count(b"HTTP/1.1 200 ") == 40
        assert dropped(impatient) - before == {"head": 1}


def test_a_request_body_is_rejected(impatient: StreamerProcess) -> None:
    with Clients(impatient) as clients:
        # Both at once, because the streamer waits for a body before it closes the connection.
        for client in [
            clients.connect(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n\r\n")
            for framing in (b"Content-Length: 1000000", b"Transfer-Encoding: chunked")
        ]:
            assert read_until_closed(client).startswith(b"HTTP/1.1 413 ")


def test_clients_that_never_read_are_disconnected(impatient: StreamerProcess) -> None:
    with Clients(impatient) as clients:
        before = dropped(impatient)
        for request, buffer_bytes in (
            (MJPEG, None),
            (MJPEG, None),
            (MJPEG, TINY_BUFFER_BYTES),
            (WEBSOCKET, TINY_BUFFER_BYTES),
            (METRICS * 30, TINY_BUFFER_BYTES),
        ):
            clients.connect(request, buffer_bytes=buffer_bytes)
        wait_until(lambda: dropped(impatient) - before == {"write": 5}, "they are disconnected", interval_s=0.1)
        found = status(impatient)
        assert (found["viewers"]["websocket"], found["viewers"]["mjpeg"]) == (0, 0)
        # All four places had been taken.
        viewer = clients.connect(MJPEG)
        assert viewer.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.long
def test_clients_that_never_read_small_pictures_are_disconnected(stream: str, tmp_path: Path) -> None:
    """The client's kernel could keep acknowledging them for minutes."""
    with (
        RunningPublisher(stream, FrameFormat(HEIGHT, WIDTH), 25),
        StreamerProcess(stream, tmp_path / "log", write_timeout_s=1) as streamer,
        Clients(streamer) as clients,
    ):
        clients.connect(MJPEG)
        wait_until(lambda: dropped(streamer)["write"] == 1, "it is disconnected", interval_s=0.1)
        assert status(streamer)["viewers"]["mjpeg"] == 0


@pytest.mark.long
def test_a_client_that_reads_a_few_bytes_at_times_is_disconnected(impatient: StreamerProcess) -> None:
    with Clients(impatient) as clients:
        before = dropped(impatient)
        slow = clients.connect(MJPEG, buffer_bytes=TINY_BUFFER_BYTES)

        def gone() -> bool:
            with contextlib.suppress(ConnectionResetError):
                slow.recv(1)
            return dropped(impatient) - before == {"write": 1}

        wait_until(gone, "it is disconnected", interval_s=0.1)


def test_a_slow_client_that_keeps_reading_stays_connected(impatient: StreamerProcess) -> None:
    with Clients(impatient) as clients:
        before = dropped(impatient)
        slow = clients.connect(MJPEG, buffer_bytes=16384)
        received = b""
        for _ in range(25):  # 60 kB a second, for twice as long as a client may take nothing
            received += slow.recv(6000)
            time.sleep(0.1)
        assert dropped(impatient) == before
        assert status(impatient)["viewers"]["mjpeg"] == 1
        assert received.count(b"\xff\xd8\xff") >= 1


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> set[str]:
    """Return the names of the process's threads."""
    return {path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/comm")}


@contextlib.contextmanager
def soft_limit(count: int) -> Iterator[None]:
    """Lower this process's own limit on descriptors, which its children inherit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def get(streamer: StreamerProcess, path: str) -> int:
    with urllib.request.urlopen(streamer.url + path, timeout=PATIENCE_S) as answer:
        answer.read()
        return int(answer.status)


@pytest.mark.long
def test_more_half_sent_requests_than_descriptors_do_not_stop_the_streamer(stream: str, tmp_path: Path) -> None:
    with RunningPublisher(stream, FrameFormat(HEIGHT, WIDTH), 25), contextlib.ExitStack() as stack:
        with soft_limit(1024):
            streamer = stack.enter_context(StreamerProcess(stream, tmp_path / "log", head_timeout_s=4))
            wait_until(lambda: streamer.events("attached"), "the streamer attaches")
        pid = streamer.process.pid
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == 1024
        assert get(streamer, "snapshot.jpg") == 200
        before, threads_before = descriptors(pid), threads(pid)
        with Clients(streamer) as clients:
            # Complete requests come between the half-sent ones.
            for count in range(1100):
                clients.connect(HEALTH[:-2])
                if count % 100 == 99:
                    assert get(streamer, "snapshot.jpg") == 200
            connections = status(streamer)["connections"]
            assert connections["open"] <= connections["max"] <= 512
            assert connections["dropped"]["evicted"] + connections["dropped"]["head"] >= 1100 - 512
            wait_until(lambda: status(streamer)["connections"]["open"] == 1, "all are released", interval_s=0.1)
            assert connections["refused"] == {"address": 0, "full": 0, "descriptors": 0}
        wait_until(lambda: descriptors(pid) <= before + 2, "descriptors are released", interval_s=0.1)
        assert threads_before <= threads(pid)
        assert streamer.process.poll() is None


@pytest.mark.long
def test_without_descriptors_the_streamer_waits_and_continues(stream: str, tmp_path: Path) -> None:
    """Descriptors may run out for any reason; here the limit is lowered below the number that is open."""

    def detect(detector: DetectionPublisher, sequence: int) -> None:
        now_ns = time.monotonic_ns()
        car = Detection("car", 0.9, 10.0, 20.0, 30.0, 40.0, 3)
        detector.publish(Detections(stream, "default", 1, sequence, now_ns, now_ns, HEIGHT, WIDTH, (car,)))

    def received(stage: str) -> int:
        return int(status(streamer)["services"]["streamer"]["stages"][stage]["frames"])

    with contextlib.ExitStack() as stack:
        publisher = stack.enter_context(Publisher(stream, FrameFormat(HEIGHT, WIDTH), slots=8))
        streamer = stack.enter_context(StreamerProcess(stream, tmp_path / "log"))
        wait_until(lambda: streamer.events("attached"), "the streamer attaches")
        publish(publisher)
        wait_until(lambda: received("receive"), "a first frame")
        pid, hard = streamer.process.pid, resource.prlimit(streamer.process.pid, resource.RLIMIT_NOFILE)[1]
        clients = stack.enter_context(Clients(streamer))
        with contextlib.closing(DetectionPublisher(stream, "default")) as detector:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
            waiting = [clients.connect(HEALTH) for _ in range(20)]
            assert fault_of_service("streamer", 0.5) != ""
            publisher.close()
            publisher = stack.enter_context(Publisher(stream, FrameFormat(HEIGHT, WIDTH), slots=8))
            publish(publisher)
            used_s = time_used(pid)
            time.sleep(2.5)  # longer than each of the pauses after which something is tried again
            assert time_used(pid) - used_s < 1.5, "the process uses the CPU although it can do nothing"
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, hard))
            for client in waiting:
                assert client.recv(65536).startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 503 "))
            frames = received("receive")

            def both_go_on() -> bool:
                detect(detector, publish(publisher))
                return received("receive") > frames and received("detections") > 0

            wait_until(both_go_on, "frames and detections come again", interval_s=0.1)
        found = status(streamer)
        assert found["connections"]["refused"]["descriptors"] > 0
        assert found["services"]["streamer"]["details"]["detections_failures"] > 0
        assert found["services"]["streamer"]["healthy"]
        assert len(streamer.events("out of descriptors")) == 1
        assert complaints(streamer.log.read_text()) == []
        publisher.close()


def time_used(pid: int) -> float:
    """Return the seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_caps_follow_the_limit_on_descriptors(limited: StreamerProcess) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    connections = status(limited)["connections"]
    assert resource.prlimit(limited.process.pid, resource.RLIMIT_NOFILE) == (400, hard)
    assert (connections["max"], connections["max_per_address"]) == (200, 150)


@pytest.mark.long
def test_at_a_clients_share_and_at_the_cap_idle_connections_are_closed(stream: str, tmp_path: Path) -> None:
    proxied = {"max_connections": 8, "max_clients": 16, "trusted_proxies": '["127.0.0.1"]'}
    with (
        RunningPublisher(stream, FrameFormat(HEIGHT, WIDTH), 25),
        StreamerProcess(stream, tmp_path / "log", **proxied) as streamer,
        Clients(streamer) as clients,
    ):
        wait_until(lambda: streamer.events("attached"), "the streamer attaches")
        connections = status(streamer)["connections"]
        assert (connections["max"], connections["max_per_address"]) == (8, 6)

        def watch(client: str) -> bytes:
            request = MJPEG[:-2] + f"X-Forwarded-For: {client}\r\n\r\n".encode()
            return clients.connect(request).recv(65536).partition(b"\r\n")[0]

        half = clients.connect(HEALTH[:-2])
        assert [watch("192.0.2.1") for _ in range(6)] == [b"HTTP/1.1 200 OK"] * 6
        assert watch("192.0.2.1") == b"HTTP/1.1 503 Service Unavailable"  # the share of that address is taken
        assert watch("192.0.2.2") == b"HTTP/1.1 200 OK"
        assert watch("192.0.2.2") == b"HTTP/1.1 200 OK"  # instead of the half-sent one
        assert read_until_closed(half) == b""
        assert watch("192.0.2.3") == b"HTTP/1.1 503 Service Unavailable"  # all eight are at work


def test_a_viewer_that_leaves_frees_its_place_at_once(limited: StreamerProcess) -> None:
    """This also holds while there is nothing to send to the viewer."""
    with Clients(limited) as clients:
        for request in (MJPEG, WEBSOCKET):
            assert re.match(rb"HTTP/1\.1 (200|101) ", clients.connect(request).recv(65536))
    wait_until(lambda: status(limited)["connections"]["open"] == 1, "the places are free", interval_s=0.05)
    found = status(limited)["viewers"]
    assert (found["websocket"], found["mjpeg"]) == (0, 0)
