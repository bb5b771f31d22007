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

# CDLL gives up the interpreter's lock while it calls, so other threads run while one waits; PyDLL keeps it, which is
# quicker and does no harm to a call that never sleeps.
_wait: Final = ctypes.CDLL(None).syscall
_wake: Final = ctypes.PyDLL(None).syscall
for _call in (_wait, _wake):
    _call.restype = ctypes.c_long
    _call.argtypes = [
        ctypes.c_long,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_uint32,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint32,
    ]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def wake_all(address: int) -> None:
    """Wake all who sleep on the 32-bit word at ``address`` of this process."""
    _wake(_FUTEX, address, _FUTEX_WAKE, _ALL, None, None, 0)


def sleep_while(address: int, expected: int, timeout_ns: int) -> None:
    """Sleep while the 32-bit word at ``address`` is ``expected``, at most ``timeout_ns``; it may return early."""
    timeout = _Timespec(*divmod(timeout_ns, 1_000_000_000))
    _wait(_FUTEX, address, _FUTEX_WAIT, expected, ctypes.addressof(timeout), None, 0)
