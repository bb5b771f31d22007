"""Other users, played by forked children of a test that runs as root."""

from __future__ import annotations

import os
import pickle
import select
import signal
from collections.abc import Callable
from typing import Any

GROUP = 43210
"""The group that publisher, subscribers and a dishonest neighbour share."""


class Person:
    """A child process that is another user and runs one function; its result, or error, is sent back."""

    def __init__(self, user: int, function: Callable[..., Any], *arguments: Any, group: int = GROUP) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            try:
                os.setgroups([])
                os.setgid(group)
                os.setuid(user)
                try:
                    answer: tuple[bool, Any] = True, function(*arguments)
                except BaseException as error:  # noqa: BLE001  it is raised again by the parent
                    answer = False, error
                os.write(writer, pickle.dumps(answer))
            finally:
                os._exit(0)
        os.close(writer)
        self._reader = reader

    def result(self, timeout_s: float = 30.0) -> Any:
        """Wait for what the function returns, or raise what it raised."""
        content = b""
        while select.select([self._reader], [], [], timeout_s)[0]:
            part = os.read(self._reader, 65536)
            if not part:
                break
            content += part
        self.end()
        assert content, "the process did not answer"
        succeeded, answer = pickle.loads(content)
        if not succeeded:
            raise answer
        return answer

    def end(self) -> None:
        """Kill the process if it still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._reader)
            self.pid = 0
