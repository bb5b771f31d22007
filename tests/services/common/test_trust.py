"""Detector and streamer accept only frames of the user that the configuration names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from framebus import FrameFormat, Publisher
from tests.support import ROOT, wait_until

pytestmark = pytest.mark.slow

SMALL = FrameFormat(64, 64)
SOMEBODY_ELSE = 45678


@contextmanager
def running(service: str, stream: str, publisher_uid: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    settings = {
        "FRAMEBUS_STREAM__NAME": stream,
        "FRAMEBUS_STREAM__PUBLISHER_UID": str(publisher_uid),
        "FRAMEBUS_STREAMER__PORT": "0",
    }
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", f"services.{service}"], cwd=ROOT, env={**os.environ, **settings}, stderr=output
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


def reasons(log: Path, event: str) -> list[str]:
    """Return the reason of each of these events."""
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return [entry.get("reason", "") for entry in entries if entry["event"] == event]


@pytest.mark.parametrize(("service", "event"), [("detector", "failed"), ("streamer", "waiting for the stream")])
def test_frames_of_another_user_are_rejected(stream: str, tmp_path: Path, service: str, event: str) -> None:
    log = tmp_path / "log"
    with Publisher(stream, SMALL), running(service, stream, SOMEBODY_ELSE, log):
        wait_until(lambda: reasons(log, event), f"the {service} refuses the ring")
    (reason,) = reasons(log, event)
    assert f"/dev/shm/framebus.{stream}.ring belongs to user {os.geteuid()} " in reason
    assert f"only frames of user {SOMEBODY_ELSE} (unknown) are accepted" in reason
    assert reasons(log, "attached") == []


@pytest.mark.parametrize("service", ["detector", "streamer"])
def test_frames_of_the_configured_user_are_accepted(stream: str, tmp_path: Path, service: str) -> None:
    log = tmp_path / "log"
    with Publisher(stream, SMALL), running(service, stream, os.geteuid(), log):
        wait_until(lambda: reasons(log, "attached"), f"the {service} attaches")
