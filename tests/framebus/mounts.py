"""Runs a function of a test with its own /dev/shm or clock. The test must run as root."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framebus.cli import main
from tests.people import Person

CLONE_NEWNS = 0x00020000
CLONE_NEWTIME = 0x00000080
MS_RDONLY, MS_REMOUNT, MS_BIND = 0x1, 0x20, 0x1000
MS_REC, MS_PRIVATE = 0x4000, 0x40000

libc = ctypes.CDLL(None, use_errno=True)


def checked(answer: int) -> None:
    if answer:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(kind: str, place: str, flags: int = 0, options: str = "") -> None:
    checked(libc.mount(kind.encode(), place.encode(), kind.encode(), flags, options.encode()))


def in_own_shm(options: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run the function with a /dev/shm that no other process sees. Source: unshare(2), mount(2), tmpfs(5)."""
    checked(libc.unshare(CLONE_NEWNS))
    checked(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    mount("tmpfs", "/dev/shm", options=options)
    return function(*arguments)


def alone(function: Callable[..., Any], *arguments: Any, options: str = "size=100m,mode=1777") -> Any:
    """Run the function in a child process with a /dev/shm of its own; return what it returns."""
    return Person(0, in_own_shm, options, function, *arguments, group=0).result()


def in_other_time(offset_s: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run the function where CLOCK_MONOTONIC is another. Source: time_namespaces(7)."""

    def enter() -> Any:
        checked(libc.unshare(CLONE_NEWTIME))
        Path("/proc/self/timens_offsets").write_text(f"monotonic {offset_s} 0\n")
        return Person(0, function, *arguments, group=0).result()

    return Person(0, enter, group=0).result()


def command(*arguments: str) -> tuple[int, str, str]:
    """Run ``framebus ARGUMENTS`` in this process; return its exit status, output and errors."""
    output, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(complaints):
        status = main(arguments)
    return status, output.getvalue(), complaints.getvalue()


def answer(*arguments: str) -> tuple[int, Any]:
    """Run ``framebus ARGUMENTS --json``; return its exit status and output."""
    status, output, complaints = command(*arguments, "--json")
    assert complaints == "", complaints
    return status, json.loads(output)
