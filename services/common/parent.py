"""End a process together with its parent."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(signal_number: signal.Signals, parent_pid: int) -> None:
    """Ask the kernel to send this process a signal when its parent dies. If the parent is already dead, send it now.

    Args:
        signal_number: The signal.
        parent_pid: Process id of the parent, as known at the start of this process. It is required to detect a parent
            that died before this request, about which the kernel sends no signal.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    # In this order: whenever the parent dies, one of the two notices it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal_number)
