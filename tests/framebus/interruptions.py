"""What interrupts a call of the bus: an exception of a signal handler, or another thread, at each point in turn.

CPython handles signals and switches threads at the beginning of a function, after a call of a C function and at a
backward jump. These are the points; the opcodes between two of them run as one.

Source: CPython's ceval.c, CHECK_EVAL_BREAKER.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import framebus
from tests.support import PATIENCE_S

PACKAGE: Final = str(framebus.__path__[0])
_CHECKING: Final = ("RESUME", "CALL", "JUMP_BACKWARD")


class Interrupted(Exception):
    """The exception that a test's signal handler raises."""


def interrupt() -> None:
    """Raise as a signal handler does."""
    raise Interrupted


def in_a_thread(action: Callable[[], object]) -> Callable[[], None]:
    """Let another thread run the action meanwhile."""

    def run() -> None:
        thread = threading.Thread(target=action, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the other thread waits for this one"

    return run


class Points:
    """Does ``action`` at one point of a call, counted from 0 in the library's own code."""

    def __init__(self, action: Callable[[], object], number: int) -> None:
        self.done = ""
        """Where the action was done; empty if the call has fewer points."""
        self._action = action
        self._left = number
        self._before: dict[FrameType, str] = {}

    def __enter__(self) -> Points:
        self._other_trace = sys.gettrace()  # such as that of a measurement of coverage
        sys.settrace(self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._other_trace)

    def _begin(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if self.done or not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if self.done:
            return None
        if event == "return":
            self._before.pop(frame, None)
            if frame.f_back is not None:
                self._before.pop(frame.f_back, None)  # a return in Python does not count as a point
        elif event == "exception":
            self._before.pop(frame, None)  # nor does a handler of exceptions
        elif event == "opcode":
            before = self._before.get(frame, "")
            self._before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if before.startswith(_CHECKING):
                if not self._left:
                    self._before.clear()
                    self.done = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                    self._action()
                    return None
                self._left -= 1
        return self._step


def each_point(action: Callable[[], object]) -> Iterator[Points]:
    """Yield the points of a call in turn, until the call ends before the next one."""
    number = 0
    while True:
        points = Points(action, number)
        yield points
        if not points.done:
            return
        number += 1
