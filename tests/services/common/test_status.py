"""Stages count frames, documents say whether a service is healthy, and sockets serve them."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framebus import companion_path
from services.common import status
from services.common.service import ServiceError
from services.common.status import AlreadyServed, Stage, StatusServer, read_status, read_statuses, status_document


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the time that stages see, in seconds."""
    now_s = [100.0]

    class Clock:
        monotonic = staticmethod(lambda: now_s[0])

    monkeypatch.setattr(status, "time", Clock)
    return lambda value: now_s.__setitem__(0, value)


def test_a_stage_without_frames_has_no_age_and_no_latency() -> None:
    assert Stage().summary() == {
        "fps": 0.0,
        "frames": 0,
        "skipped": 0,
        "latency_p50_ms": None,
        "latency_p99_ms": None,
        "age_s": None,
    }


def test_a_stage_reports_rate_totals_and_latencies(clock: Callable[[float], None]) -> None:
    stage = Stage()
    for number in range(101):
        clock(100 + number * 0.04)
        stage.record(number / 1000, skipped=number % 2)
    assert stage.summary() == {
        "fps": 25.0,
        "frames": 101,
        "skipped": 50,
        "latency_p50_ms": 50.0,
        "latency_p99_ms": 99.0,
        "age_s": 0.0,
    }


def test_rates_cover_the_last_seconds_and_totals_all_time(clock: Callable[[float], None]) -> None:
    stage = Stage()
    for number in range(10):
        clock(100 + number)
        stage.record(0.5)
    clock(110.5)
    assert stage.summary()["fps"] == pytest.approx(3 / 4.5, abs=0.01)
    clock(200)
    summary = stage.summary()
    assert (summary["fps"], summary["latency_p50_ms"]) == (0.0, None)
    assert (summary["frames"], summary["age_s"]) == (10, 91.0)


def test_an_unknown_latency_counts_as_a_frame_only() -> None:
    stage = Stage()
    stage.record()
    stage.record(0.020)
    stage.record(math.nan)
    summary = stage.summary()
    assert (summary["frames"], summary["latency_p50_ms"], summary["latency_p99_ms"]) == (3, 20.0, 20.0)


def test_threads_may_record_at_once() -> None:
    stage = Stage()

    def record() -> None:
        for _ in range(2000):
            stage.record(0.001, 1)

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        stage.summary()
    summary = stage.summary()
    assert (summary["frames"], summary["skipped"]) == (8000, 8000)


def test_a_service_is_healthy_when_every_stage_works(clock: Callable[[float], None]) -> None:
    quick, slow, never = Stage(), Stage(), Stage()
    slow.record()
    clock(103)
    quick.record()
    stages = {"quick": quick, "slow": slow, "never": never}
    document = status_document("service", stages, stale_after_s=2, details={"number": 1})
    assert (document["service"], document["healthy"], document["details"]) == ("service", False, {"number": 1})
    assert document["reason"] == "slow: newest frame is 3.0 s old; never: no frame yet"
    assert set(document["stages"]) == {"quick", "slow", "never"}
    document = status_document("service", stages, stale_after_s=2, optional=("slow", "never"))
    assert (document["healthy"], document["reason"]) == (True, "")
    assert json.loads(json.dumps(document)) == document


def test_the_status_is_served_until_it_is_closed(stream: str) -> None:
    calls = []

    def collect() -> dict[str, int]:
        calls.append(1)
        return {"asked": len(calls)}

    with StatusServer(stream, "one", collect) as server:
        assert server.path.stat().st_mode & 0o777 == 0o660
        assert [read_status(server.path) for _ in range(2)] == [{"asked": 1}, {"asked": 2}]
        with StatusServer(stream, "two", lambda: {"two": True}):
            assert read_statuses(stream) == {"one": {"asked": 3}, "two": {"two": True}}
        assert set(read_statuses(stream)) == {"one"}
    assert not server.path.exists()
    assert read_statuses(stream) == {}
    with pytest.raises(FileNotFoundError):
        read_status(server.path)


def test_a_client_that_stays_connected_does_not_block_others(stream: str) -> None:
    with (
        StatusServer(stream, "one", lambda: {"long": "x" * 900_000}) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as idle,
    ):
        idle.connect(str(server.path))
        assert len(read_status(server.path)["long"]) == 900_000


def test_a_socket_that_a_dead_service_left_is_replaced(stream: str) -> None:
    path = companion_path(stream, "status.one.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    assert path.exists()
    assert read_statuses(stream) == {}
    with StatusServer(stream, "one", lambda: {"alive": True}):
        assert read_statuses(stream) == {"one": {"alive": True}}


def test_the_socket_of_a_running_service_is_not_replaced(stream: str) -> None:
    with StatusServer(stream, "one", lambda: {"first": True}):
        with pytest.raises(AlreadyServed, match="this service runs already"):
            StatusServer(stream, "one", lambda: {"second": True})
        assert read_statuses(stream) == {"one": {"first": True}}


def test_a_path_that_cannot_be_bound_is_reported_in_one_sentence(stream: str) -> None:
    path = companion_path(stream, "status.one.sock")
    path.mkdir()
    try:
        with pytest.raises(ServiceError, match="the status cannot be served"):
            StatusServer(stream, "one", dict)
    finally:
        path.rmdir()


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """Return a function that starts a server which sends the given bytes instead of a status; it returns the path."""
    ends: list[tuple[threading.Thread, socket.socket]] = []

    def start(content: bytes) -> Path:
        path = tmp_path / f"{len(ends)}.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(content)

        thread = threading.Thread(target=answer)
        thread.start()
        ends.append((thread, listener))
        return path

    yield start
    for thread, listener in ends:
        thread.join()
        listener.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'"' + b"x" * (2 << 20)])
def test_an_answer_that_is_not_a_status_is_rejected(answering: Callable[[bytes], Path], content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_status(answering(content))


def test_a_service_that_does_not_answer_times_out(stream: str) -> None:
    path = companion_path(stream, "status.hung.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hung:
        hung.bind(str(path))
        hung.listen()
        try:
            with StatusServer(stream, "one", lambda: {"alive": True}):
                assert read_statuses(stream, timeout_s=0.1) == {"one": {"alive": True}}
            with pytest.raises(TimeoutError):
                read_status(path, timeout_s=0.1)
        finally:
            path.unlink()


def test_the_window_is_in_real_seconds() -> None:
    stage = Stage()
    stage.record()
    time.sleep(0.02)
    age_s = stage.summary()["age_s"]
    assert age_s is not None
    assert age_s >= 0.02
