"""The end of publishers and subscribers that nobody closed: at the interpreter's exit, and in a forked child."""

from __future__ import annotations

import atexit
import weakref
from typing import Protocol

from framebus import forks


class Closable(Protocol):
    """A publisher or subscriber."""

    def close(self) -> None:
        """End it, from any thread; harmless when it was ended before."""

    def after_fork_in_child(self) -> None:
        """Leave it to the parent."""


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def register(opened: Closable) -> None:
    """Close ``opened`` when the interpreter exits, and leave it to the parent in a forked child."""
    _open.add(opened)
    forks.register(opened)


@atexit.register
def _close_all() -> None:
    for opened in list(_open):
        opened.close()
