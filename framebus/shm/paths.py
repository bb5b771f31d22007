"""Names and paths of the files in /dev/shm."""

from __future__ import annotations

import fnmatch
import os
import re
import secrets
from pathlib import Path
from typing import Final

from framebus.arguments import short_repr
from framebus.errors import InvalidArgument, InvalidName
from framebus.shm.limits import exhausted

SHM_DIRECTORY: Final = Path("/dev/shm")
PREFIX: Final = "framebus."
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}", re.ASCII)


def check_name(name: str, what: str = "stream") -> str:
    """Return ``name`` if it can be part of a file name in /dev/shm.

    Raises:
        InvalidName: ``name`` is empty, is longer than 48 characters, or contains other characters than letters, digits,
            ``-`` and ``_``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        found = repr(name) if isinstance(name, str) else type(name).__name__
        raise InvalidName(
            f"{found} is not a valid name of a {what}: use 1 to 48 letters, digits, '-' or '_', beginning with a "
            "letter or digit"
        )
    return name


def companion_path(stream: str, suffix: str) -> Path:
    """Return the path of a file that belongs to a stream: ``/dev/shm/framebus.STREAM.SUFFIX``.

    Raises:
        InvalidName: ``stream`` is not a valid name of a stream.
        InvalidArgument: ``suffix`` cannot be the end of a file name.
    """
    return SHM_DIRECTORY / f"{PREFIX}{check_name(stream)}.{_check_suffix(suffix, 'suffix')}"


def companion_paths(stream: str, pattern: str) -> list[Path]:
    """Return the files of a stream whose suffix matches the shell pattern, sorted.

    Raises:
        InvalidName: ``stream`` is not a valid name of a stream.
        InvalidArgument: ``pattern`` cannot match the end of a file name.
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
    """Return the names of all files in /dev/shm; none if it is missing, or this user may not list it.

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
        raise InvalidArgument(f"the {what} of a stream's file must be a part of a file name, not {short_repr(suffix)}")
    return suffix


def random_suffix() -> str:
    """Return sixteen random hexadecimal digits, so that no other process uses the same name."""
    return secrets.token_hex(8)
