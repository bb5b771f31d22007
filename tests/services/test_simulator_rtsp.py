import os
import socket
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from tests.services.simulator_clips import SMALL, rendered

PROGRAM = Path(__file__).parents[2] / "services" / "simulator" / "rtsp.py"
SYSTEM_PYTHON = "/usr/bin/python3"
INSTALL = (
    "apt install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-bad"
)
WANTED = (
    "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0');"
    "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
    "assert all(Gst.ElementFactory.find(name) for name in ('tsdemux', 'h264parse', 'rtph264pay', 'appsrc'))"
)


@pytest.fixture(scope="module")
def gstreamer() -> None:
    try:
        found = subprocess.run([SYSTEM_PYTHON, "-c", WANTED], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        found = False
    if not found:
        reason = f"{SYSTEM_PYTHON} cannot load GStreamer's RTSP server: {INSTALL}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def base(gstreamer: None) -> Iterator[str]:
    """The RTSP address of the running server."""
    command = [SYSTEM_PYTHON, str(PROGRAM), str(rendered()), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("ready: rtsp://127.0.0.1:")
            yield line.split()[1].rsplit("/", 1)[0]
            server.terminate()
            assert server.wait(30) == 0
        finally:
            server.kill()


OPTIONS = {"rtsp_transport": "tcp", "analyzeduration": "500000"}


def read(url: str, count: int) -> list[Any]:
    with av.open(url, options=OPTIONS, timeout=30) as container:
        found = []
        for packet in container.demux(video=0):
            found.append(packet)
            if len(found) == count:
                break
        return found


def test_timestamps_grow_over_the_end_of_the_loop(base: str) -> None:
    found = read(f"{base}/cam1", SMALL.frames + 30)
    assert found[0].is_keyframe
    # FFmpeg may know no time for the very first packet, before the server's first report.
    times = [packet.pts for packet in found[1:] if packet.pts is not None]
    assert len(times) == len(found) - 1
    assert {later - earlier for earlier, later in pairwise(times)} == {3600}, "25 a second"


def test_every_camera_is_served(base: str) -> None:
    for number in range(5):
        with av.open(f"{base}/cam{number}", options=OPTIONS, timeout=30) as container:
            frame = next(container.decode(video=0))
            assert (frame.width, frame.height) == (SMALL.width_px, SMALL.height_px)


def test_a_port_in_use_is_one_sentence(gstreamer: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [SYSTEM_PYTHON, str(PROGRAM), str(rendered()), str(port)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert f"Port {port} of 127.0.0.1 cannot be served" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_clips_is_one_sentence(gstreamer: None, tmp_path: Path) -> None:
    done = subprocess.run(
        [SYSTEM_PYTHON, str(PROGRAM), str(tmp_path), "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "holds no cam*.ts" in done.stderr
