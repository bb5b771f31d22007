"""Where this process runs: in a container, in a pod of Kubernetes; and how much memory it may take.

Sources: cgroups(7); the kernel's admin-guide/cgroup-v2.rst; Kubernetes, "Accessing the Kubernetes API from a Pod".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_ADDRESS: Final = "KUBERNETES_SERVICE_HOST"
"""Environment variable that every container of a pod has."""
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CONTAINER_MARKS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_MEMORY_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)
_UNLIMITED_BYTES: Final = 1 << 60
"""Version 1 writes no limit as a number that no machine has."""


def is_pod() -> bool:
    """Whether this process runs in a pod of Kubernetes."""
    return _ADDRESS in os.environ or _ACCOUNT.is_dir()


def is_container() -> bool:
    """Whether this process runs in a container, as far as that can be known."""
    return is_pod() or any(mark.exists() for mark in _CONTAINER_MARKS)


def memory_limit_bytes() -> int | None:
    """Memory that this container may take; ``None`` without a limit, or where it cannot be known."""
    for path in _MEMORY_LIMITS:
        try:
            limit_bytes = int(path.read_text())
        except (OSError, ValueError):  # another version of control groups; "max"
            continue
        if limit_bytes < _UNLIMITED_BYTES:
            return limit_bytes
    return None


def machine_memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
