"""The processes of a container: which belong to its service, which start it, and which only check it.

A process is identified when its first file access is seen, and again at each program that it executes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

SHELLS: Final = frozenset({"sh", "dash", "bash", "ash", "busybox", "zsh", "ksh"})
WRAPPERS: Final = frozenset({"env", "nice", "setpriv", "su", "runuser", "gosu", "su-exec"})
INITS: Final = frozenset({"tini", "tini-static", "dumb-init", "docker-init", "catatonit", "s6-svscan"})
STARTERS: Final = SHELLS | WRAPPERS | INITS
"""Shells, and programs that only start another program."""


class Role(StrEnum):
    """What a process does in the container."""

    SERVICE = "service"
    COMMAND = "command"
    """It was started from outside, by ``docker exec``, and is a part of the work."""
    START = "start"
    """A shell, what ran before the service's own first program, or the engine itself."""
    CHECK = "check"
    """The image's health check."""


WORK: Final = frozenset({Role.SERVICE, Role.COMMAND})


@dataclass
class Life:
    """A process while it runs one program."""

    number: int
    ancestors: tuple[int, ...]
    """PIDs, from its parent up."""
    programs: list[str]
    """The files that it has executed: a script, then its interpreter."""
    began: int
    """Number of the measurement's event that was its first."""
    executed: bool = True
    """Whether it has executed a file of the container; the engine's own processes have not."""
    arguments: tuple[str, ...] = ()
    fresh: bool = True
    """Whether it has opened no file yet except those that it executes."""

    @property
    def name(self) -> str:
        """The last part of the program's path."""
        return self.programs[-1].rpartition("/")[2] if self.programs else ""


class Lookup(NamedTuple):
    """Functions that read the properties of a running process."""

    executable: Callable[[int], str]
    arguments: Callable[[int], tuple[str, ...]]
    parent: Callable[[int], int]


def is_loader(program: str) -> bool:
    """Return whether a program is the dynamic loader, which the kernel executes on behalf of another."""
    name = program.rpartition("/")[2]
    return name.startswith(("ld-", "ld.so", "ld64.so"))


@dataclass
class Processes:
    """All processes that have been seen."""

    lookup: Lookup
    lives: list[Life] = field(default_factory=list)
    _now: dict[int, int] = field(default_factory=dict)
    """Index of the current life of a process, by PID."""

    def executes(self, number: int, program: str, moment: int) -> None:
        """Record that a process is about to execute a file."""
        # The loader is a part of executing the program that was seen just before.
        if is_loader(program):
            return
        index = self._now.get(number)
        if index is not None and self.lives[index].fresh and self.lives[index].executed:
            life = self.lives[index]
            # The kernel executes a script and then its interpreter: one life, with both programs.
            if life.programs[-1:] != [program]:
                life.programs.append(program)
            return
        self._begin(number, [program], moment)

    def of(self, number: int, moment: int) -> int:
        """Return the index of the current life of a process that has opened or read a file."""
        index = self._now.get(number)
        if index is None:
            program = self.lookup.executable(number)
            index = self._begin(number, [program] if program else [], moment, executed=False)
        return index

    def opens(self, number: int, moment: int) -> int:
        """Return the same for a process that has opened a file by itself, not by executing it."""
        index = self.of(number, moment)
        life = self.lives[index]
        life.fresh = False
        # Not earlier: while the kernel loads the new program, these are still the arguments of the previous one.
        if not life.arguments:
            life.arguments = self.lookup.arguments(number)
        return index

    def _begin(self, number: int, programs: list[str], moment: int, *, executed: bool = True) -> int:
        ancestors: list[int] = []
        above = self.lookup.parent(number)
        # Bounded, because the parents are read one after another while processes end.
        while above > 1 and len(ancestors) < 100:
            ancestors.append(above)
            above = self.lookup.parent(above)
        if not ancestors:  # the process has ended: take the ancestors of its earlier life
            earlier = self._now.get(number)
            ancestors = list(self.lives[earlier].ancestors) if earlier is not None else []
        self.lives.append(Life(number, tuple(ancestors), programs, moment, executed))
        self._now[number] = len(self.lives) - 1
        return self._now[number]


def service_start(lives: Sequence[Life], firsts: Iterable[int], alive: Iterable[int]) -> Life | None:
    """Return the life in which the service's own program begins.

    It is the first program of process 1 that does not merely start another. If process 1 remains such a starter, for
    example ``tini`` or a shell, it is the first program of a process that still runs at the end.

    Args:
        lives: All lives, in order.
        firsts: PIDs of the processes that were process 1 of the container.
        alive: PIDs of the processes that run at the end of the work.
    """
    own, there = set(firsts), set(alive)
    # Processes of docker exec and of the engine are not below process 1 of the container.
    inside = [life for life in lives if life.number in own or own.intersection(life.ancestors)]
    programs = [life for life in inside if life.executed and life.name not in STARTERS]
    by_first = [life for life in programs if life.number in own]
    by_rest = [life for life in programs if life.number in there]
    return next(iter(by_first), None) or next(iter(by_rest), None) or next(iter(programs), None)


def roles(lives: Sequence[Life], firsts: Iterable[int], start: Life | None, check: Sequence[str]) -> list[Role]:
    """Return the role of each life.

    Args:
        lives: All lives, in order.
        firsts: PIDs of the processes that were process 1 of the container.
        start: The life in which the service's own program begins.
        check: Command line of the health check, empty without one.
    """
    own = set(firsts)
    contained = {life.number for life in lives if life.executed}
    checks = {life.number for life in lives if check and life.arguments == tuple(check)}
    found = []
    for life in lives:
        line = {life.number, *life.ancestors}
        # A process from outside: a health check, docker exec, or the engine itself.
        if not own & line:
            found.append(Role.CHECK if checks & line else Role.COMMAND if contained & line else Role.START)
        elif start is None or life.began < start.began or life.name in STARTERS:
            found.append(Role.START)
        else:
            found.append(Role.SERVICE)
    return found


def check_command(test: Sequence[str] | None, shell: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the command line of a health check that the engine reports as ``["CMD", "python", "check.py"]``."""
    if not test or test[0] == "NONE":
        return ()
    if test[0] == "CMD-SHELL":
        return (*(shell or ("/bin/sh", "-c")), *test[1:])
    return tuple(test[1:] if test[0] == "CMD" else test)
