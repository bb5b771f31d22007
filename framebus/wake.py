"""Waiting on a word of shared memory, and knowing when to be there before it changes.

The kernel compares the word and sleeps in one step, so no event between the look and the sleep is lost. The mapping may
be read-only, and the two sides may be in different containers: the futex is not PRIVATE, so the kernel finds it by the
file's page, not by the address.

Source: futex(2), FUTEX_WAIT and FUTEX_WAKE.
"""

from __future__ import annotations

import ctypes
import platform
from functools import partial
from typing import Final

_SYSCALL_NUMBERS: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_FUTEX: Final = _SYSCALL_NUMBERS.get(platform.machine(), -1)
_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1
_ALL: Final = 0x7FFFFFFF

# CDLL gives up the interpreter's lock while it calls, so other threads run while one waits; PyDLL keeps it, which is
# quicker and does no harm to a call that never sleeps.
_wait: Final = ctypes.CDLL(None).syscall
_wait.restype = ctypes.c_long
_wake: Final = ctypes.PyDLL(None).syscall
_wake.restype = ctypes.c_long


MIN_HALF_WINDOW_NS: Final = 300_000
"""Waking up and a rehearsal take a good part of that."""
MAX_HALF_WINDOW: Final = 0.05
"""Part of the period that may be spent looking, before it and after it."""
MAX_PERIOD_NS: Final = 5_000_000_000
MIN_KNOWN: Final = 4
LEARNING_RATE: Final = 1 / 8


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Futex:
    """A 32-bit word at an address of this process."""

    def __init__(self, address: int) -> None:
        self._address = ctypes.c_void_p(address)
        self.wake = partial(_wake, _FUTEX, self._address, _FUTEX_WAKE, _ALL, None, None, 0)
        """Wake all who wait on the word."""

    def wait(self, expected: int, timeout_s: float) -> None:
        """Sleep while the word is ``expected``, at most ``timeout_s``; it may return early, so look again."""
        seconds = int(timeout_s)
        timeout = _Timespec(seconds, int((timeout_s - seconds) * 1e9))
        _wait(_FUTEX, self._address, _FUTEX_WAIT, ctypes.c_uint32(expected), ctypes.byref(timeout), None, 0)


class Pace:
    """Foretells when the next frame is due, from the times at which those before it were published.

    Only a steady pace can be foretold: where the periods differ too much, there is no window.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._published_ns = 0
        self._known = 0
        self._period_ns = 0.0
        self._deviation_ns = 0.0

    def learn(self, sequence: int, published_ns: int) -> None:
        """Take in the sequence of a frame and its time, CLOCK_MONOTONIC."""
        frames = sequence - self._sequence
        gap_ns = (published_ns - self._published_ns) / frames if frames > 0 else 0.0
        if self._sequence and 0 < gap_ns < MAX_PERIOD_NS:
            error_ns = gap_ns - self._period_ns
            self._known += 1
            share = max(1 / self._known, LEARNING_RATE)
            self._period_ns += error_ns * share
            if self._known > 1:
                self._deviation_ns += (abs(error_ns) - self._deviation_ns) * share
        else:
            self._known = 0
        self._sequence, self._published_ns = sequence, published_ns

    def window(self) -> tuple[int, int]:
        """From when to when the next frame is likely, CLOCK_MONOTONIC in ns; (0, 0) if nobody can say."""
        half_ns = MIN_HALF_WINDOW_NS + 2 * self._deviation_ns
        if self._known < MIN_KNOWN or half_ns > max(self._period_ns * MAX_HALF_WINDOW, 2 * MIN_HALF_WINDOW_NS):
            return 0, 0
        due_ns = self._published_ns + self._period_ns
        return int(due_ns - half_ns), int(due_ns + half_ns)
