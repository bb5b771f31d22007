"""/dev/shm itself: checks that it is usable, and lists the streams in it."""

from __future__ import annotations

import errno
import os
import stat

from framebus.errors import FramebusError, PermissionDenied
from framebus.shm.identity import describe_user
from framebus.shm.paths import PREFIX, SHM_DIRECTORY, check_name, file_names


def check_directory(*, writable: bool = False) -> None:
    """Check that this process can list /dev/shm.

    Args:
        writable: Whether it must also be able to create files there.

    Raises:
        PermissionDenied: The permissions of /dev/shm deny access to this user, or it is mounted read-only.
        FramebusError: /dev/shm is missing, or not a directory.
    """
    fault = directory_fault(writable=writable)
    if fault is not None:
        number, (what, remedy) = fault
        sentence = f"{what}: {remedy}"
        raise PermissionDenied(number, sentence) if number in (errno.EACCES, errno.EROFS) else FramebusError(sentence)


def directory_fault(*, writable: bool) -> tuple[int, tuple[str, str]] | None:
    """Return an errno, a fault and its remedy if something prevents this process from using /dev/shm, else ``None``."""
    try:
        status = SHM_DIRECTORY.stat()
        read_only = bool(os.statvfs(SHM_DIRECTORY).f_flag & os.ST_RDONLY)
    except OSError as error:
        what = "does not exist" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
        return error.errno or errno.ENOENT, (f"{SHM_DIRECTORY} {what}", f"mount a tmpfs on {SHM_DIRECTORY}")
    if not stat.S_ISDIR(status.st_mode):
        return errno.ENOTDIR, (f"{SHM_DIRECTORY} is not a directory", f"mount a tmpfs on {SHM_DIRECTORY}")
    # access(2) would also report this, but not why.
    if writable and read_only:
        return errno.EROFS, (f"{SHM_DIRECTORY} is mounted read-only", "mount it writable")
    for verb, needed in [("read", os.R_OK | os.X_OK), *([("written", os.W_OK)] if writable else [])]:
        if not os.access(SHM_DIRECTORY, needed, effective_ids=True):
            mode = f"it belongs to {describe_user(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):04o}"
            what = f"{SHM_DIRECTORY} cannot be {verb} by user {os.geteuid()}, since {mode}"
            return errno.EACCES, (what, f"have its owner run 'chmod 1777 {SHM_DIRECTORY}'")
    return None


def stream_names() -> list[str]:
    """Return the names of all streams that have a file in /dev/shm, sorted."""
    names = set()
    for file in file_names():
        # The name of a stream contains no dot, so the first one ends it.
        name, dot, _ = file.removeprefix(PREFIX).partition(".")
        if not dot or not file.startswith(PREFIX):
            continue
        try:
            names.add(check_name(name))
        except FramebusError:  # a file of another program, whose name only begins like ours
            continue
    return sorted(names)
