"""The processes of a container: which belong to its service, which start it, which only look after it.

A process is known by what it was when its first file was seen, and anew from each program that it executes.
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
"""Shells, and programs that do nothing but start another."""


class Role(StrEnum):
    """What a process does in the container."""

    SERVICE = "service"
    COMMAND = "command"
    """It came from outside: ``docker exec``, which is a part of the work."""
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
    """From its parent up."""
    programs: list[str]
    """What it has executed: a script, then its interpreter."""
    began: int
    """Which event of the measurement was its first."""
    executed: bool = True
    """Whether it has executed a file of the container; the engine's own processes have not."""
    arguments: tuple[str, ...] = ()
    fresh: bool = True
    """Whether it has opened nothing yet but what it executes."""

    @property
    def name(self) -> str:
        """The last part of the program's path."""
        return self.programs[-1].rpartition("/")[2] if self.programs else ""


class Lookup(NamedTuple):
    """How to learn of a process that runs."""

    executable: Callable[[int], str]
    arguments: Callable[[int], tuple[str, ...]]
    parent: Callable[[int], int]


def is_loader(program: str) -> bool:
    """Return whether a program is the dynamic loader, which the kernel executes on behalf of another."""
    name = program.rpartition("/")[2]
    return name.startswith(("ld-", "ld.so", "ld64.so"))


@dataclass
class Processes:
    """All that have been seen."""

    lookup: Lookup
    lives: list[Life] = field(default_factory=list)
    _now: dict[int, int] = field(default_factory=dict)
    """Which life a process leads."""

    def executes(self, number: int, program: str, moment: int) -> None:
        """A process is about to execute a file."""
        if is_loader(program):
            return
        index = self._now.get(number)
        if index is not None and self.lives[index].fresh and self.lives[index].executed:
            life = self.lives[index]
            if life.programs[-1:] != [program]:
                life.programs.append(program)
            return
        self._begin(number, [program], moment)

    def of(self, number: int, moment: int) -> int:
        """Return the index of the life that a process leads, which has opened or read a file."""
        index = self._now.get(number)
        if index is None:
            program = self.lookup.executable(number)
            index = self._begin(number, [program] if program else [], moment, executed=False)
        return index

    def opens(self, number: int, moment: int) -> int:
        """Return the same of a process that has opened a file to read it itself."""
        index = self.of(number, moment)
        life = self.lives[index]
        life.fresh = False
        if not life.arguments:  # which are those of the program before while the kernel still looks at the new one
            life.arguments = self.lookup.arguments(number)
        return index

    def _begin(self, number: int, programs: list[str], moment: int, *, executed: bool = True) -> int:
        ancestors: list[int] = []
        above = self.lookup.parent(number)
        while above > 1 and len(ancestors) < 100:
            ancestors.append(above)
            above = self.lookup.parent(above)
        if not ancestors:  # gone: what it was before tells
            earlier = self._now.get(number)
            ancestors = list(self.lives[earlier].ancestors) if earlier is not None else []
        self.lives.append(Life(number, tuple(ancestors), programs, moment, executed))
        self._now[number] = len(self.lives) - 1
        return self._now[number]


def service_start(lives: Sequence[Life], firsts: Iterable[int], alive: Iterable[int]) -> Life | None:
    """Return the life in which the service's own program begins.

    That is the first program of process 1 which does not merely start another. Where process 1 stays one that does,
    such as ``tini`` or a shell, it is the first program of a process that is still there at the end.

    Args:
        lives: All, in order.
        firsts: Numbers of the processes that were process 1 of the container.
        alive: Numbers of those that run at the end of the work.
    """
    own, there = set(firsts), set(alive)
    inside = [life for life in lives if life.number in own or own.intersection(life.ancestors)]
    programs = [life for life in inside if life.executed and life.name not in STARTERS]
    by_first = [life for life in programs if life.number in own]
    by_rest = [life for life in programs if life.number in there]
    return next(iter(by_first), None) or next(iter(by_rest), None) or next(iter(programs), None)


def roles(lives: Sequence[Life], firsts: Iterable[int], start: Life | None, check: Sequence[str]) -> list[Role]:
    """Return the role of each life.

    Args:
        lives: All, in order.
        firsts: Numbers of the processes that were process 1 of the container.
        start: Where the service's own program begins.
        check: Command line of the health check, empty without one.
    """
    own = set(firsts)
    contained = {life.number for life in lives if life.executed}
    checks = {life.number for life in lives if check and life.arguments == tuple(check)}
    found = []
    for life in lives:
        line = {life.number, *life.ancestors}
        if not own & line:
            found.append(Role.CHECK if checks & line else Role.COMMAND if contained & line else Role.START)
        elif start is None or life.began < start.began or life.name in STARTERS:
            found.append(Role.START)
        else:
            found.append(Role.SERVICE)
    return found


def check_command(test: Sequence[str] | None, shell: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the command line of a health check that the engine tells as ``["CMD", "python", "check.py"]``."""
    if not test or test[0] == "NONE":
        return ()
    if test[0] == "CMD-SHELL":
        return (*(shell or ("/bin/sh", "-c")), *test[1:])
    return tuple(test[1:] if test[0] == "CMD" else test)
