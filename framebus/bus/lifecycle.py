"""The owner and the end of publishers and subscribers: threads, blocks, garbage, the interpreter's exit, forks."""

from __future__ import annotations

import atexit
import contextlib
import gc
import time
import weakref
from abc import abstractmethod
from threading import get_ident
from types import TracebackType
from typing import ClassVar, Final, NoReturn, Self

from framebus.errors import Closed, WrongThread
from framebus.shm import forks

OLDEST: Final = 2
"""The generation that is collected last, and with it all others."""
PATIENCE_S: Final = 5.0
RETRY_AFTER_S: Final = 0.001


class Endpoint:
    """What publishers and subscribers have in common: the thread that owns them, and how they end.

    An endpoint belongs to the thread that first uses it, and to the process that opened it. It ends by :meth:`close`,
    with its ``with`` block, or when it is garbage.
    """

    kind: ClassVar[str]
    """What it is, in messages."""
    advice: ClassVar[str]
    """How to use it from several threads, in the message of WrongThread."""

    # Until it is open, for the close of one whose opening failed.
    _closed = True
    _forked = False
    _thread: int | None = None

    @abstractmethod
    def close(self) -> None:
        """End it, from any thread; harmless when it was ended before."""

    def after_fork_in_child(self) -> None:
        """Leave it to the parent."""
        self._forked = True
        self._thread = None

    def _begin_close(self) -> None:
        self._closed = True
        # Clear the owner, so that its fast-path thread check fails and the full check raises Closed.
        self._thread = None

    def _check_owner(self) -> None:
        """Claim the endpoint for this thread if it has no owner yet.

        Raises:
            Closed: It was closed, or belongs to the parent process.
            WrongThread: Another thread owns it.
        """
        self._check_open()
        thread = get_ident()
        if self._thread is None:
            self._thread = thread
        if self._thread != thread:
            raise WrongThread(f"a {self.kind} belongs to the thread that first used it: {self.advice}")

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the {self.kind} was closed")
        if self._forked:
            raise Closed(f"the {self.kind} belongs to the parent process: open one after the fork")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {self.kind} holds locks of its process, and cannot be pickled: open one in the other process"
        )

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


_open: weakref.WeakSet[Endpoint] = weakref.WeakSet()


def register(opened: Endpoint) -> None:
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
