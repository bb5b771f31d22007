"""Small clips for the tests of the simulator and the stitcher, and a real RTSP server for them."""

import functools
import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.simulator.config import SimulatorSection
from services.simulator.render import render
from tests.support import ROOT, lacks

SYSTEM_PYTHON = "/usr/bin/python3"
SYSTEM_COMMAND = (SYSTEM_PYTHON, "-W", "ignore")
"""Its modules, such as PyGObject, are as old as the distribution makes them: their warnings are not framebus's."""
RTSP_PROGRAM = ROOT / "services" / "simulator" / "rtsp.py"
_WANTED = (
    "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0');"
    "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
    "assert all(Gst.ElementFactory.find(name) for name in ('tsdemux', 'h264parse', 'rtph264pay', 'appsrc'))"
)


def _cache_dir() -> Path:
    """Return a folder for clips of this version of the simulator, which all processes and runs share."""
    digest = hashlib.sha256()
    for source in sorted((ROOT / "services" / "simulator").rglob("*.py")):
        digest.update(source.read_bytes())
    return ROOT / ".cache" / "tests" / digest.hexdigest()[:16]


SMALL = SimulatorSection(width_px=640, height_px=360, duration_s=2, cache_dir=_cache_dir())


@functools.cache
def rendered() -> Path:
    """Return the folder with small clips of two seconds."""
    return render(SMALL)


def need_rtsp() -> None:
    """Skip the test, or in CI fail it, if the system's Python cannot serve RTSP."""
    try:
        found = subprocess.run([*SYSTEM_COMMAND, "-c", _WANTED], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        found = False
    if not found:
        lacks(f"{SYSTEM_PYTHON} cannot load GStreamer's RTSP server: run 'make system-packages' as root")


@contextmanager
def rtsp_server() -> Iterator[str]:
    """Yield the address of an RTSP server with the five cameras, which must end cleanly."""
    need_rtsp()
    command = [*SYSTEM_COMMAND, str(RTSP_PROGRAM), str(rendered()), "0"]
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
