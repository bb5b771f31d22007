"""A password is shown nowhere: not in the logs, the status, over HTTP, or in the list of processes.

The whole pipeline runs, with cameras of every kind of failure, whose password is in the environment, and a broker that
does not answer, whose password is in the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from services.common.config import ConfigurationError
from services.common.status import read_statuses
from services.supervisor.entry import SERVICE
from tests.support import ROOT, family, free_ports, wait_until

pytestmark = pytest.mark.slow

SECRET, SECRET_IN_FILE = "S3cr3tPassw0rd", "An0therW0rd"
PATHS = ("/healthz", "/metrics", "/api/status", "/")


class Refusing(socketserver.StreamRequestHandler):
    """An RTSP and HTTP server that refuses every client."""

    timeout = 5

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while line := self.rfile.readline():
                protocol = line.split()[-1].decode(errors="replace")
                sequence = b""
                while (header := self.rfile.readline()).strip():
                    if header.lower().startswith(b"cseq"):
                        sequence = header
                answer = f'{protocol} 401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n'
                self.wfile.write(answer.encode() + sequence + b"\r\n")


@pytest.fixture
def refusing() -> Iterator[int]:
    """Port of a server that answers 401."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()
    except OSError:
        return ""


def environment_of(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")


def test_a_password_is_shown_nowhere(stream: str, refusing: int, tmp_path: Path) -> None:
    video = tmp_path / "no.ts"
    video.write_bytes(b"this is no video" * 1000)
    closed, port = free_ports(1), free_ports(1)
    cameras = [
        {"name": "denied-rtsp", "url": f"rtsp://user:{SECRET}@127.0.0.1:{refusing}/live"},
        {"name": "denied-http", "url": f"http://user:{SECRET}@127.0.0.1:{refusing}/live?token={SECRET}"},
        {"name": "closed", "url": f"rtsp://user:{SECRET}@127.0.0.1:{closed}/user=a&password={SECRET}/0.sdp"},
        {"name": "odd", "url": f"rtsp://user:1%2F{SECRET}@127.0.0.1:{closed}/live"},
        {"name": "unknown", "url": f"nosuch://user:{SECRET}@127.0.0.1/live"},
        {"name": "nested", "url": f"cache:http://user:{SECRET}@127.0.0.1:{refusing}/live"},
        {"name": "no-video", "url": str(video)},
    ]
    content: dict[str, dict[str, Any]] = {
        "stream": {"name": stream, "slots": 4},
        "log": {"level": "debug"},
        "stitcher": {
            "width_px": 640,
            "height_px": 128,
            "reconnect": {"first_s": 0.1, "max_s": 0.2, "refused_first_s": 0.1, "refused_max_s": 0.2},
        },
        "streamer": {"port": port, "detections": "both"},
        "broker": {"url": f"amqp://user:{SECRET_IN_FILE}@127.0.0.1:{closed}"},
        "storage": {"url": tmp_path.as_uri()},
        "supervisor": {"services": ["stitcher", "streamer"], "status_interval_s": 0.3},
    }
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FRAMEBUS_STITCHER__CAMERAS": json.dumps(cameras)}
    config = tmp_path / "framebus.yaml"
    config.write_text(yaml.safe_dump(content))
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "services.supervisor", "--config", str(config)],
            cwd=ROOT, env=environment, stdout=output, stderr=output,
        ) as process,
    ):  # fmt: skip
        try:

            def all_is_told() -> bool:
                assert process.poll() is None, log.read_text()
                lost = [event.get("camera") for event in events(log) if event["event"] == "camera lost"]
                return (
                    any(event["event"] == "broker not connected" for event in events(log))
                    and all(lost.count(camera["name"]) >= 2 for camera in cameras)
                    and "stitcher" in read_statuses(stream)
                    and "rtsp://***@" in get(f"http://127.0.0.1:{port}/api/status")
                )

            wait_until(all_is_told, "each camera is lost twice", interval_s=0.05, detail=log.read_text)
            seen = {
                "status": json.dumps(read_statuses(stream)),
                **{
                    path: get(f"http://127.0.0.1:{port}{path}") for path in ("/healthz", "/metrics", "/api/status", "/")
                },
                "processes": "\n".join(" ".join(member.cmdline()) for member in family(process.pid)),
                "names": "\n".join(os.listdir("/dev/shm")),
            }
            services = {
                service: member
                for member in family(process.pid)
                for service in ("stitcher", "streamer")
                if member.cmdline()[1:4] == ["-m", "services", service]
            }
            assert SECRET in environment_of(services["stitcher"])
            assert SECRET not in environment_of(services["streamer"])
            assert [name for name, member in services.items() if SECRET_IN_FILE in environment_of(member)] == []
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
    seen["log"] = log.read_text()
    assert [place for place, text in seen.items() if SECRET in text or SECRET_IN_FILE in text] == []
    # The places are those where it would be seen: the cameras are named there, with their URLs masked.
    for place in ("status", "/api/status"):
        assert f"rtsp://***@127.0.0.1:{refusing}/live" in seen[place]
    assert f"rtsp://***@127.0.0.1:{refusing}/live" in seen["log"]
    assert f"rtsp://***@127.0.0.1:{closed}/user=***/0.sdp" in seen["log"]
    assert f"amqp://***@127.0.0.1:{closed}" in seen["log"]
    assert "framebus_service_healthy" in seen["/metrics"]
    assert "-m services stitcher" in seen["processes"]


