"""Detector and streamer accept only frames of the user that the configuration names."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from framebus import FramebusError, FrameFormat, Publisher
from services.common.service import find_service
from tests.support import wait_until

pytestmark = pytest.mark.slow

SMALL = FrameFormat(64, 64)
SOMEBODY_ELSE = 45678


@contextmanager
def running(service: str, stream: str, publisher_uid: int) -> Iterator[tuple[Future[None], list[EventDict]]]:
    """Run a service in a thread; yield its future, and what it logs."""
    found = find_service(service)
    settings = {
        "FRAMEBUS_STREAM__NAME": stream,
        "FRAMEBUS_STREAM__PUBLISHER_UID": str(publisher_uid),
        "FRAMEBUS_STREAMER__PORT": "0",
    }
    configuration = found.load(None, settings)
    stop = threading.Event()
    with capture_logs() as log, ThreadPoolExecutor(1) as pool:
        future = pool.submit(found.run, configuration, stop)
        try:
            yield future, log
        finally:
            stop.set()


def reasons(log: list[EventDict], event: str) -> list[str]:
    """Return the reason of each of these events."""
    return [entry.get("reason", "") for entry in log if entry["event"] == event]


def assert_rejected(reason: str, stream: str) -> None:
    assert f"/dev/shm/framebus.{stream}.ring belongs to user {os.geteuid()} " in reason
    assert f"only frames of user {SOMEBODY_ELSE} (unknown) are accepted" in reason


def test_a_detector_ends_if_the_frames_are_of_another_user(stream: str) -> None:
    with Publisher(stream, SMALL), running("detector", stream, SOMEBODY_ELSE) as (future, log):
        with pytest.raises(FramebusError) as rejected:
            future.result()
        assert_rejected(str(rejected.value), stream)
        assert reasons(log, "attached") == []


def test_a_streamer_waits_if_the_frames_are_of_another_user(stream: str) -> None:
    event = "waiting for the stream"
    with Publisher(stream, SMALL), running("streamer", stream, SOMEBODY_ELSE) as (_, log):
        wait_until(lambda: reasons(log, event), "the streamer rejects the ring")
        (reason,) = reasons(log, event)
        assert_rejected(reason, stream)
        assert reasons(log, "attached") == []


@pytest.mark.parametrize("service", ["detector", "streamer"])
def test_frames_of_the_configured_user_are_accepted(stream: str, service: str) -> None:
    with Publisher(stream, SMALL), running(service, stream, os.geteuid()) as (future, log):
        wait_until(lambda: reasons(log, "attached") or future.done(), f"the {service} attaches")
        assert not future.done()
