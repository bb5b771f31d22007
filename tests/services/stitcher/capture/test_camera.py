from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import structlog
from av.video.frame import VideoFrame

from services.common.status import Stage
from services.stitcher.capture.camera import CameraReader
from services.stitcher.capture.cause import Cause, backoff_s
from services.stitcher.capture.synchronizer import Timed
from services.stitcher.config import CameraSection, ReconnectSection
from tests.services.stitcher.scene import encode
from tests.support import PATIENCE_S, wait_until

pytestmark = pytest.mark.slow

SOON = ReconnectSection(first_s=0.05, max_s=0.2, refused_first_s=0.2, refused_max_s=0.4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.ts"
    encode(path, [np.full((96, 128, 3), (20, 40 + i, 200), np.uint8) for i in range(50)])
    return path


@contextmanager
def server(content: bytes, port: int = 0, *, hang: bool = False, status: int = 200) -> Iterator[int]:
    """Run an HTTP server that sends ``content``, and then closes the connection or keeps it open."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(content)
            if hang:
                closing.wait()

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer.allow_reuse_address = True
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield running.server_address[1]
        finally:
            closing.set()
            running.shutdown()
            thread.join()


class Watched:
    """A running camera and the frames that it delivered."""

    def __init__(self, url: str, read_timeout_s: float = 5.0) -> None:
        self.frames: list[Timed[VideoFrame]] = []
        self.stage = Stage()
        self.camera = CameraReader(
            CameraSection(name="cam", url=url),
            self.frames.append,
            self.stage,
            open_timeout_s=read_timeout_s,
            read_timeout_s=read_timeout_s,
            reconnect=SOON,
        )

    def __enter__(self) -> Watched:
        self.camera.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.camera.request_stop()
        assert self.camera.join(PATIENCE_S)

    def wait_for_frames(self, count: int) -> None:
        wait_until(lambda: len(self.frames) >= count, f"{count} frames", detail=lambda: self.camera.state)

    def wait_for_state(self, beginning: str) -> None:
        wait_until(
            lambda: self.camera.state.startswith(beginning), f"state {beginning!r}", detail=lambda: self.camera.state
        )

    def wait_for_connection(self, number: int) -> None:
        wait_until(lambda: self.camera.connections == number, f"connection {number}", detail=lambda: self.camera.state)


def test_frames_come_with_times_and_pixels(clip: Path) -> None:
    with server(clip.read_bytes(), hang=True) as port, Watched(f"http://127.0.0.1:{port}/cam.ts", 1.0) as watched:
        watched.wait_for_frames(40)
        assert watched.camera.state == "connected"
        captured = [frame.captured_ns for frame in watched.frames]
        assert captured == sorted(set(captured))
        assert all(frame.captured_ns <= frame.arrival_ns + 50 for frame in watched.frames)
        picture = watched.frames[0].picture
        np.testing.assert_allclose(picture.to_ndarray(format="bgr24")[40, 40], (20, 40, 200), atol=6)
        assert watched.stage.summary()["frames"] == len(watched.frames)
        watched.camera.request_stop()
    assert all(frame.picture.width == 128 for frame in watched.frames)


def test_a_server_that_dies_and_returns_is_reconnected(clip: Path) -> None:
    with server(clip.read_bytes(), hang=True) as port:
        watched = Watched(f"http://127.0.0.1:{port}/cam.ts")
        watched.camera.start()
        watched.wait_for_connection(1)
    with watched_after(watched):
        watched.wait_for_state("lost: Connection refused")
        before = len(watched.frames)
        with server(clip.read_bytes(), port, hang=True):
            watched.wait_for_connection(2)
            watched.wait_for_frames(before + 1)
            assert watched.camera.state == "connected"
            watched.camera.request_stop()
    captured = [frame.captured_ns for frame in watched.frames]
    assert captured == sorted(set(captured)), "the times continue over a new connection"


@contextmanager
def watched_after(watched: Watched) -> Iterator[None]:
    """End a camera that was started before."""
    try:
        yield
    finally:
        watched.__exit__()


def test_a_silent_server_is_disconnected_after_the_read_timeout(clip: Path) -> None:
    with (
        server(clip.read_bytes()[: 188 * 40], hang=True) as port,
        Watched(f"http://127.0.0.1:{port}/", read_timeout_s=0.3) as watched,
    ):
        watched.wait_for_state("lost")
        assert "no data in time" in watched.camera.state


def test_a_port_that_accepts_and_sends_nothing_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with Watched(f"rtsp://127.0.0.1:{port}/", read_timeout_s=0.3) as watched:
            watched.wait_for_state("lost")


@pytest.mark.parametrize("content", [b"", b"no video at all " * 500])
def test_a_server_of_other_content_is_shown_in_the_state(content: bytes) -> None:
    with server(content) as port, Watched(f"http://127.0.0.1:{port}/cam") as watched:
        watched.wait_for_state("lost")
        assert watched.frames == []


@pytest.mark.parametrize(
    ("status", "state", "cause"),
    [
        (401, "refused: Server returned 401", Cause.REFUSED),
        (403, "refused: Server returned 403", Cause.REFUSED),
        (404, "lost: Server returned 404", Cause.NOT_FOUND),
        (500, "lost: Server returned 5XX", Cause.OTHER),
    ],
)
def test_a_refusal_is_shown_in_the_state_and_retried(clip: Path, status: int, state: str, cause: Cause) -> None:
    with server(b"", status=status) as port, Watched(f"http://user:hunter2@127.0.0.1:{port}/cam") as watched:
        watched.wait_for_state(state)
        assert watched.camera.cause is cause
        assert "hunter2" not in watched.camera.state
    with server(b"", status=status) as port:
        watched = Watched(f"http://127.0.0.1:{port}/cam")
        watched.camera.start()
        watched.wait_for_state(state)
    with watched_after(watched), server(clip.read_bytes(), port, hang=True):
        watched.wait_for_state("connected")
        assert watched.camera.cause is None
        watched.camera.request_stop()


def test_an_unknown_protocol_is_shown_in_the_state() -> None:
    with Watched("gopher2://host/x") as watched:
        watched.wait_for_state("lost: Protocol not found")


def test_neither_logs_nor_state_contain_a_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with structlog.testing.capture_logs() as events:
        for url in (f"http://user:hunter2@127.0.0.1:{port}/x?token=hunter2", f"rtsp://user:hunter2@127.0.0.1:{port}/x"):
            with Watched(url) as watched:
                watched.wait_for_state("lost")
                assert "Connection refused" in watched.camera.state
            assert "hunter2" not in watched.camera.state
    assert [event for event in events if event["event"] == "camera lost"]
    assert "hunter2" not in repr(events)
    assert "***@127.0.0.1" in repr(events)


def test_a_file_plays_at_its_own_speed(clip: Path) -> None:
    with Watched(str(clip)) as watched:
        watched.wait_for_frames(25)
    steps = np.diff([frame.captured_ns for frame in watched.frames[:25]])
    np.testing.assert_allclose(steps, 40_000_000, atol=100)


def test_a_missing_file_is_shown_in_the_state(tmp_path: Path) -> None:
    with Watched(str(tmp_path / "none.ts")) as watched:
        watched.wait_for_state("lost: No such file or directory")


def test_the_wait_doubles_up_to_a_limit_and_has_jitter() -> None:
    section = ReconnectSection(first_s=0.5, max_s=15)
    assert [backoff_s(failures, section, 1.0) for failures in range(8)] == [0.5, 0.5, 1, 2, 4, 8, 15, 15]
    assert backoff_s(10_000, section, 0.0) == 7.5


def test_a_refused_log_in_waits_minutes() -> None:
    section = ReconnectSection()
    assert [backoff_s(failures, section, 0.0, Cause.REFUSED) for failures in range(1, 6)] == [120, 240, 480, 900, 900]
    assert backoff_s(1, section, 1.0, Cause.REFUSED) == 132, "jitter does not shorten it"
