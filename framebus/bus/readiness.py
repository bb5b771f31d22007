"""Waiting in an event loop until a descriptor is readable."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Readiness:
    """Watches a descriptor in the running event loop, for the duration of a ``with`` block.

    The descriptor must stay open during the block. Cancelling the block leaves nothing in the loop.
    """

    def __init__(self, descriptor: int) -> None:
        """Take the descriptor; the loop does not watch it before the block begins."""
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._loop.add_reader(self._descriptor, self._event.set)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._descriptor)

    async def wait(self, timeout_s: float) -> None:
        """Wait until the descriptor is readable, for at most ``timeout_s``."""
        # If the descriptor is readable already, the loop sets the event again.
        self._event.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
