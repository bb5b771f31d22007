"""A process that ends only when the threads of the storage's client are idle.

obstore runs requests in threads of its own. After a request, such a thread still releases Python objects. If the
interpreter ends in that moment, the thread aborts the process: 10 to 20 % of short programs ended with SIGABRT after
their last request had succeeded.

Sources: PyO3/pyo3-async-runtimes, issue 40; the documentation of ``Py_FinalizeEx``, "Cautions regarding runtime
finalization".
"""

from __future__ import annotations

import atexit
import time
from functools import cache
from pathlib import Path
from typing import Final

CLIENT_THREAD: Final = "tokio-rt-worker"
"""Name of each of the client's threads."""
PATIENCE_S: Final = 2.0
PAUSE_S: Final = 0.002
_ENOUGH_LOOKS: Final = 3
"""A thread that waits for the interpreter's lock sleeps too. It gets the lock in the pause before the next look."""


@cache
def end_when_idle() -> None:
    """Let the process end only after :func:`wait_until_idle`."""
    atexit.register(wait_until_idle)


def wait_until_idle() -> None:
    """Wait until all threads of the client sleep, for at most two seconds."""
    deadline_s = time.monotonic() + PATIENCE_S
    idle_looks = 0
    while idle_looks < _ENOUGH_LOOKS and time.monotonic() < deadline_s:
        time.sleep(PAUSE_S)  # without the interpreter's lock
        idle_looks = 0 if _one_runs() else idle_looks + 1


def _one_runs() -> bool:
    """Return whether the client has a thread in another state than S, sleeping. Source: proc_pid_stat(5)."""
    for task in Path("/proc/self/task").iterdir():
        try:
            name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:  # the thread has ended
            continue
        if name == CLIENT_THREAD and fields.split()[0] != "S":
            return True
    return False
