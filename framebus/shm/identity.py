"""Users and groups by number, as this process's user namespace shows them.

A number that has no counterpart in this user namespace is shown as the overflow number, 65534 unless the kernel is
configured otherwise, which /etc/passwd calls "nobody". Such a file belongs to an unknown user, not to "nobody".

Source: user_namespaces(7), "Unmapped user and group IDs".
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final, Literal

from framebus.errors import PermissionDenied
from framebus.shm.paths import SHM_DIRECTORY

_WHOLE_RANGE: Final = (1 << 32) - 1
_DEFAULT_OVERFLOW: Final = 65534
_UNMAPPED: Final = "not mapped in this user namespace"

Kind = Literal["uid", "gid"]


def describe_user(number: int) -> str:
    """A user's number and name, or that it stands for a user of another user namespace."""
    try:
        name = pwd.getpwuid(number).pw_name
    except (KeyError, OverflowError):
        name = "unknown"
    return f"user {number} ({_qualify(number, name, 'uid')})"


def describe_group(number: int) -> str:
    """A group's number, and its name if it has one; or that it stands for a group of another user namespace."""
    try:
        name = grp.getgrgid(number).gr_name
    except (KeyError, OverflowError):
        name = ""
    qualified = _qualify(number, name, "gid")
    return f"group {number} ({qualified})" if qualified else f"group {number}"


def is_unmapped(number: int, kind: Kind = "uid") -> bool:
    """Whether the number stands for users or groups that this user namespace has no number for."""
    if number != _overflow_number(kind):
        return False
    return not _covers_all(kind)


def as_user(number: int) -> str:
    """How to run a command as the owner of a file, to end a sentence with."""
    if is_unmapped(number):
        return "outside this user namespace, as the owner"
    return f"as user {number}"


def own_groups() -> set[int]:
    """All groups of this process."""
    return {os.getegid(), *os.getgroups()}


def group_would_help(status: os.stat_result) -> bool:
    """Whether this process could read the file if it had the file's group, which it does not have."""
    return bool(status.st_mode & 0o040) and status.st_gid not in own_groups() and status.st_uid != os.geteuid()


def describe_readers(status: os.stat_result) -> str:
    """The users who may read a file: its owner and, if its mode allows, its group."""
    owner = describe_user(status.st_uid)
    return f"{owner} and {describe_group(status.st_gid)}" if status.st_mode & 0o040 else f"{owner} alone"


def _qualify(number: int, name: str, kind: Kind) -> str:
    if not is_unmapped(number, kind):
        return name
    is_mapped_too = any(inside <= number < inside + count for inside, count in _ranges(kind))
    return f"{name}, or {_UNMAPPED}" if is_mapped_too and name else _UNMAPPED


def _overflow_number(kind: Kind) -> int:
    try:
        return int(Path(f"/proc/sys/kernel/overflow{kind}").read_text())
    except (OSError, ValueError):
        return _DEFAULT_OVERFLOW


def _ranges(kind: Kind) -> list[tuple[int, int]]:
    """The first number and the length of each range that this user namespace maps."""
    try:
        lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
        return [(int(inside), int(count)) for inside, _, count in map(str.split, lines)]
    except (OSError, ValueError):
        return [(0, _WHOLE_RANGE)]


def _covers_all(kind: Kind) -> bool:
    return sum(count for _, count in _ranges(kind)) >= _WHOLE_RANGE


def denied(path: Path, error: OSError | None) -> PermissionDenied:
    """The error for a file that another user has, with what to do."""
    try:
        status = path.lstat()
    except OSError:
        return PermissionDenied(errno.EACCES, f"{path}: {error.strerror if error else 'permission denied'}")
    if error is not None and error.errno == errno.EROFS:
        return PermissionDenied(errno.EROFS, f"{SHM_DIRECTORY} is mounted read-only: mount it writable")
    if error is not None and group_would_help(status):
        remedy = f"run this process with group {status.st_gid}, or have user {status.st_uid} remove the file"
    else:
        # Either only the owner may open the file, or only the owner may serve the stream: no group helps.
        remedy = (
            "that user serves this stream, or has left the file: take another name, "
            f"or run this process or 'framebus gc' {as_user(status.st_uid)}"
        )
    return PermissionDenied(
        errno.EACCES,
        f"{path} belongs to {describe_user(status.st_uid)} and {describe_group(status.st_gid)}, mode "
        f"{stat.S_IMODE(status.st_mode):04o}, and is closed to user {os.geteuid()} with group {os.getegid()}: {remedy}",
    )
