"""Free space in /dev/shm: checks that it suffices, and tells what to configure if it does not.

Sources: statvfs(3); posix_fallocate(3); tmpfs(5).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from framebus.errors import NotEnoughSharedMemory
from framebus.shm.host import is_pod
from framebus.shm.paths import SHM_DIRECTORY

MIB: Final = 1 << 20


def require_space(size: int, what: str) -> None:
    """Check that a further file of ``size`` bytes fits in /dev/shm.

    Raises:
        NotEnoughSharedMemory: It does not fit; the message says what to configure.
    """
    space = os.statvfs(SHM_DIRECTORY)
    if size > space.f_bavail * space.f_frsize or _lacks_files(space):
        raise _not_enough(space, size, what)


def no_room(error: OSError, size: int, what: str) -> NotEnoughSharedMemory | None:
    """Convert the kernel's error if memory or file space is exhausted, else return ``None``.

    Args:
        error: The kernel's error.
        size: Bytes that were requested.
        what: What they were requested for.
    """
    # The control group's limit, not the file system, has rejected the allocation.
    if error.errno == errno.ENOMEM:
        remedy = "raise limits.memory of this container" if is_pod() else "raise mem_limit"
        reason = f"the memory limit leaves no {-(-size // MIB)} MiB for {what}: {remedy}"
        return NotEnoughSharedMemory(errno.ENOMEM, reason)
    return _not_enough(os.statvfs(SHM_DIRECTORY), size, what) if error.errno == errno.ENOSPC else None


def _not_enough(space: os.statvfs_result, size: int, what: str) -> NotEnoughSharedMemory:
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    if _lacks_files(space):
        reason = f"/dev/shm has no room for one more file, {what}: remove some, or mount it with a larger nr_inodes"
    else:
        wanted_mib = -(-(total - free + size) // (32 * MIB)) * 32
        remedy = f"set shm_size: {wanted_mib}m"
        if is_pod():
            remedy = f"mount on it an emptyDir with medium: Memory and sizeLimit: {wanted_mib}Mi"
        reason = f"/dev/shm has {free // MIB} MiB free, {what} needs {-(-size // MIB)} MiB: {remedy}"
    return NotEnoughSharedMemory(errno.ENOSPC, reason)


def _lacks_files(space: os.statvfs_result) -> bool:
    return space.f_files > 0 and space.f_favail == 0  # tmpfs reports 0 inodes if they are unlimited: tmpfs(5)
