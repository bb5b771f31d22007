"""The health check: its output and its exit status."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from framebus import companion_path
from services.common import health
from services.common.status import Stage, StatusServer, status_document
from tests.support import ROOT


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.common.health", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_service_with_fresh_frames_is_healthy(stream: str) -> None:
    stage = Stage()
    stage.record()
    with StatusServer(stream, stream, lambda: status_document(stream, {"work": stage}, stale_after_s=math.inf)):
        done = check(stream)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_service_without_frames_is_not_healthy(stream: str) -> None:
    with StatusServer(stream, stream, lambda: status_document(stream, {"work": Stage()}, stale_after_s=math.inf)):
        done = check(stream)
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{stream}: work: no frame yet\n", "")


def test_a_service_without_frames_is_alive(stream: str) -> None:
    with StatusServer(stream, stream, lambda: status_document(stream, {"work": Stage()}, stale_after_s=math.inf)):
        done = check("--alive", stream)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_service_is_not_alive(stream: str) -> None:
    done = check("--alive", stream)
    assert (done.returncode, done.stdout) == (1, f"no {stream} serves its status in /dev/shm\n")


def test_a_service_whose_newest_frame_is_old_is_not_healthy(stream: str) -> None:
    stage = Stage()
    stage.record()
    with StatusServer(stream, stream, lambda: status_document(stream, {"work": stage}, stale_after_s=-1.0)):
        assert health.fault_of_service(stream).startswith(f"{stream}: work: newest frame is ")


def test_a_missing_service_is_not_healthy(stream: str) -> None:
    done = check(stream)
    assert (done.returncode, done.stdout) == (1, f"no {stream} serves its status in /dev/shm\n")


def test_a_socket_left_by_a_killed_service_is_not_healthy(stream: str) -> None:
    path = companion_path(stream, f"status.{stream}.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    try:
        assert health.fault_of_service(stream) == f"no {stream} serves its status in /dev/shm"
    finally:
        path.unlink()


def test_only_the_stream_of_the_environment_is_checked(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ill = status_document(stream, {"work": Stage()}, stale_after_s=math.inf)
    with (
        StatusServer(f"{stream}-a", stream, lambda: {**ill, "healthy": True}),
        StatusServer(f"{stream}-b", stream, lambda: ill),
    ):
        monkeypatch.setenv("FRAMEBUS_STREAM__NAME", f"{stream}-a")
        assert check(stream).returncode == 0
        monkeypatch.setenv("FRAMEBUS_STREAM__NAME", f"{stream}-b")
        assert check(stream).returncode == 1
        monkeypatch.setenv("FRAMEBUS_STREAM__NAME", f"{stream}-c")
        assert check(stream).stdout == f"no {stream} serves its status for the stream {stream}-c in /dev/shm\n"
        monkeypatch.delenv("FRAMEBUS_STREAM__NAME")
        assert check(stream).returncode == 1, "one of the two is unhealthy"


def test_the_check_does_not_wait_for_a_service_that_hangs(stream: str) -> None:
    path = companion_path(stream, f"status.{stream}.sock")
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()
        try:
            for alive in (False, True):
                assert health.fault_of_service(stream, timeout_s=0.05, alive=alive) == f"{path}: timed out"
        finally:
            path.unlink()


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Run an RTSP server with a fixed answer; yield a camera's URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                asked = connection.recv(4096)
                connection.sendall(answer if asked.startswith(b"OPTIONS rtsp://127.0.0.1:") else b"")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/cam0"
        thread.join()


def test_a_camera_that_answers_is_healthy() -> None:
    with answering(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: OPTIONS, PLAY\r\n\r\n") as url:
        assert health.fault_of_camera(url) == ""


@pytest.mark.parametrize("answer", [b"RTSP/1.0 404 Not Found\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b""])
def test_another_answer_is_a_fault(answer: bytes) -> None:
    with answering(answer) as url:
        assert health.fault_of_camera(url).startswith(f"{url}: the answer is ")


def test_a_port_without_a_server_is_a_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = check(f"rtsp://127.0.0.1:{port}/cam0")
    assert (done.returncode, done.stdout) == (1, f"rtsp://127.0.0.1:{port}/cam0: Connection refused\n")


def test_a_wrong_command_line_is_reported() -> None:
    assert health.main([]) == health.EXIT_USAGE


def test_a_check_costs_little_because_it_imports_no_library() -> None:
    program = (
        "import sys, services.common.health; print(sorted({'numpy', 'zmq', 'pydantic', 'framebus'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
