"""Other users, played by forked children of a test that runs as root."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import select
import signal
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

GROUP = 43210
"""The group that publisher, subscribers and a dishonest neighbour share."""


def shared_event() -> Event:
    """Return an event that is shared by the people that are forked afterwards."""
    return multiprocessing.get_context("fork").Event()


class Person:
    """A child process that runs one function as another user, and sends its result or error back."""

    def __init__(self, user: int, function: Callable[..., Any], *arguments: Any, group: int = GROUP) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            gc.freeze()  # a collection of the parent's objects would copy the memory of all of them
            try:
                os.setgroups([])
                os.setgid(group)
                os.setuid(user)
                unraisable: list[str] = []
                sys.unraisablehook = lambda what: unraisable.append(repr(what.exc_value))
                try:
                    answer: tuple[bool, Any] = True, function(*arguments)
                    gc.collect()
                    if unraisable:
                        raise AssertionError(f"no process could catch {unraisable}")  # noqa: TRY301
                except BaseException as error:  # noqa: BLE001  it is raised again by the parent
                    answer = False, error
                os.write(writer, pickle.dumps(answer))
            finally:
                os._exit(0)
        os.close(writer)
        self._reader = reader
        self.killed_by = 0
        """Number of the signal that ended the process before it answered; 0 for none."""

    def result(self, timeout_s: float = 30.0) -> Any:
        """Return the result of the function, or raise its error."""
        content = b""
        while select.select([self._reader], [], [], timeout_s)[0]:
            part = os.read(self._reader, 65536)
            if not part:
                break
            content += part
        status = self.end()
        if not content and os.WIFSIGNALED(status):
            self.killed_by = os.WTERMSIG(status)
        assert content, f"the process did not answer; it was killed by signal {self.killed_by}"
        succeeded, answer = pickle.loads(content)
        if not succeeded:
            raise answer
        return answer

    def end(self) -> int:
        """Kill the process if it still runs; return its status as of waitpid(2)."""
        status = 0
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            os.close(self._reader)
            self.pid = 0
        return status
