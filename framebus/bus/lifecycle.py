"""The end of publishers and subscribers: by a block, by the collector, at the interpreter's exit, in a forked child."""

from __future__ import annotations

import atexit
import contextlib
import gc
import time
import weakref
from abc import abstractmethod
from threading import get_ident
from types import TracebackType
from typing import Final, Self

from framebus.shm import forks

OLDEST: Final = 2
"""The generation that is collected last, and with it all others."""
PATIENCE_S: Final = 5.0
RETRY_AFTER_S: Final = 0.001


class Closable:
    """What ends a publisher or subscriber: a ``with`` block, the garbage collector."""

    @abstractmethod
    def close(self) -> None:
        """End it, from any thread; harmless when it was ended before."""

    @abstractmethod
    def after_fork_in_child(self) -> None:
        """Leave it to the parent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        # Never in the place of the exception that is on its way.
        with contextlib.suppress(*(() if kind is None else (OSError,))):
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __del__(self) -> None:
        self.close()


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def register(opened: Closable) -> None:
    """Close ``opened`` when the interpreter exits, and leave it to the parent in a forked child."""
    _open.add(opened)
    forks.register(opened)


def collect_garbage() -> None:
    """Collect all garbage, also where another thread is collecting some: ``gc.collect()`` does nothing meanwhile."""
    thread, collected = get_ident(), False

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal collected
        collected |= phase == "stop" and info["generation"] == OLDEST and get_ident() == thread

    gc.callbacks.append(note)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            gc.collect()
            if collected:
                break
            time.sleep(RETRY_AFTER_S)
    finally:
        gc.callbacks.remove(note)


@atexit.register
def _close_all() -> None:
    for opened in list(_open):
        opened.close()
