"""What a load balancer and Prometheus learn about a late picture, and about services that have gone."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from framebus import FrameFormat
from services.common.status import StatusServer
from tests.services.streamer.support import HEIGHT, WIDTH, RunningPublisher, StreamerProcess
from tests.support import PATIENCE_S, lacks, own_stream, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def streamer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamerProcess]:
    """Run a streamer whose publishers come and go."""
    log = tmp_path_factory.mktemp("streamer") / "log"
    with own_stream() as stream, StreamerProcess(stream, log, stale_after_s=1, silent_after_s=0.5) as process:
        yield process


def get(streamer: StreamerProcess, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(streamer.url + path, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def readiness(streamer: StreamerProcess) -> tuple[int, dict[str, Any]]:
    status, text = get(streamer, "readyz")
    document: dict[str, Any] = json.loads(text)
    assert document["ready"] == (status == 200) == (document["state"] in ("live", "delayed"))
    return status, document


def test_readiness_and_metrics_show_which_service_has_gone(streamer: StreamerProcess) -> None:
    working = {"service": "detector", "healthy": True, "reason": "", "stages": {"detect": {"fps": 5.0, "frames": 7}}}
    assert readiness(streamer)[0] == 503
    with RunningPublisher(streamer.stream, FrameFormat(HEIGHT, WIDTH), 25):
        with StatusServer(streamer.stream, "detector", lambda: working):
            wait_until(lambda: readiness(streamer)[0] == 200, "it is ready", interval_s=0.05)
            wait_until(lambda: 'up{service="detector"} 1.0' in get(streamer, "metrics")[1], "the detector is up")
            assert readiness(streamer)[1]["absent"] == []
        wait_until(lambda: readiness(streamer)[1]["absent"], "the detector is absent", interval_s=0.05)
        status, document = readiness(streamer)
        (absent,) = document["absent"]
        assert (status, absent["kind"], absent["name"], absent["reason"]) == (200, "service", "detector", "silent")
    wait_until(lambda: readiness(streamer)[0] == 503, "the picture is stale", interval_s=0.05)
    lines = get(streamer, "metrics")[1].splitlines()
    for line in (
        'framebus_service_up{service="detector"} 0.0',
        'framebus_service_healthy{service="detector"} 0.0',
        'framebus_stage_fps{service="detector",stage="detect"} 0.0',
        'framebus_stage_frames_total{service="detector",stage="detect"} 7.0',
        f'framebus_stream_live{{stream="{streamer.stream}"}} 0.0',
    ):
        assert line in lines


def test_promtool_accepts_the_streamers_metrics(streamer: StreamerProcess) -> None:
    if shutil.which("promtool") is None:
        lacks("no promtool here: run 'make system-packages'")
    with RunningPublisher(streamer.stream, FrameFormat(HEIGHT, WIDTH), 25):
        wait_until(lambda: readiness(streamer)[0] == 200, "it is ready", interval_s=0.05)
        wait_until(lambda: 'stage="receive"' in get(streamer, "metrics")[1], "its own status")
        text = get(streamer, "metrics")[1]
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
