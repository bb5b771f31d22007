"""``--check`` loads what a start would load, and names each fault in one sentence."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from services.common.service import find_service
from services.common.status import StatusServer
from services.detector.models.bundle import DEFAULT_BUNDLE
from tests.support import free_ports

pytestmark = pytest.mark.slow


Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Returns the exit status and the lines of ``--check``. Each section of the configuration is a keyword."""

    def run(service: str, **sections: Mapping[str, Any]) -> tuple[int, list[str]]:
        with monkeypatch.context() as patched:
            for section, values in sections.items():
                for key, value in values.items():
                    text = value if isinstance(value, str) else json.dumps(value)
                    patched.setenv(f"FRAMEBUS_{section.upper()}__{key.upper()}", text)
            status = find_service(service).main(["--check"])
        output, errors = capsys.readouterr()
        assert output == ""
        return status, errors.splitlines()

    return run


def test_a_model_that_cannot_be_used_is_a_fault(check: Check, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((DEFAULT_BUNDLE / "nanodet_g_480_int8.onnx").read_bytes()[:1000])
    for model, told in ((tmp_path / "nowhere.onnx", "cannot be read: No such file"), (broken, "is not a usable ONNX")):
        status, (line,) = check("detector", detector={"model": str(model)})
        assert status == 2
        assert line.startswith(f"detector: the model {model} {told}")
    assert check("detector") == (0, [])


def test_a_calibration_and_a_camera_that_cannot_be_read_are_faults(check: Check, tmp_path: Path) -> None:
    calibration, video = tmp_path / "calibration.json", tmp_path / "cam1.mp4"
    calibration.write_text('{"cameras": 5}')
    video.write_bytes(b"this is no video" * 100)
    cameras = [
        {"name": "cam0", "url": str(tmp_path / "cam0.mp4")},
        {"name": "cam1", "url": f"file:{video}"},
        {"name": "cam2", "url": "rtsp://192.0.2.1/never-asked"},
    ]
    status, lines = check("stitcher", stitcher={"cameras": cameras, "calibration": {"file": str(calibration)}})
    assert status == 2
    assert lines == [
        f"stitcher: {calibration} is not a saved calibration: cameras: Input should be a valid array; delete it",
        f"stitcher: camera cam0: {cameras[0]['url']} cannot be read: No such file or directory",
        f"stitcher: camera cam1: {cameras[1]['url']} cannot be read: Invalid data found when processing input",
    ]
    nowhere = tmp_path / "no/calibration.json"
    status, (line,) = check("stitcher", stitcher={"calibration": {"file": str(nowhere)}})
    assert status == 2
    assert line == f"stitcher: the calibration cannot be written to {nowhere}: there is no folder {nowhere.parent}"
    assert check("stitcher", stitcher={"calibration": {"file": str(tmp_path / "calibration2.json")}}) == (0, [])


def test_an_unavailable_address_is_a_fault_unless_the_streamer_runs(check: Check, stream: str) -> None:
    status, (line,) = check("streamer", streamer={"host": "192.0.2.1"})
    assert (status, line) == (2, "streamer: cannot listen on 192.0.2.1 port 8080: Cannot assign requested address")
    port = free_ports(1)
    sections: dict[str, dict[str, Any]] = {"streamer": {"port": port}, "stream": {"name": stream}}
    assert check("streamer", **sections) == (0, [])
    with socket.create_server(("127.0.0.1", port)):
        status, (line,) = check("streamer", **sections)
        assert status == 2
        assert line.startswith(f"streamer: cannot listen on 127.0.0.1 port {port}: another program listens there")
        with StatusServer(stream, "streamer", lambda: {"service": "streamer"}):
            assert check("streamer", **sections) == (0, [])


def test_unavailable_ports_and_an_unusable_cache_are_faults_of_the_simulator(
    check: Check, stream: str, tmp_path: Path
) -> None:
    port = free_ports(5)
    (tmp_path / "file").write_text("")
    simulator = {"first_port": port, "cache_dir": str(tmp_path / "file")}
    with socket.create_server(("127.0.0.1", port + 2)):
        status, lines = check("simulator", simulator=simulator, stream={"name": stream})
    assert status == 2
    assert [line.partition(".")[0] for line in lines] == [
        f"simulator: Port {port + 2} of 127",
        f"simulator: The clips cannot be rendered into {tmp_path}/file: {tmp_path}/file is not a folder to write in",
    ]
    simulator["cache_dir"] = str(tmp_path / "new/cache")
    assert check("simulator", simulator=simulator, stream={"name": stream}) == (0, [])
    assert not (tmp_path / "new").exists()


def test_the_supervisor_names_the_faults_of_all_its_services(check: Check, stream: str, tmp_path: Path) -> None:
    status, lines = check(
        "supervisor",
        stream={"name": stream},
        supervisor={"services": ["stitcher", "detector", "streamer"]},
        detector={"model": str(tmp_path / "nowhere.onnx")},
        streamer={"host": "192.0.2.1"},
    )
    assert status == 2
    assert [line.partition(":")[0] for line in lines] == ["detector", "streamer"]