def events(log: Path) -> list[dict[str, object]]:
    """The lines that are events."""
    found = []
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                found.append(event)
    return found


CONFIGURATIONS = {
    "open quote": 'stitcher:\n  cameras:\n    - {{name: a, url: "{0}}}\n',
    "wrong bracket": "stitcher:\n  cameras:\n    - {{name: a, url: {0}]\n",
    "tabulator": "stitcher:\n  cameras:\n\t- {{name: a, url: {0}}}\n",
    "no list": "stitcher:\n  cameras: {0}\n",
    "list of texts": "stitcher:\n  cameras: [{0}, {0}]\n",
    "a key": 'stitcher:\n  cameras: [{{"{0}": 1, name: a, url: x}}, {{name: b, url: x}}]\n',
    "a key of the section": 'stitcher:\n  "{0}": 1\n',
    "a section": '"{0}": 1\n',
    "a name": 'stitcher:\n  cameras: [{{name: "{0}", url: x}}, {{name: b, url: x}}]\n',
    "a space": 'stitcher:\n  cameras: [{{name: a, url: "{0} b"}}, {{name: b, url: x}}]\n',
    "a bad port": 'stitcher:\n  cameras: [{{name: a, url: "{0}:99999/"}}, {{name: b, url: "rtsp://h:{0}"}}]\n',
    "an alias": "stitcher:\n  cameras: [{{name: a, url: *{1}}}]\n",
    "a tag": "stitcher:\n  cameras: [{{name: a, url: !{1} x}}]\n",
    "an anchor": "stitcher:\n  cameras: [&{1} {{name: a, url: &{1} x}}]\n",
    "a handle": "stitcher:\n  cameras: [{{name: a, url: !{1}!x y}}]\n",
    "an int": "stitcher:\n  cameras: [{{name: a, url: !!int {1}}}]\n",
    "a float": "stitcher:\n  cameras: [{{name: a, url: !!float {1}}}]\n",
    "a stream": 'stream: {{name: "{0}", slots: "{0}"}}\n',
}


@pytest.mark.parametrize("text", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_a_faulty_configuration_is_refused_without_the_password(tmp_path: Path, text: str) -> None:
    config = tmp_path / "framebus.yaml"
    config.write_text(text.format(f"rtsp://user:{SECRET}@10.0.0.1/x", SECRET))
    with pytest.raises(ConfigurationError) as caught:
        SERVICE.load(config, {})
    assert str(config) in str(caught.value)
    assert SECRET.lower() not in str(caught.value).lower()
