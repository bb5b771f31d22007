"""Memory control groups for the measurement, version 1 or 2, and their counters."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.storage.figures import NOT_HERE, NotHere
from bench.storage.mounts import held_back, need_root

V1: Final = Path("/sys/fs/cgroup/memory")
V2: Final = Path("/sys/fs/cgroup")


class Group:
    """A memory control group."""

    def __init__(self, path: Path, second: bool) -> None:
        self.path = path
        self._second = second

    def limit(self, limit_bytes: int) -> None:
        """Set the memory limit of the group."""
        name = "memory.max" if self._second else "memory.limit_in_bytes"
        (self.path / name).write_text(str(limit_bytes))

    def shared_bytes(self) -> int:
        """Return the shared memory that is charged to the group."""
        for line in (self.path / "memory.stat").read_text().splitlines():
            name, value = line.split()
            if name == "shmem":
                return int(value)
        raise NotHere(f"{NOT_HERE}: memory.stat has no line shmem")

    def kills(self) -> int:
        """Return how many processes of the group the kernel has killed for memory."""
        path = self.path / ("memory.events" if self._second else "memory.oom_control")
        return sum(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("oom_kill "))

    def start(self, *arguments: str, before: str = "") -> subprocess.Popen[str]:
        """Start Python in the group: a shell joins the group, runs the commands ``before``, and executes Python."""
        script = f'echo $$ > "{self.path}/cgroup.procs" && {before or "true"} && exec "$@"'
        return subprocess.Popen(
            # A mount namespace, so that the /dev/shm that is mounted for the program is not that of the machine.
            ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@contextmanager
def group(limit_bytes: int | None = None) -> Iterator[Group]:
    """Yield a new group. At the end, kill its processes and remove it.

    Raises:
        NotHere: There is no memory controller, or this process may not use it.
    """
    need_root()
    # With version 1, each controller has a hierarchy of its own.
    second = not (V1 / "cgroup.procs").exists()
    parent = V2 if second else V1
    if second and "memory" not in (parent / "cgroup.controllers").read_text().split():
        raise NotHere(f"{NOT_HERE}: no memory controller in {parent}")
    path = parent / f"bench-storage-{secrets.token_hex(4)}"
    try:
        path.mkdir()
        ours = Group(path, second)
        if limit_bytes is not None:
            ours.limit(limit_bytes)
        yield ours
    except OSError as error:
        raise NotHere(f"{NOT_HERE}: the memory controller rejected the group: {error}") from None
    finally:
        with held_back():
            _remove(path)


def _remove(path: Path) -> None:
    deadline_s = time.monotonic() + 5
    # A group can be removed only after its last process has ended, which takes a moment after the kill.
    while path.exists() and time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            for pid in (path / "cgroup.procs").read_text().split():
                subprocess.run(["kill", "-KILL", pid], capture_output=True, check=False)
            path.rmdir()
            return
        time.sleep(0.05)
