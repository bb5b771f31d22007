import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from tests.services.simulator.clips import RTSP_PROGRAM, SMALL, SYSTEM_COMMAND, need_rtsp, rendered, rtsp_server
from tests.support import complaints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gstreamer() -> None:
    need_rtsp()


@pytest.fixture
def base() -> Iterator[str]:
    """Return the RTSP address of the running server."""
    with rtsp_server() as address:
        yield address


OPTIONS = {"rtsp_transport": "tcp", "analyzeduration": "500000"}


def read(url: str, count: int) -> list[Any]:
    with av.open(url, options=OPTIONS, timeout=30) as container:
        found = []
        for packet in container.demux(video=0):
            found.append(packet)
            if len(found) == count:
                break
        return found


@pytest.mark.long
def test_timestamps_grow_over_the_end_of_the_loop(base: str) -> None:
    found = read(f"{base}/cam1", SMALL.frames + 30)
    assert found[0].is_keyframe
    # FFmpeg may have no time for the first packet, because it precedes the server's first report.
    times = [packet.pts for packet in found[1:] if packet.pts is not None]
    assert len(times) == len(found) - 1
    assert {later - earlier for earlier, later in pairwise(times)} == {3600}, "25 a second"


def test_every_camera_is_served(base: str) -> None:
    def size(number: int) -> tuple[int, int]:
        with av.open(f"{base}/cam{number}", options=OPTIONS, timeout=30) as container:
            frame = next(container.decode(video=0))
            return frame.width, frame.height

    with ThreadPoolExecutor(5) as pool:  # at once, because FFmpeg looks at each stream for a while
        assert list(pool.map(size, range(5))) == [(SMALL.width_px, SMALL.height_px)] * 5


def test_a_port_in_use_is_reported_in_one_sentence(gstreamer: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*SYSTEM_COMMAND, str(RTSP_PROGRAM), str(rendered()), str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"Port {port} of 127.0.0.1 cannot be served" in done.stderr
    assert complaints(done.stderr) == []


def test_a_folder_without_clips_is_reported_in_one_sentence(gstreamer: None, tmp_path: Path) -> None:
    done = subprocess.run(
        [*SYSTEM_COMMAND, str(RTSP_PROGRAM), str(tmp_path), "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "holds no cam*.ts" in done.stderr
