"""The environment of this process: container or Kubernetes pod, and how much memory it may use.

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
"""Version 1 of control groups expresses "unlimited" as a number that is larger than any machine's memory."""


def is_pod() -> bool:
    """Return whether this process runs in a pod of Kubernetes."""
    return _ADDRESS in os.environ or _ACCOUNT.is_dir()


def is_container() -> bool:
    """Return whether this process runs in a container. A container without any known mark is not recognised."""
    return is_pod() or any(mark.exists() for mark in _CONTAINER_MARKS)


def memory_limit_bytes() -> int | None:
    """Return how much memory this container may use; ``None`` if it is unlimited or unknown."""
    for path in _MEMORY_LIMITS:
        try:
            limit_bytes = int(path.read_text())
        except (OSError, ValueError):  # not this version of control groups, or "max"
            continue
        if limit_bytes < _UNLIMITED_BYTES:
            return limit_bytes
    return None


def machine_memory_bytes() -> int:
    """Return the physical memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
