"""The streamer as a process, with a real publisher, over HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from framebus import FrameFormat, Publisher, streams
from services.common.config import ConfigurationError
from services.common.detections import Detection, DetectionPublisher, Detections
from services.common.service import ServiceError
from services.common.status import StatusServer
from services.streamer.entry import SERVICE
from services.streamer.messages import split_frame_message
from tests.services.streamer.support import (
    HEIGHT,
    WIDTH,
    RunningPublisher,
    StreamerProcess,
    draw_number,
    publish,
    read_number,
)
from tests.support import PATIENCE_S, Program, complaints, own_stream, wait_until

pytestmark = pytest.mark.slow

FORMAT = FrameFormat(HEIGHT, WIDTH)
QUIET_S = 0.2
PLACES = 6
"""Viewers of the streamer that the tests share; those of an earlier test may be there for a moment longer."""


@pytest.fixture(scope="module")
def streamer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamerProcess]:
    """Run a streamer that the tests share. It tolerates a publisher that publishes nothing for a while."""
    log = tmp_path_factory.mktemp("streamer") / "log"
    settings = {"stale_after_s": 60, "silent_after_s": 0.5, "max_clients": PLACES}
    with own_stream() as stream, StreamerProcess(stream, log, **settings) as process:
        yield process


@pytest.fixture(scope="module")
def publisher(streamer: StreamerProcess) -> Iterator[Publisher]:
    """Return the publisher to which that streamer is attached, with the frames of earlier tests."""
    with Publisher(streamer.stream, FORMAT, slots=8) as opened:
        wait_until(lambda: streamer.events("attached"), "the streamer attaches")
        yield opened


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamerProcess]:
    """Run a streamer for which pictures are soon stale, and whose publishers come and go."""
    log = tmp_path_factory.mktemp("impatient") / "log"
    with own_stream() as stream, StreamerProcess(stream, log, delayed_after_s=0.2, stale_after_s=0.6) as process:
        yield process


@pytest.fixture
def newcomer(impatient: StreamerProcess) -> Iterator[Publisher]:
    """Return a publisher that has published nothing, to which the impatient streamer is attached."""
    wait_until(lambda: fetch(impatient.url, "healthz")[0] == 503, "no picture of an earlier test is served")
    with Publisher(impatient.stream, FORMAT, slots=8) as opened:
        wait_until(lambda: is_subscribed(impatient.stream), "the streamer attaches")
        yield opened


def is_subscribed(stream: str) -> bool:
    """Return whether the stream's current publisher has a subscriber."""
    return any(found.subscribers for found in streams() if found.name == stream)


