"""Ownership and shutdown of publishers and subscribers: threads, ``with`` blocks, garbage, exit, and forks."""

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
"""The oldest generation of the garbage collector. Its collection includes all others."""
TIMEOUT_S: Final = 5.0
RETRY_AFTER_S: Final = 0.001


class Endpoint:
    """Base class of publishers and subscribers: the thread that owns them, and their end.

    An endpoint belongs to the process that opened it and to the thread that first uses it. It is closed by
    :meth:`close`, at the end of its ``with`` block, when it is garbage-collected, or when the interpreter exits.
    """

    kind: ClassVar[str]
    """Name of the kind of endpoint, for messages."""
    advice: ClassVar[str]
    """How to use it from several threads, for the message of :class:`~framebus.WrongThread`."""

    # Defaults for close(), which also runs if the constructor fails before it has set these.
    _closed = True
    _forked = False
    _thread: int | None = None

    @abstractmethod
    def close(self) -> None:
        """Close the endpoint. May be called from any thread, and again."""

    def after_fork_in_child(self) -> None:
        """Leave the endpoint to the parent."""
        self._forked = True
        self._thread = None

    def _begin_close(self) -> None:
        self._closed = True
        # Clear the owner, so that its fast-path thread check fails and the full check raises Closed.
        self._thread = None

    def _check_owner(self) -> None:
        """Claim the endpoint for this thread if it has no owner yet.

        Raises:
            Closed: The endpoint was closed, or belongs to the parent process.
            WrongThread: Another thread owns it.
        """
        self._check_open()
        thread = get_ident()
        # The first thread that uses the endpoint owns it, so it may be created in another one.
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
        # If the block raised, an error of close() must not replace that exception.
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


# Weak, so that registering an endpoint does not keep it from being garbage-collected.
_open: weakref.WeakSet[Endpoint] = weakref.WeakSet()


def register(opened: Endpoint) -> None:
    """Close ``opened`` when the interpreter exits, and leave it to the parent in a forked child."""
    _open.add(opened)
    forks.register(opened)


def collect_garbage() -> None:
    """Collect all garbage, even if another thread is collecting: ``gc.collect()`` does nothing during that time."""
    thread, collected = get_ident(), False

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal collected
        collected |= phase == "stop" and info["generation"] == OLDEST and get_ident() == thread

    # The callback tells whether a full collection ran in this thread, which gc.collect() itself does not.
    gc.callbacks.append(note)
    try:
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            gc.collect()
            if collected:
                break
            time.sleep(RETRY_AFTER_S)
    finally:
        gc.callbacks.remove(note)


@atexit.register
def _close_all() -> None:
    # A copy, because closing may drop the last reference to another endpoint.
    for opened in list(_open):
        opened.close()
