"""Names and paths of the files in /dev/shm."""

from __future__ import annotations

import fnmatch
import os
import re
import secrets
from pathlib import Path
from typing import Final

from framebus.arguments import shown
from framebus.errors import InvalidArgument, InvalidName
from framebus.shm.limits import exhausted

SHM_DIRECTORY: Final = Path("/dev/shm")
PREFIX: Final = "framebus."
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}", re.ASCII)


def check_name(name: str, what: str = "stream") -> str:
    """Return ``name`` if it can be part of a file name in /dev/shm.

    Raises:
        InvalidName: It is empty, longer than 48 characters, or holds others than letters, digits, ``-`` and ``_``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        found = repr(name) if isinstance(name, str) else type(name).__name__
        raise InvalidName(
            f"{found} is no name for a {what}: take 1 to 48 letters, digits, '-' or '_', a letter or digit first"
        )
    return name


def companion_path(stream: str, suffix: str) -> Path:
    """Path of a file that belongs to a stream: ``/dev/shm/framebus.STREAM.SUFFIX``.

    Raises:
        InvalidName: ``stream`` is no name for a stream.
        InvalidArgument: ``suffix`` cannot end a file's name.
    """
    return SHM_DIRECTORY / f"{PREFIX}{check_name(stream)}.{_check_suffix(suffix, 'suffix')}"


def companion_paths(stream: str, pattern: str) -> list[Path]:
    """The files of a stream whose suffix matches the shell pattern, sorted.

    Raises:
        InvalidName: ``stream`` is no name for a stream.
        InvalidArgument: ``pattern`` cannot match the end of a file's name.
        ResourceExhausted: The process has no descriptor left.
    """
    prefix = f"{PREFIX}{check_name(stream)}."
    _check_suffix(pattern, "pattern")
    return sorted(
        SHM_DIRECTORY / name
        for name in file_names()
        if name.startswith(prefix) and fnmatch.fnmatchcase(name.removeprefix(prefix), pattern)
    )


def file_names() -> list[str]:
    """Names of all files in /dev/shm.

    Raises:
        ResourceExhausted: The process has no descriptor left.
    """
    try:
        return os.listdir(SHM_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    except OSError as error:
        raise exhausted(error) or error from None


def _check_suffix(suffix: str, what: str) -> str:
    if not isinstance(suffix, str) or not suffix or "/" in suffix or not suffix.isprintable():
        raise InvalidArgument(f"the {what} of a stream's file is a part of its name, not {shown(suffix)}")
    return suffix


def random_suffix() -> str:
    """Sixteen hexadecimal digits that no other process takes."""
    return secrets.token_hex(8)
