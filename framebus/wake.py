"""Waiting on a word of shared memory.

The kernel compares the word and sleeps in one step, so no event between the look and the sleep is lost. The mapping may
be read-only, and the two sides may be in different containers: the futex is not PRIVATE, so the kernel finds it by the
file's page, not by the address.

Source: futex(2), FUTEX_WAIT and FUTEX_WAKE.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Final

_SYSCALL_NUMBERS: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_FUTEX: Final = _SYSCALL_NUMBERS.get(platform.machine(), -1)
_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1
_ALL: Final = 0x7FFFFFFF

# CDLL gives up the interpreter's lock while it calls, so other threads run while one waits.
_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Futex:
    """A 32-bit word at an address of this process."""

    def __init__(self, address: int) -> None:
        self._address = ctypes.c_void_p(address)

    def wait(self, expected: int, timeout_s: float) -> None:
        """Sleep while the word is ``expected``, at most ``timeout_s``; it may return early, so look again."""
        seconds = int(timeout_s)
        timeout = _Timespec(seconds, int((timeout_s - seconds) * 1e9))
        _syscall(_FUTEX, self._address, _FUTEX_WAIT, ctypes.c_uint32(expected), ctypes.byref(timeout), None, 0)

    def wake(self) -> None:
        """Wake all who wait on the word."""
        _syscall(_FUTEX, self._address, _FUTEX_WAKE, _ALL, None, None, 0)
