"""The base of the streamer's threads."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod


class StreamerThread(ABC):
    """Runs :meth:`_run` in a thread of its own until an event is set.

    Args:
        name: Name of the thread.
        stop: Ends the thread.
    """

    def __init__(self, name: str, stop: threading.Event) -> None:
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name=name)

    @abstractmethod
    def _run(self) -> None:
        """Work until the event is set."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended, which it does soon after the stop event is set."""
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs. If it ended without a stop, it failed."""
        return self._thread.is_alive()
