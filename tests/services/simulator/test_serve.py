import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from services.common.config import LogSection, StreamSection
from services.common.service import ServiceError
from services.simulator.config import YAWS_DEG, SimulatorConfiguration, SimulatorSection
from services.simulator.render import clips_folder
from services.simulator.serve import Loop
from services.simulator.service import Cameras, main
from tests.services.simulator.clips import SMALL, rendered
from tests.support import complaints, free_ports

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TICKS_PER_FRAME = 3600


@pytest.fixture(scope="module")
def cameras() -> Iterator[Cameras]:
    """Return the running cameras, which each test must leave free for the next client."""
    section = SMALL.model_copy(update={"first_port": free_ports(5)})
    with Cameras(section, rendered(), LogSection(format="text")) as served:
        yield served
        served.check()


@pytest.fixture
def two_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are two cameras, because each one is a process that takes its time to start."""
    monkeypatch.setattr("services.simulator.config.YAWS_DEG", YAWS_DEG[:2])


def connect(url: str) -> av.container.InputContainer:
    """Open a stream whose server may still be starting, or be about to listen again."""
    for _ in range(300):
        try:
            return av.open(url, timeout=20)
        except (ConnectionError, av.error.EOFError):
            time.sleep(0.1)
    raise AssertionError(f"nobody serves {url}")


def packets(url: str, count: int) -> list[tuple[int, bool]]:
    with connect(url) as container:
        found = []
        for packet in container.demux(video=0):
            assert packet.pts is not None
            found.append((packet.pts, packet.is_keyframe))
            if len(found) == count:
                break
        return found


def pictures(url: str, count: int) -> dict[int, np.ndarray]:
    """Return decoded pictures by their place in the loop."""
    with connect(url) as container:
        found: dict[int, np.ndarray] = {}
        for frame in container.decode(video=0):
            assert frame.pts is not None
            found[frame.pts // TICKS_PER_FRAME % SMALL.frames] = frame.to_ndarray(format="bgr24")
            if len(found) == count:
                break
        return found


@pytest.mark.long
def test_timestamps_grow_over_the_end_of_the_loop(cameras: Cameras) -> None:
    found = packets(cameras.urls[0], SMALL.frames + 20)
    assert found[0][1], "the first packet can be decoded"
    times = [pts for pts, _ in found]
    assert {later - earlier for earlier, later in pairwise(times)} == {TICKS_PER_FRAME}
    keys = {pts // TICKS_PER_FRAME % 25 for pts, key in found if key}
    assert len(keys) == 1, "key frames every 25 frames, over the loop's end too"


@pytest.mark.long
def test_the_same_time_shows_the_same_picture_to_every_client(cameras: Cameras) -> None:
    first, again = pictures(cameras.urls[1], 30), pictures(cameras.urls[1], 30)
    shared = first.keys() & again.keys()
    assert len(shared) >= 5
    for place in shared:
        np.testing.assert_array_equal(first[place], again[place])


@pytest.mark.long
def test_a_timestamp_names_the_same_frame_for_all_cameras(cameras: Cameras) -> None:
    for number, url in enumerate(cameras.urls):
        with av.open(str(rendered() / f"cam{number}.ts")) as container:
            clip = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
        for place, picture in pictures(url, 3).items():
            np.testing.assert_array_equal(picture, clip[place])


def test_a_client_that_disconnects_makes_room_for_the_next(cameras: Cameras) -> None:
    for _ in range(3):
        assert packets(cameras.urls[4], 2)[0][1]
    cameras.check()


@pytest.mark.usefixtures("two_cameras")
def test_a_camera_that_dies_is_noticed_and_no_process_is_left_behind() -> None:
    section = SMALL.model_copy(update={"first_port": free_ports(5)})
    with Cameras(section, rendered(), LogSection()) as served:
        processes = list(served._processes)
        connect(served.urls[0]).close()
        served._processes[1].kill()
        served._processes[1].wait()
        with pytest.raises(ServiceError, match=f"serves port {section.first_port + 1} ended"):
            served.check()
    assert all(process.returncode is not None for process in processes)


def test_a_port_in_use_is_named_before_anything_starts(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.simulator.service.rendered", None)
    section = SMALL.model_copy(update={"first_port": free_ports(5)})
    configuration = SimulatorConfiguration(stream=StreamSection(name=stream), simulator=section)
    named = pytest.raises(ServiceError, match=f"Port {section.first_port + 2} of 127.0.0.1 cannot be served")
    with socket.create_server(("127.0.0.1", section.first_port + 2)), named:
        main(configuration, threading.Event())


@pytest.mark.usefixtures("two_cameras")
def test_a_port_that_is_taken_later_is_also_named() -> None:
    section = SMALL.model_copy(update={"first_port": free_ports(5)})
    taken = socket.create_server(("127.0.0.1", section.first_port))
    with taken, Cameras(section, rendered(), LogSection()) as served:
        served._processes[0].wait()
        with pytest.raises(ServiceError, match=f"Port {section.first_port} of 127.0.0.1 cannot be served"):
            served.check()


def start(tmp_path: Path, section: SimulatorSection) -> subprocess.Popen[str]:
    config = tmp_path / "framebus.yaml"
    stream = f"test-{secrets.token_hex(6)}"
    config.write_text(f"simulator: {section.model_dump_json()}\nstream: {{name: {stream}}}\nlog: {{format: text}}\n")
    return subprocess.Popen(
        [sys.executable, "-m", "services.simulator", "--config", str(config)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("FRAMEBUS_")},
    )


def test_the_service_serves_and_stops_on_sigterm(tmp_path: Path) -> None:
    rendered()
    section = SMALL.model_copy(update={"first_port": free_ports(5)})
    with start(tmp_path, section) as service:
        try:
            url = f"http://127.0.0.1:{section.first_port + 1}/cam1.ts"
            with connect(url) as container:
                next(container.decode(video=0))
                service.send_signal(signal.SIGTERM)
                _, log = service.communicate(timeout=60)
        finally:
            service.kill()
    assert service.returncode == 0
    assert complaints(log) == []
    assert "stopped" in log.splitlines()[-1]


def test_the_latest_key_frame_is_found_in_every_turn() -> None:
    loop = Loop.read(rendered() / "cam0.ts")
    assert [loop.latest_key_frame(position) for position in (0, 24, 25, 49, 50, 149)] == [0, 0, 25, 25, 50, 125]


def test_the_service_stops_while_it_renders(tmp_path: Path) -> None:
    section = SimulatorSection(cache_dir=tmp_path / "cache", first_port=free_ports(5))
    with start(tmp_path, section) as service:
        try:
            assert service.stderr is not None
            for line in service.stderr:
                if "rendering" in line:
                    break
            service.send_signal(signal.SIGTERM)
            _, log = service.communicate(timeout=60)
        finally:
            service.kill()
    assert service.returncode == 0
    assert complaints(log) == []
    assert not clips_folder(section).exists()


def test_the_service_says_in_one_sentence_why_it_cannot_render(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    section = SimulatorSection(cache_dir=tmp_path / "file" / "cache", first_port=free_ports(5))
    with start(tmp_path, section) as service:
        _, log = service.communicate(timeout=60)
    assert service.returncode == 1
    assert "Set simulator.cache_dir" in log
    assert complaints(log) == []
