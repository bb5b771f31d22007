"""Small clips and free ports for the simulator's tests."""

import functools
import random
import socket
import tempfile
from pathlib import Path

from services.simulator.config import SimulatorSection
from services.simulator.render import render

_FOLDER = tempfile.TemporaryDirectory(prefix="framebus-simulator-")
SMALL = SimulatorSection(width_px=640, height_px=360, duration_s=2, cache_dir=Path(_FOLDER.name))


@functools.cache
def rendered() -> Path:
    """The folder with small clips of two seconds, rendered once per test process."""
    return render(SMALL)


def free_ports(count: int = 5) -> int:
    """First of some consecutive ports of the loopback that are free now."""
    while True:
        first = random.randrange(20_000, 30_000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
