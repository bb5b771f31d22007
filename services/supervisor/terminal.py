"""A terminal on which events scroll above a picture that is redrawn in place.

Lines are cut to the terminal's width, so they never wrap. While the picture is shown, the cursor is hidden and input is
not echoed. :meth:`Screen.close` restores both, as does a suspension of the program.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

FALLBACK_SIZE = (80, 24)
KEPT_EVENTS = 200
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


class _Output(io.TextIOBase):
    """An unbuffered text file for a terminal's descriptor. Output to a closed terminal is dropped."""

    def __init__(self, descriptor: int, encoding: str) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property is all that is needed
        return self._encoding

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> int:
        content = text.encode(self._encoding, "replace")
        with contextlib.suppress(OSError):
            while content:
                content = content[os.write(self._descriptor, content) :]
        return len(text)


class Bar:
    """A progress bar that is readable without colour."""

    def __init__(self, done: int, total: int | None, width: int) -> None:
        self._done = 0 if not total else min(width, width * done // total)
        self._width = width

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        full, empty = ("#", "-") if options.ascii_only else ("━", "─")
        yield Text.assemble((full * self._done, "green"), (empty * (self._width - self._done), "dim"), end="")


def can_draw(descriptor: int) -> bool:
    """Return whether a descriptor is a terminal that can move its cursor."""
    return os.isatty(descriptor) and os.environ.get("TERM", "dumb").lower() not in ("dumb", "unknown", "")


def encoding_of_terminal() -> str:
    """Return ``utf-8`` or ``ascii``, according to the locale.

    In the C locale, Python itself uses UTF-8 and sets LC_CTYPE for its children (PEP 538), so its own encoding says
    nothing about the terminal.
    """
    environment = os.environ
    chosen = environment.get("LC_ALL") or environment.get("LC_CTYPE") or environment.get("LANG") or ""
    if chosen == "C.UTF-8" and not environment.get("LC_ALL"):
        chosen = environment.get("LANG") or ""
    return "utf-8" if "utf8" in chosen.lower().replace("-", "") else "ascii"


class Screen:
    """The terminal behind a descriptor. Used by one thread."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        sys.stdout.flush()
        self.console = Console(
            file=_Output(descriptor, encoding_of_terminal()),  # type: ignore[arg-type]  # a text file in parts
            force_terminal=True,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._size = (0, 0)
        self._events: deque[Text] = deque(maxlen=KEPT_EVENTS)
        self._live: Live | None = None
        self._picture: Callable[[int, int], RenderableType] | None = None
        self._modes: list[object] | None = None
        self._previous_handler: object = None
        self._was_suspended = False
        self._fit()

    def event(self, text: str, style: str = "", *, whole: bool = False) -> None:
        """Print a line above the picture.

        Args:
            text: One line.
            style: Style, in rich's syntax.
            whole: Whether to wrap it at words instead of cutting it.
        """
        line = Text("".join(letter if letter.isprintable() else " " for letter in text), style=style)
        width = self._size[0] - 1
        lines = list(line.wrap(self.console, width)) if whole else [line]
        for part in lines:
            part.truncate(width, overflow="crop")
            self._events.append(part)
            self.console.print(part, no_wrap=True, overflow="crop", crop=True)

    def draw(self, picture: Callable[[int, int], RenderableType]) -> None:
        """Draw the picture in place of the previous one.

        Args:
            picture: Called with the available columns and lines, and again whenever these change.
        """
        self._picture = picture
        if self._live is None:
            self._take_terminal()
            self._begin()
        elif self._fit() or self._was_suspended:
            self._repaint()
        else:
            self._live.update(self._rendered(), refresh=True)

    def close(self) -> None:
        """Remove the picture, and restore the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._release_terminal()

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def size_changed(self) -> bool:
        """Return whether the terminal's size has changed since the picture was drawn."""
        return self._measure() != self._size

    def _rendered(self) -> RenderableType:
        assert self._picture is not None
        columns, lines = self._size
        return self._picture(columns - 1, max(1, lines - 2))

    def _begin(self) -> None:
        self._live = Live(
            self._rendered(),
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)

    def _repaint(self) -> None:
        """Redraw everything, because a terminal reflows its content when its width changes."""
        assert self._live is not None
        self._was_suspended = False
        self._fit()
        # rich prints the picture once more when it stops, and the old one may not fit.
        self._live.update(Text(""))
        self._live.stop()
        self.console.clear()
        columns, lines = self._size
        height = len(self.console.render_lines(self._rendered(), pad=False))
        room = max(0, lines - 1 - height)
        for part in list(self._events)[-room:] if room else []:
            shown = part.copy()
            shown.truncate(columns - 1, overflow="crop")
            self.console.print(shown, no_wrap=True, overflow="crop", crop=True)
        self._begin()

    def _measure(self) -> tuple[int, int]:
        try:
            columns, lines = os.get_terminal_size(self._descriptor)
        except OSError:
            return FALLBACK_SIZE
        return columns or FALLBACK_SIZE[0], lines or FALLBACK_SIZE[1]

    def _fit(self) -> bool:
        """Adopt the terminal's size. Return whether it has changed."""
        size = self._measure()
        if size == self._size:
            return False
        self._size = size
        # Set the size explicitly, to prevent rich from using an outdated COLUMNS or another descriptor.
        self.console.size = ConsoleDimensions(*size)
        return True

    def _take_terminal(self) -> None:
        with contextlib.suppress(termios.error, OSError):
            self._modes = termios.tcgetattr(self._descriptor)
            self._set_quiet()
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTSTP, self._suspend)

    def _set_quiet(self) -> None:
        modes = termios.tcgetattr(self._descriptor)
        modes[3] &= ~termios.ECHO
        modes[0] &= ~termios.IXON  # otherwise Ctrl-S would block the supervisor at its next line
        termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)

    def _release_terminal(self) -> None:
        if self._modes is not None:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._modes)  # type: ignore[arg-type]  # as read
            self._modes = None
        if self._previous_handler is not None:
            signal.signal(signal.SIGTSTP, self._previous_handler)  # type: ignore[arg-type]  # as it was
            self._previous_handler = None

    def _suspend(self, _signal: int, _frame: object) -> None:
        """Restore the terminal while the program is suspended."""
        modes = self._modes
        with contextlib.suppress(termios.error, OSError):
            os.write(self._descriptor, SHOW_CURSOR + b"\n")
            if modes is not None:
                termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)  # type: ignore[arg-type]  # as read
        os.kill(os.getpid(), signal.SIGSTOP)
        with contextlib.suppress(termios.error, OSError):
            if modes is not None:
                self._set_quiet()
            os.write(self._descriptor, HIDE_CURSOR)
        self._was_suspended = True
