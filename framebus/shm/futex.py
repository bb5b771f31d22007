"""Waiting on a word of shared memory, and knowing when to be there before it changes.

The kernel compares the word and sleeps in one step, so no event between the look and the sleep is lost. The mapping may
be read-only, and the two sides may be in different containers: the futex is not PRIVATE, so the kernel finds it by the
file's page, not by the address.

Source: futex(2), FUTEX_WAIT and FUTEX_WAKE.
"""

from __future__ import annotations

import ctypes
import platform
from collections import deque
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

WAKE_UP_NS: Final = 300_000
"""A window begins and ends so much further from the expected times: waking up and a rehearsal take a part of that."""
PERIODS: Final = 16
MIN_PERIODS: Final = 4
MAX_SPREAD: Final = 0.25
"""Part of the period beyond which looking costs more than it is worth: periods that are off by 10 % spread over 0.2."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def wake_all(address: int) -> None:
    """Wake all who sleep on the 32-bit word at ``address`` of this process."""
    _wake(_FUTEX, address, _FUTEX_WAKE, _ALL, None, None, 0)


def sleep_while(address: int, expected: int, timeout_ns: int) -> None:
    """Sleep while the 32-bit word at ``address`` is ``expected``, at most ``timeout_ns``; it may return early."""
    timeout = _Timespec(*divmod(timeout_ns, 1_000_000_000))
    _wait(_FUTEX, address, _FUTEX_WAIT, expected, ctypes.addressof(timeout), None, 0)


class Pace:
    """Foretells when the next frame is due, from the times between those before it.

    Only a steady pace can be foretold: where the periods differ too much, there is no window. One pause, or one frame
    that comes late, is not taken for the pace.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._published_ns = 0
        self._periods_ns: deque[float] = deque(maxlen=PERIODS)

    def learn(self, sequence: int, published_ns: int) -> None:
        """Take in the sequence of a frame and its time, CLOCK_MONOTONIC."""
        frames = sequence - self._sequence
        if self._sequence and frames > 0:
            self._periods_ns.append((published_ns - self._published_ns) / frames)
        self._sequence, self._published_ns = sequence, published_ns

    def window(self) -> tuple[int, int]:
        """From when to when the next frame is likely, CLOCK_MONOTONIC in ns; (0, 0) if nobody can say."""
        periods_ns = sorted(self._periods_ns)
        if len(periods_ns) < MIN_PERIODS:
            return 0, 0
        outliers = len(periods_ns) // 8
        least_ns, most_ns = periods_ns[outliers], periods_ns[-1 - outliers]
        if least_ns <= 0 or most_ns - least_ns > periods_ns[len(periods_ns) // 2] * MAX_SPREAD:
            return 0, 0
        return int(self._published_ns + least_ns) - WAKE_UP_NS, int(self._published_ns + most_ns) + WAKE_UP_NS
