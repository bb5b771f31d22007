"""Descriptions of users and groups, as the user namespace of this process shows them.

A user or group that is not mapped into this user namespace appears as the overflow number, by default 65534, which
/etc/passwd calls "nobody". A file with this owner belongs to an unknown user, not to "nobody".

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
    """Return the number and name of a user, or say that the user is not mapped into this user namespace."""
    try:
        name = pwd.getpwuid(number).pw_name
    except (KeyError, OverflowError):
        name = "unknown"
    return f"user {number} ({_qualify(number, name, 'uid')})"


def describe_group(number: int) -> str:
    """Return the number of a group, and its name if any, or say that it is not mapped into this user namespace."""
    try:
        name = grp.getgrgid(number).gr_name
    except (KeyError, OverflowError):
        name = ""
    qualified = _qualify(number, name, "gid")
    return f"group {number} ({qualified})" if qualified else f"group {number}"


def is_unmapped(number: int, kind: Kind = "uid") -> bool:
    """Return whether the number is the overflow number, which stands for all users or groups that are not mapped."""
    if number != _overflow_number(kind):
        return False
    # A namespace that maps the whole range, as the initial one does, has a real user of this number.
    return not _covers_all(kind)


def as_user(number: int) -> str:
    """Return how to run a command as the owner of a file, as the end of a sentence."""
    if is_unmapped(number):
        return "outside this user namespace, as the owner"
    return f"as user {number}"


def own_groups() -> set[int]:
    """Return all groups of this process."""
    return {os.getegid(), *os.getgroups()}


def group_would_help(status: os.stat_result) -> bool:
    """Return whether this process lacks access to the file only because it is not in the file's group."""
    return bool(status.st_mode & 0o040) and status.st_gid not in own_groups() and status.st_uid != os.geteuid()


def describe_readers(status: os.stat_result) -> str:
    """Return which users may read a file: its owner and, if its mode allows, its group."""
    owner = describe_user(status.st_uid)
    return f"{owner} and {describe_group(status.st_gid)}" if status.st_mode & 0o040 else f"{owner} alone"


def _qualify(number: int, name: str, kind: Kind) -> str:
    if not is_unmapped(number, kind):
        return name
    # A mapped user may have the overflow number too. Then the file may belong to that user, or to an unmapped one.
    is_mapped_too = any(inside <= number < inside + count for inside, count in _ranges(kind))
    return f"{name}, or {_UNMAPPED}" if is_mapped_too and name else _UNMAPPED


def _overflow_number(kind: Kind) -> int:
    try:
        return int(Path(f"/proc/sys/kernel/overflow{kind}").read_text())
    except (OSError, ValueError):
        return _DEFAULT_OVERFLOW


def _ranges(kind: Kind) -> list[tuple[int, int]]:
    """Return the first number and the length of each range that this user namespace maps."""
    try:
        lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
        return [(int(inside), int(count)) for inside, _, count in map(str.split, lines)]
    except (OSError, ValueError):
        return [(0, _WHOLE_RANGE)]


def _covers_all(kind: Kind) -> bool:
    return sum(count for _, count in _ranges(kind)) >= _WHOLE_RANGE


def denied(path: Path, error: OSError | None) -> PermissionDenied:
    """Return the error for a file of another user, which says what to do."""
    try:
        status = path.lstat()
    except OSError:
        return PermissionDenied(errno.EACCES, f"{path}: {error.strerror if error else 'permission denied'}")
    if error is not None and error.errno == errno.EROFS:
        return PermissionDenied(errno.EROFS, f"{SHM_DIRECTORY} is mounted read-only: mount it writable")
    if error is not None and group_would_help(status):
        remedy = f"run this process with group {status.st_gid}, or have user {status.st_uid} remove the file"
    else:
        # Only the owner may open the file or serve the stream, so joining its group would not help.
        remedy = (
            "that user serves this stream, or has left the file: take another name, "
            f"or run this process or 'framebus gc' {as_user(status.st_uid)}"
        )
    return PermissionDenied(
        errno.EACCES,
        f"{path} belongs to {describe_user(status.st_uid)} and {describe_group(status.st_gid)}, mode "
        f"{stat.S_IMODE(status.st_mode):04o}, and is closed to user {os.geteuid()} with group {os.getegid()}: {remedy}",
    )
