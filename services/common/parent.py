"""A process that ends with the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(signal_number: signal.Signals, parent_pid: int) -> None:
    """Have the kernel send this process a signal when its parent dies, and send it now if the parent is dead already.

    Args:
        signal_number: The signal.
        parent_pid: The parent when it started this process: the kernel tells nothing of a death before the request.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal_number)