class Client:
    """A WebSocket client that sorts the messages."""

    def __init__(self, socket_: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket_
        self.texts: list[dict[str, Any]] = []
        self.close_code: int | None = None

    async def frame(self, patience_s: float = PATIENCE_S) -> tuple[dict[str, Any], bytes] | None:
        """Return the next frame, or ``None`` if none arrives."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while True:
                    message = await self.socket.receive()
                    if message.type is aiohttp.WSMsgType.BINARY:
                        return split_frame_message(message.data)
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        self.close_code = self.socket.close_code
                        return None
                    self.texts.append(json.loads(message.data))
        return None

    async def next_frame(self) -> tuple[dict[str, Any], bytes]:
        """Return the next frame, which must arrive."""
        frame = await self.frame()
        assert frame is not None, f"closed: {self.close_code}"
        return frame

    async def text(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the next text message that meets the condition."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                while self.texts:
                    if wanted(message := self.texts.pop(0)):
                        return message
                await self.frame(0.05)

    async def acknowledge(self, sequence: int) -> None:
        await self.socket.send_str(json.dumps({"ack": sequence}))

    async def catch_up(self, sequence: int) -> None:
        """Take and acknowledge frames up to this one; the first may be of an earlier test."""
        while True:
            head, _ = await self.next_frame()
            await self.acknowledge(head["sequence"])
            if head["sequence"] == sequence:
                return


@contextlib.asynccontextmanager
async def connect(url: str, **options: Any) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}ws", **options) as socket_:
        yield Client(socket_)


async def get(url: str, path: str) -> tuple[int, bytes, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.get(url + path) as response:
        return response.status, await response.read(), dict(response.headers)


async def unwatched(url: str) -> dict[str, Any]:
    """Wait until the viewers of earlier tests have gone; return the streamer's status."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status: dict[str, Any] = json.loads((await get(url, "api/status"))[1])
            if not status["viewers"]["websocket"] + status["viewers"]["mjpeg"]:
                return status
            await asyncio.sleep(0.02)


async def head(url: str, path: str) -> int:
    async with aiohttp.ClientSession() as session, session.head(url + path) as response:
        return response.status


def fetch(url: str, path: str) -> tuple[int, bytes, dict[str, str]]:
    return asyncio.run(get(url, path))


def snapshot_of(streamer: StreamerProcess, sequence: int) -> tuple[int, bytes, dict[str, str]]:
    """Wait until the snapshot is of this frame; return the answer."""

    def answer() -> tuple[int, bytes, dict[str, str]] | None:
        found = fetch(streamer.url, "snapshot.jpg")
        return found if found[2].get("X-Sequence") == str(sequence) else None

    found = wait_until(answer, f"a snapshot of frame {sequence}")
    assert found is not None
    return found


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        await scenario()

    asyncio.run(all_of_it())


def test_two_frames_are_in_flight_and_the_newest_wins(streamer: StreamerProcess, publisher: Publisher) -> None:
    async def scenario() -> None:
        async with connect(streamer.url) as client:
            before = publish(publisher)
            await client.catch_up(before)
            for sequence in (before + 1, before + 2):
                publish(publisher)
                head, jpeg = await client.next_frame()
                assert (head["sequence"], read_number(jpeg)) == (sequence, sequence)
            newest = publish(publisher, 3)
            assert await client.frame(QUIET_S) is None
            await client.acknowledge(before + 1)
            head, jpeg = await client.next_frame()
            assert (head["sequence"], read_number(jpeg), head["skipped"]) == (newest, newest, 2)
            assert head["latency_ms"] > 0
            assert await client.frame(QUIET_S) is None
            await client.acknowledge(newest)  # frees both
            for sequence in (newest + 1, newest + 2):
                publish(publisher)
                assert (await client.next_frame())[0]["sequence"] == sequence

    run(scenario)


def test_snapshots_and_late_clients_get_the_newest_frame_at_once(
    streamer: StreamerProcess, publisher: Publisher
) -> None:
    for _ in range(2):
        sequence = publish(publisher, 3)
        status, jpeg, headers = snapshot_of(streamer, sequence)
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/jpeg", "no-store")
        assert read_number(jpeg) == sequence

    async def scenario() -> None:
        for _ in range(2):
            async with connect(streamer.url) as client:
                head, jpeg = await client.next_frame()
                assert (head["sequence"], read_number(jpeg)) == (sequence, sequence)
                assert (head["width"], head["height"]) == (WIDTH // 2, HEIGHT // 2)
                assert (head["full_width"], head["full_height"]) == (WIDTH, HEIGHT)
                assert head["epoch"] == f"{publisher.statistics.epoch:x}"

    run(scenario)


def test_a_client_that_pauses_continues_with_the_newest_frame(streamer: StreamerProcess, publisher: Publisher) -> None:
    async def encoded() -> int:
        status = json.loads((await get(streamer.url, "api/status"))[1])
        return int(status["services"]["streamer"]["stages"]["encode"]["frames"])

    async def scenario() -> None:
        await unwatched(streamer.url)
        async with connect(streamer.url) as client:
            await client.catch_up(publish(publisher))
            for _ in range(2):
                unacknowledged = publish(publisher)
                await client.next_frame()
            before = await encoded()
            await asyncio.sleep(1.3)  # longer than a viewer without an acknowledgement counts as watching
            newest = publish(publisher, 3)
            await asyncio.sleep(QUIET_S)
            assert await encoded() == before
            await client.acknowledge(unacknowledged)
            head, jpeg = await client.next_frame()
            assert (head["sequence"], read_number(jpeg)) == (newest, newest)

    run(scenario)


def test_a_slow_client_does_not_slow_another(streamer: StreamerProcess, publisher: Publisher) -> None:
    async def scenario() -> None:
        async with connect(streamer.url) as slow, connect(streamer.url) as quick:
            before = publish(publisher)
            await slow.catch_up(before)
            await quick.catch_up(before)
            for _ in range(10):
                newest = publish(publisher)
                head, _ = await quick.next_frame()
                assert head["sequence"] == newest
                await quick.acknowledge(newest)
            got = [(await slow.next_frame())[0]["sequence"] for _ in range(2)]
            assert before < got[0] < got[1] < newest
            assert await slow.frame(QUIET_S) is None
            await slow.acknowledge(got[1])
            assert (await slow.next_frame())[0]["sequence"] == newest

    run(scenario)


@pytest.mark.parametrize("message", ["{}", "ack", '{"ack": 99}', b"binary", "x" * 1000])
def test_a_client_that_violates_the_protocol_is_disconnected(
    streamer: StreamerProcess, publisher: Publisher, message: str | bytes
) -> None:
    async def scenario() -> None:
        async with connect(streamer.url) as client:
            sequence = publish(publisher)
            # The frame of the previous test may arrive first, and this one after the message.
            while (await client.next_frame())[0]["sequence"] != sequence:
                pass
            await (client.socket.send_str(message) if isinstance(message, str) else client.socket.send_bytes(message))
            assert await client.frame() is None
            assert client.close_code in (aiohttp.WSCloseCode.POLICY_VIOLATION, aiohttp.WSCloseCode.MESSAGE_TOO_BIG)

    run(scenario)


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example", "Origin": "http://evil.example"}],
)
def test_a_page_of_another_origin_is_refused(streamer: StreamerProcess, headers: dict[str, str]) -> None:
    async def scenario() -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connect(streamer.url, headers=headers):
                pass
        assert refused.value.status == 403

    run(scenario)


def test_a_client_beyond_the_limit_is_told_the_reason(streamer: StreamerProcess) -> None:
    async def scenario() -> None:
        url = streamer.url
        await unwatched(url)
        async with contextlib.AsyncExitStack() as watching:
            for _ in range(PLACES):
                client = await watching.enter_async_context(connect(url))
                await client.text(lambda message: message["type"] == "state")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await watching.enter_async_context(connect(url))
            assert refused.value.status == 503
            status, body, _ = await get(url, "stream.mjpg")
            assert (status, body) == (503, f"all {PLACES} places are taken (streamer.max_clients)\n".encode())
        await unwatched(url)
        async with connect(url) as client:
            await client.text(lambda message: message["type"] == "state" and message["clients"] == 1)

    run(scenario)


def test_detections_reach_the_client_and_old_ones_do_not(streamer: StreamerProcess, publisher: Publisher) -> None:
    stream, instance = streamer.stream, "alone"
    sequence = publish(publisher)
    detector = DetectionPublisher(stream, instance)

    def detect(captured_ns: int, *objects: Detection) -> None:
        epoch = publisher.statistics.epoch
        now_ns = time.monotonic_ns()
        detector.publish(Detections(stream, instance, epoch, sequence, captured_ns, now_ns, HEIGHT, WIDTH, objects))

    async def scenario() -> None:
        async with connect(streamer.url) as client:
            car, bus = Detection("car", 0.9, 10.0, 20.0, 30.0, 40.0, 3), Detection("bus", 0.8, 1.0, 2.0, 3.0, 4.0)

            async def until_seen(captured_ns: int, found: Detection) -> dict[str, Any]:
                # Send until the streamer has found the detector's socket. It accepts the same frame only once.
                receiving = asyncio.create_task(client.text(lambda message: message.get("instance") == instance))
                while not receiving.done():
                    detect(captured_ns, found)
                    await asyncio.sleep(0.02)
                return receiving.result()

            first_ns = time.monotonic_ns()
            message = await until_seen(first_ns, car)
            assert message["sequence"] == sequence
            assert [found["label"] for found in message["objects"]] == ["car"]
            assert message["objects"][0]["track"] == 3
            detect(first_ns - 1_000_000, car)  # of an earlier frame
            detect(time.monotonic_ns() - 3_000_000_000, car)  # too old
            detect(time.monotonic_ns() + 3_000_000_000, car)  # of a future frame
            message = await until_seen(time.monotonic_ns(), bus)
            assert [found["label"] for found in message["objects"]] == ["bus"]

    try:
        run(scenario)
    finally:
        detector.close()


def test_mjpeg_is_a_multipart_of_numbered_pictures(streamer: StreamerProcess, publisher: Publisher) -> None:
    first = publish(publisher)
    snapshot_of(streamer, first)

    async def scenario() -> None:
        url = streamer.url
        async with aiohttp.ClientSession() as session, session.get(f"{url}stream.mjpg") as response:
            kind, boundary = re.fullmatch(r"(\S+); boundary=(\S+)", response.headers["Content-Type"]).groups()  # type: ignore[union-attr]
            assert kind == "multipart/x-mixed-replace"
            assert await response.content.readline() == f"--{boundary}\r\n".encode()
            for sequence in range(first, first + 5):
                if sequence > first:
                    publish(publisher)
                headers = {}
                while (line := (await response.content.readline()).strip()) != b"":
                    name, _, value = line.decode().partition(": ")
                    headers[name] = value
                assert headers["Content-Type"] == "image/jpeg"
                assert headers["X-Sequence"] == str(sequence)
                jpeg = await response.content.readexactly(int(headers["Content-Length"]))
                assert read_number(jpeg) == sequence
                assert await response.content.readline() == b"\r\n"
                assert await response.content.readline() == f"--{boundary}\r\n".encode()

    run(scenario)


def test_an_mjpeg_client_that_does_not_read_gets_the_newest_later(stream: str, tmp_path: Path) -> None:
    with (
        RunningPublisher(stream, FrameFormat(512, 2048), 50, noisy=True) as publisher,
        StreamerProcess(stream, tmp_path / "log", jpeg_quality=100) as streamer,
        socket.socket() as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)  # full after one picture
        connection.connect(("127.0.0.1", int(streamer.url.rstrip("/").rpartition(":")[2])))
        connection.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")

        def frames(stage: str) -> int:
            services = json.loads(fetch(streamer.url, "api/status")[1])["services"]
            return int(services["streamer"]["stages"][stage]["frames"])

        wait_until(lambda: frames("encode") > frames("send") + 20, "pictures that were not sent", interval_s=0.05)
        newest = publisher.sequence
        received = b""
        while True:
            received += connection.recv(1 << 20)
            sequences = [int(found) for found in re.findall(rb"X-Sequence: (\d+)\r\n", received)]
            if sequences and sequences[-1] > newest:
                break
        assert sequences == sorted(set(sequences))
        assert len(sequences) < newest - sequences[0]


def test_without_a_publisher_every_endpoint_says_so(stream: str, tmp_path: Path) -> None:
    with StreamerProcess(stream, tmp_path / "log", stale_after_s=60) as streamer:
        reason = f"stream {stream} has not started"
        wait_until(lambda: reason in fetch(streamer.url, "healthz")[1].decode(), "the reason")
        status, body, _ = fetch(streamer.url, "healthz")
        assert status == 503
        assert json.loads(body) == {
            "healthy": False,
            "state": "absent",
            "reason": reason,
            "stream": stream,
            "age_s": None,
        }
        assert fetch(streamer.url, "snapshot.jpg")[:2] == (503, f"{reason}\n".encode())
        assert fetch(streamer.url, "")[0] == 200

        async def scenario() -> None:
            async with connect(streamer.url) as client:
                state = await client.text(lambda message: message["type"] == "state" and message["reason"] == reason)
                assert not state["live"]

        run(scenario)
        with Publisher(stream, FORMAT, slots=8) as publisher:
            wait_until(lambda: streamer.events("attached"), "the streamer attaches")
            assert "no frame yet" in json.loads(fetch(streamer.url, "healthz")[1])["reason"]
            publish(publisher)
            wait_until(lambda: fetch(streamer.url, "healthz")[0] == 200, "healthy")


def test_health_follows_the_frames(impatient: StreamerProcess, newcomer: Publisher) -> None:
    url = impatient.url
    publish(newcomer)
    wait_until(lambda: fetch(url, "healthz")[0] == 200, "healthy")
    wait_until(lambda: fetch(url, "healthz")[0] == 503, "stale")
    assert "no new frame" in json.loads(fetch(url, "healthz")[1])["reason"]
    services = json.loads(fetch(url, "api/status")[1])["services"]
    assert services["streamer"]["healthy"] is False
    publish(newcomer)
    wait_until(lambda: fetch(url, "healthz")[0] == 200, "healthy again")


def test_frames_that_cannot_be_shown_are_reported_and_skipped(streamer: StreamerProcess, publisher: Publisher) -> None:
    with publisher.loan(FrameFormat(HEIGHT // 2, WIDTH, dtype="uint16")) as loan:
        loan.pixels[:] = 0
    wait_until(lambda: b"uint16" in fetch(streamer.url, "snapshot.jpg")[1], "the reason")
    assert "uint16" in json.loads(fetch(streamer.url, "healthz")[1])["reason"]
    publish(publisher)
    wait_until(lambda: fetch(streamer.url, "snapshot.jpg")[0] == 200, "a picture")
    assert fetch(streamer.url, "healthz")[0] == 200


@pytest.mark.parametrize("anew", [pytest.param(False, marks=pytest.mark.long), True], ids=["goes_on", "attaches_anew"])
def test_a_killed_publisher_that_returns_is_shown_again(
    impatient: StreamerProcess, start_program: Callable[..., Program], anew: bool
) -> None:
    """The publisher that adopts the ring has no frame at first, and the last frame of the killed one keeps its age."""
    url, stream = impatient.url, impatient.stream
    wait_until(lambda: fetch(url, "healthz")[0] == 503, "no picture of an earlier test is served")
    first = start_program("publish", stream, str(HEIGHT), str(WIDTH), "8")
    assert first.read() == "open"
    wait_until(lambda: is_subscribed(stream), "the streamer attaches")
    first.send("publish 3")
    first.read()
    wait_until(lambda: fetch(url, "healthz")[0] == 200, "live")
    attached = len(impatient.events("attached"))

    def release() -> None:
        wait_until(lambda: b"has ended" in fetch(url, "healthz")[1], "the streamer releases the ring")

    def attach() -> None:
        wait_until(lambda: len(impatient.events("attached")) > attached, "the streamer attaches to the second")

    async def scenario() -> None:
        async with connect(url) as client:
            head, _ = await client.next_frame()
            await client.acknowledge(head["sequence"])
            first.process.kill()
            first.process.wait()
            await client.text(lambda message: message["type"] == "state" and not message["live"])
            if anew:
                await asyncio.to_thread(release)
            with Publisher(stream, FORMAT, slots=8) as second:
                if anew:
                    await asyncio.to_thread(attach)
                states = set()
                for _ in range(20):
                    states.add(json.loads((await get(url, "healthz"))[1])["state"])
                    await asyncio.sleep(0.05)
                assert states <= {"stale", "absent"}
                assert (await get(url, "snapshot.jpg"))[0] == 503
                sequence = publish(second)
                later, _ = await client.next_frame()
                assert later["sequence"] == sequence
                assert later["epoch"] != head["epoch"]
                assert later["skipped"] == 0
                await client.text(lambda message: message["type"] == "state" and message["live"])

    run(scenario)


def test_a_capture_time_in_the_future_does_not_stay_live(impatient: StreamerProcess, newcomer: Publisher) -> None:
    with newcomer.loan() as loan:
        draw_number(loan.pixels, 1)
        loan.captured_ns = time.monotonic_ns() + 3_600_000_000_000

    def state() -> str:
        return str(json.loads(fetch(impatient.url, "healthz")[1])["state"])

    wait_until(lambda: state() == "delayed", "delayed")
    wait_until(lambda: state() == "stale", "stale")


def test_a_snapshot_contains_its_age_and_a_stale_one_is_refused(
    streamer: StreamerProcess, publisher: Publisher
) -> None:
    def publish_aged(age_s: float) -> int:
        with publisher.loan() as loan:
            loan.pixels[:] = 0
            loan.captured_ns = time.monotonic_ns() - round(age_s * 1e9)
        return loan.sequence or 0

    _, _, headers = snapshot_of(streamer, publish_aged(30.0))
    assert headers["X-State"] == "delayed"
    assert 30_000 <= float(headers["X-Age-Ms"]) < 60_000
    publish_aged(61.0)
    wait_until(lambda: fetch(streamer.url, "healthz")[0] == 503, "stale")
    refusal = 503, f"stream {streamer.stream} has no new frame\n".encode()
    assert fetch(streamer.url, "snapshot.jpg")[:2] == refusal


def test_mjpeg_shows_that_there_is_no_signal_and_continues(impatient: StreamerProcess, newcomer: Publisher) -> None:
    async def scenario(url: str) -> None:
        async with aiohttp.ClientSession() as session, session.get(f"{url}stream.mjpg") as response:
            assert response.headers["X-Accel-Buffering"] == "no"

            async def part() -> dict[str, str]:
                await response.content.readuntil(b"\r\n")
                lines = (await response.content.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines if line)
                assert (await response.content.readexactly(int(headers["Content-Length"])))[:2] == b"\xff\xd8"
                await response.content.readexactly(2)
                return headers

            async with asyncio.timeout(PATIENCE_S):
                publish(newcomer)
                first = await part()
                assert (first["X-Sequence"], first["X-Epoch"]) == ("1", f"{newcomer.statistics.epoch:x}")
                assert float(first["X-Sent-Ms"]) >= float(first["X-Captured-Ms"])
                assert float(first["X-Sent-Ms"]) >= float(response.headers["X-Received-Ms"])
                for _ in range(2):
                    assert (await part())["X-No-Signal"] == f"stream {impatient.stream} has no new frame"
                publish(newcomer)
                while "X-No-Signal" in (later := await part()):
                    pass
                assert later["X-Sequence"] == "2"

    asyncio.run(scenario(impatient.url))


@pytest.mark.parametrize("level", ["4", "-1", "x", ""])
def test_an_invalid_level_is_rejected(streamer: StreamerProcess, level: str) -> None:
    status, body, _ = fetch(streamer.url, f"stream.mjpg?level={level}")
    assert (status, body) == (400, b"level is one of 0 to 3\n")


@pytest.mark.long
def test_a_slow_viewer_gets_smaller_pictures_and_a_fast_one_the_largest(stream: str, tmp_path: Path) -> None:
    with (
        RunningPublisher(stream, FrameFormat(688, 4896), 10),
        StreamerProcess(stream, tmp_path / "log") as streamer,
    ):

        async def watch(url: str, pictures: int, took_s: float) -> list[int]:
            levels = []
            async with connect(url) as client:
                for _ in range(pictures):
                    head, jpeg = await client.next_frame()
                    width, height = head["width"], head["height"]
                    assert read_number(jpeg) == head["sequence"]
                    assert (width, height) == ((2448, 344) if head["level"] < 2 else (1224, 172))
                    assert (head["full_width"], head["full_height"]) == (4896, 688)
                    levels.append(head["level"])
                    await asyncio.sleep(took_s)
                    await client.socket.send_str(json.dumps({"ack": head["sequence"], "at": 1.0, "held_ms": 0}))
            return levels

        async def scenario() -> None:
            slow, quick = await asyncio.gather(watch(streamer.url, 6, 0.8), watch(streamer.url, 30, 0.0))
            assert slow[0] == quick[0] == 3
            assert slow[-1] == 3
            assert quick[-1] == 0

        run(scenario)


def test_every_message_echoes_the_clock_of_the_page(streamer: StreamerProcess, publisher: Publisher) -> None:
    async def scenario() -> None:
        async with connect(streamer.url) as client:
            state = await client.text(lambda message: message["type"] == "state")
            assert state["echo"] is None
            assert state["received_ms"] <= state["sent_ms"]
            await client.socket.send_str(json.dumps({"at": 123.5}))
            state = await client.text(lambda message: message["type"] == "state" and message["echo"] is not None)
            page_ms, server_ms = state["echo"]
            assert page_ms == 123.5
            assert state["received_ms"] <= server_ms <= state["sent_ms"]
            publish(publisher)
            head, _ = await client.next_frame()
            assert head["echo"] == [page_ms, server_ms]
            assert head["captured_ms"] <= head["sent_ms"]

    run(scenario)


def test_two_detectors_are_separate_and_named_when_they_fall_silent(
    streamer: StreamerProcess, publisher: Publisher
) -> None:
    sequence = publish(publisher)
    detectors = {name: DetectionPublisher(streamer.stream, name) for name in ("one", "two")}

    async def scenario() -> None:
        async with connect(streamer.url) as client:
            seen: dict[str, int] = {}

            async def listen() -> None:
                while seen.keys() != detectors.keys():
                    message = await client.text(lambda message: message.get("instance") in detectors)
                    seen[message["instance"]] = message["sequence"]

            listening = asyncio.create_task(listen())
            while not listening.done():
                for name, detector in detectors.items():
                    now_ns = time.monotonic_ns()
                    epoch = publisher.statistics.epoch
                    found = Detections(streamer.stream, name, epoch, sequence, now_ns, now_ns, HEIGHT, WIDTH, ())
                    detector.publish(found)
                await asyncio.sleep(0.02)
            await listening
            assert set(seen.values()) == {sequence}
        for detector in detectors.values():
            detector.close()
        async with connect(streamer.url) as client:  # it gets the state at once
            state = await client.text(lambda message: message["type"] == "state")
            named = [found for found in state["detectors"] if found["instance"] in detectors]
            assert [found["instance"] for found in named] == ["one", "two"]
            assert all(found["captured_ms"] <= found["received_ms"] < state["sent_ms"] for found in named)

    run(scenario)


def test_a_service_that_ends_is_named_and_stays_in_the_status(streamer: StreamerProcess, publisher: Publisher) -> None:
    publish(publisher)
    stream = streamer.stream

    async def scenario() -> None:
        async with connect(streamer.url) as client:
            with StatusServer(stream, "detector", lambda: {"service": "detector", "healthy": True, "stages": {}}):
                while "detector" not in json.loads((await get(streamer.url, "api/status"))[1])["services"]:
                    await asyncio.sleep(0.02)
            state = await client.text(lambda message: message["type"] == "state" and message["absent"])
            (absent,) = state["absent"]
            assert (absent["kind"], absent["name"], absent["reason"]) == ("service", "detector", "silent")
            assert absent["silent_s"] >= 0.5
            document = json.loads((await get(streamer.url, "api/status"))[1])["services"]["detector"]
            assert (document["healthy"], document["silent"]) == (False, True)

    run(scenario)


def test_status_and_metrics_contain_all_services(streamer: StreamerProcess, publisher: Publisher) -> None:
    async def scenario() -> None:
        own = (await unwatched(streamer.url))["services"]["streamer"]
        before = {stage: own["stages"][stage]["frames"] for stage in ("receive", "encode", "send")}
        async with connect(streamer.url) as client:
            await client.catch_up(publish(publisher))
            for _ in range(2):
                newest = publish(publisher)
                await client.next_frame()
                await client.acknowledge(newest)
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    status, body, _ = await get(streamer.url, "api/status")
                    assert status == 200
                    document = json.loads(body)
                    own = document["services"]["streamer"]
                    if own["details"]["bytes_per_second"] > 0:  # measured once a second
                        break
                    await asyncio.sleep(0.02)
            assert document["viewers"] == {"websocket": 1, "mjpeg": 0, "max": PLACES}
            assert (own["service"], own["healthy"], own["reason"]) == ("streamer", True, "")
            assert set(own["stages"]) == {"receive", "encode", "send", "detections"}
            for stage, frames in before.items():
                summary = own["stages"][stage]
                assert set(summary) == {"fps", "frames", "skipped", "latency_p50_ms", "latency_p99_ms", "age_s"}
                assert summary["frames"] - frames == 3
                assert 0 < summary["latency_p50_ms"] <= summary["latency_p99_ms"]
            assert own["details"]["clients"] == 1
            (ring,) = [found for found in document["streams"] if found["name"] == streamer.stream]
            assert (ring["live"], ring["sequence"], ring["slots"], ring["subscribers"]) == (True, newest, 8, 1)
            status, body, headers = await get(streamer.url, "metrics")
            assert status == 200
            assert headers["Content-Type"].startswith("text/plain; version=")
            families = {family.name: family for family in text_string_to_metric_families(body.decode())}
            sent = {
                (sample.labels["service"], sample.labels["stage"]): sample.value
                for sample in families["framebus_stage_frames"].samples
            }
            assert sent["streamer", "send"] == own["stages"]["send"]["frames"]
            published = {sample.labels["stream"]: sample.value for sample in families["framebus_stream_frames"].samples}
            assert published[streamer.stream] == newest
            assert "framebus_stream_slots_held" in families

    run(scenario)


def test_the_page_is_complete_and_may_load_only_from_its_own_origin(streamer: StreamerProcess) -> None:
    status, page, headers = fetch(streamer.url, "")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    text = page.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://", text)
    parts = set(re.findall(r'(?:src|href)="(page/[^"]+)"', text))
    for part in parts:
        status, content, headers = fetch(streamer.url, part)
        assert status == 200
        if part.endswith(".js"):
            assert headers["Content-Type"].partition(";")[0] in ("text/javascript", "application/javascript")
            for module in re.findall(rb'from "\./([^"]+)"', content):
                assert fetch(streamer.url, f"page/{module.decode()}")[0] == 200
    assert {"page/main.js", "page/style.css"} <= parts
    for endless in ("ws", "stream.mjpg"):
        assert asyncio.run(head(streamer.url, endless)) == 405
    for outside in ("page/../config.py", "page/%2e%2e/config.py", "page/", "nothing", "ws"):
        assert fetch(streamer.url, outside)[0] in (403, 404, 426)


def test_sigterm_ends_the_streamer_while_clients_are_connected(stream: str, tmp_path: Path) -> None:
    async def scenario(process: StreamerProcess, publisher: Publisher) -> None:
        url = process.url
        async with (
            connect(url) as quick,
            connect(url) as silent,
            aiohttp.ClientSession() as session,
            session.get(f"{url}stream.mjpg") as mjpeg,
        ):
            publish(publisher)
            await quick.next_frame()
            await silent.next_frame()
            await mjpeg.content.readline()
            process.process.send_signal(signal.SIGTERM)
            assert await quick.frame() is None
            assert quick.close_code == aiohttp.WSCloseCode.GOING_AWAY
            assert await asyncio.to_thread(process.process.wait, PATIENCE_S) == 0

    with Publisher(stream, FORMAT, slots=8) as publisher, StreamerProcess(stream, tmp_path / "log") as process:
        wait_until(lambda: process.events("attached"), "the streamer attaches")
        asyncio.run(scenario(process, publisher))
        assert process.events("stopped")
        assert complaints(process.log.read_text()) == []


def test_a_port_in_use_is_reported_in_one_sentence(stream: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError) as failed:
            run_here(stream, port)
    assert str(failed.value) == (
        f"cannot listen on 127.0.0.1 port {port}: another program listens there: stop it, or set another streamer.port"
    )


def run_here(stream: str, port: int = 0) -> None:
    """Run a streamer in this process, which must fail at its start."""
    settings = {"FRAMEBUS_STREAM__NAME": stream, "FRAMEBUS_STREAMER__PORT": str(port)}
    SERVICE.run(SERVICE.load(None, settings), threading.Event())


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"FRAMEBUS_STREAMER__PORT": "99999"},
            "FRAMEBUS_STREAMER__PORT: streamer.port: Input should be less than or equal to 65535",
        ),
        (
            {"FRAMEBUS_STREAMER__JPEG_QUALITY": "high"},
            "FRAMEBUS_STREAMER__JPEG_QUALITY: streamer.jpeg_quality: Input should be a valid",
        ),
        ({"FRAMEBUS_STREAMER__PROT": "1"}, "FRAMEBUS_STREAMER__PROT: streamer.prot: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(fault)):
        SERVICE.load(None, settings)


def test_a_second_streamer_of_the_stream_says_that_one_runs(streamer: StreamerProcess) -> None:
    assert streamer.url
    with pytest.raises(ServiceError, match="runs already"):
        run_here(streamer.stream)
    assert fetch(streamer.url, "api/status")[0] == 200
