"""Waiting on a word of shared memory.

The kernel compares the word and starts the sleep atomically, so an event between the comparison and the sleep is not
lost. The mapping may be read-only, and the two sides may be in different containers: without FUTEX_PRIVATE_FLAG, the
kernel identifies the futex by the page of the file instead of the address.

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

# CDLL releases the GIL during a call, to allow other threads to run while one waits. PyDLL keeps it, which is faster,
# and harmless for a call that never sleeps.
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
    """Wake all processes that sleep on the 32-bit word at ``address`` of this process."""
    _wake(_FUTEX, address, _FUTEX_WAKE, _ALL, None, None, 0)


def sleep_while(address: int, expected: int, timeout_ns: int) -> None:
    """Sleep while the 32-bit word at ``address`` equals ``expected``, for at most ``timeout_ns``.

    It may return early, for example after a signal, so the caller must check its condition again.
    """
    timeout = _Timespec(*divmod(timeout_ns, 1_000_000_000))
    _wait(_FUTEX, address, _FUTEX_WAIT, expected, ctypes.addressof(timeout), None, 0)
