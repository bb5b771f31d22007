"""Room in /dev/shm: whether there is enough, and what to set where there is not.

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
    """Check that /dev/shm has room for ``size`` bytes in one more file.

    Raises:
        NotEnoughSharedMemory: It has not; the message says what to set.
    """
    space = os.statvfs(SHM_DIRECTORY)
    if size > space.f_bavail * space.f_frsize or _lacks_files(space):
        raise _not_enough(space, size, what)


def no_room(error: OSError, size: int, what: str) -> NotEnoughSharedMemory | None:
    """What the error means if it says that there is no room; ``None`` when it says something else.

    Args:
        error: What the kernel answered.
        size: Bytes that were wanted.
        what: What they were wanted for.
    """
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
    return space.f_files > 0 and space.f_favail == 0  # no files at all are counted where they have no limit: tmpfs(5)
