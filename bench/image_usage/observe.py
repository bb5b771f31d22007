"""Observes an image at work: which files were opened, read and touched. At the start, none of them is in memory."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from bench.image_usage import engine, pagecache
from bench.image_usage.engine import Container, docker
from bench.image_usage.errors import CannotMeasure
from bench.image_usage.layers import Inode, View
from bench.image_usage.processes import WORK, Life, Role, roles, service_start
from bench.image_usage.watch import Watch

READY_S: Final = 300.0
MARK_S: Final = 20.0
LOOK_EVERY_S: Final = 0.5
SETTLE_S: Final = 0.3


class Subject(Protocol):
    """The container or the folder that is run and watched."""

    mount: str
    """Mount point of its root file system while it runs."""
    whole: bool
    check: tuple[str, ...]

    def start(self) -> None: ...
    def wait_until_ready(self, timeout_s: float) -> None: ...
    def running(self) -> bool: ...
    def firsts(self) -> set[int]: ...
    def stop(self) -> None: ...
    def environment(self) -> dict[str, str]: ...
    def sharers(self) -> list[str]: ...
    def restarts(self) -> int: ...
    def failure(self) -> str: ...


class Contained:
    """A container of the engine as the subject."""

    whole = True

    def __init__(self, container: Container, folders: Sequence[Path]) -> None:
        self.mount = container.merged
        self.check = container.check
        self._container = container
        self._folders = folders
        self._firsts: set[int] = set()

    def start(self) -> None:
        """Start the container."""
        docker("start", self._container.identity)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the container is healthy."""
        self._container.wait_until_ready(timeout_s)

    def running(self) -> bool:
        """Return whether the container is running."""
        return bool(self._container.state()["Running"])

    def firsts(self) -> set[int]:
        """Return the PIDs of its process 1, one for each start so far."""
        number = self._container.process()
        if number:
            self._firsts.add(number)
        return self._firsts

    def stop(self) -> None:
        """Stop the container, as the engine does."""
        docker("stop", self._container.identity)

    def environment(self) -> dict[str, str]:
        """Return the environment for a command that works on the container."""
        return engine.environment(self._container.identity)

    def sharers(self) -> list[str]:
        """Return the other running containers that have layers of its image."""
        return engine.sharers(self._folders, self._container.identity)

    def failure(self) -> str:
        """Return how the program ended, if it ended by itself with an error; else an empty string."""
        state = self._container.state()
        if state["Running"] or not state["ExitCode"]:
            return ""
        return f"its program ended by itself with exit status {state['ExitCode']}; 'docker run' shows what it printed"

    def restarts(self) -> int:
        """Return how many times the engine has restarted the container by itself."""
        return int(docker("container", "inspect", "--format", "{{.RestartCount}}", self._container.identity))


@dataclass(frozen=True)
class Work:
    """What the container does while it is watched."""

    commands: tuple[str, ...] = ()
    """Shell commands on this host. Each is an observation of its own, and the figures are those of the first."""
    lasts_s: float = 10.0
    """How long to wait if there is no command."""


@dataclass(frozen=True)
class Seen:
    """How a file was used."""

    order: int | None = None
    """Place among the files of the work by first use, from 1."""
    opened: bool = False
    read: bool = False
    """Whether its bytes were read, or it was seen mapped."""
    touched_bytes: int = 0
    held_bytes: int = 0
    """Bytes that another process held in memory before the start. Whether the work touched them cannot be seen."""
    apart: frozenset[Role] = frozenset()
    """Other roles that opened it: a health check, or what starts the service."""
    only_in: str = ""
    """The further command that opened it, if the work did not."""


@dataclass(frozen=True)
class Observation:
    """How each file was used, and what else was seen."""

    seen: Mapping[Inode, Seen]
    service: tuple[str, ...]
    """Command line of the service's own first program."""
    sharers: tuple[str, ...]
    restarts: int
    remarks: tuple[str, ...] = ()
    failure: str = ""


def observe(
    subject: Subject, folders: Sequence[Path], view: View, work: Work, tell: Callable[[str], None]
) -> Observation:
    """Drop a subject's files from memory, then run it and watch it.

    Raises:
        CannotMeasure: Something is missing or has failed.
    """
    files = {one.inode: (Path(f"{folders[one.layer]}{one.path}"), one.size_bytes) for one in view.files}
    numbers = {inode[1]: inode for inode in files}
    # Under overlayfs, events and mappings name a file by its inode number; without the device, it must be unique.
    if len(numbers) < len(files):
        raise CannotMeasure("the image's layers lie on several file systems, whose files cannot be told apart")
    with ExitStack() as stack:
        stack.enter_context(pagecache.alone())
        # With read-ahead, the kernel would load pages that the work never touches, and they would count as touched.
        stack.enter_context(pagecache.no_read_ahead(folders))
        tell("dropping the image's files from memory")
        for folder in folders[:1]:
            # Dirty pages cannot be dropped. All layers are on one file system, so one of the folders is enough.
            pagecache.write_back(folder)
        pagecache.drop(path for path, _ in files.values())
        # Pages that are still in memory are mapped by other processes. They must not count as touched by the work.
        held = pagecache.cached_bytes(files)
        sharing = subject.sharers()
        watch = stack.enter_context(Watch(numbers, subject.mount, whole=subject.whole))
        stack.callback(subject.stop)
        # A folder is mounted before its program starts; a container only when it starts.
        if not subject.whole:
            _wait_for_mark(watch)
        subject.start()
        _wait_for_mark(watch)
        subject.wait_until_ready(READY_S)
        first: Mapping[Inode, int] = {}
        for number, command in enumerate(work.commands or ("",)):
            if number:
                watch.next_phase()
            tell(f"running {command}" if command else f"watching it for {work.lasts_s:g} s")
            _work(subject, watch, command, work.lasts_s)
            watch.drain()
            # The pages after the first command: a further command must not add to the figures of the work.
            first = first or pagecache.cached_bytes(files)
        alive, firsts = watch.alive(), subject.firsts()
        failure = subject.failure()
        watch.phase = 0  # the end of the service is a part of its work
        subject.stop()
        watch.drain()
        memory = _Memory(held, first, pagecache.cached_bytes(files))
        restarts = subject.restarts()
    lives = watch.processes.lives
    start = service_start(lives, firsts, alive)
    if start is None:
        raise CannotMeasure("no program of the container was seen: it started before it was watched, so run this again")
    found = roles(lives, firsts, start, subject.check)
    seen = _join(watch, found, numbers, memory, work.commands)
    return Observation(seen, start.arguments, tuple(sharing), restarts, _remarks(lives, found), failure)


def _wait_for_mark(watch: Watch) -> None:
    ends_s = time.monotonic() + MARK_S
    while not watch.marks:
        watch.drain()
        if time.monotonic() > ends_s:
            raise CannotMeasure(
                "the container's root file system has not appeared among this process's mounts: run this in the mount "
                "namespace of the engine"
            )
        time.sleep(0.01)


def _work(subject: Subject, watch: Watch, command: str, lasts_s: float) -> None:
    """Wait while the subject works: until the command ends, or the time is over, or the subject has ended."""
    ends_s = time.monotonic() + lasts_s
    process = subprocess.Popen(command, shell=True, env=subject.environment()) if command else None
    while True:
        watch.look_at_mappings()
        subject.firsts()
        if process is None:
            if time.monotonic() > ends_s or not subject.running():
                break
            time.sleep(LOOK_EVERY_S)
        else:
            try:
                code = process.wait(LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                continue
            if code:
                raise CannotMeasure(f"the work failed with exit status {code}: {command}")
            break
    watch.look_at_mappings()
    # Events of the last accesses may still be on the way.
    time.sleep(SETTLE_S)


class _Memory(NamedTuple):
    """How many bytes of each file were in memory: before the start, after the first command, and at the end."""

    held: Mapping[Inode, int]
    first: Mapping[Inode, int]
    end: Mapping[Inode, int]


def _join(
    watch: Watch, found: Sequence[Role], numbers: Mapping[int, Inode], memory: _Memory, commands: Sequence[str]
) -> dict[Inode, Seen]:
    order: dict[int, int] = {}
    opened: dict[int, set[int]] = {}
    read: set[int] = set()
    apart: dict[int, set[Role]] = {}
    for use in sorted(watch.uses):
        role = found[use.life]
        if role not in WORK:
            apart.setdefault(use.inode, set()).add(role)
            continue
        opened.setdefault(use.inode, set()).add(use.phase)
        if use.phase == 0:
            order.setdefault(use.inode, len(order) + 1)
            if use.reads:
                read.add(use.inode)
    mapped = {number for phase, number in watch.mapped if phase == 0}
    seen = {}
    for number, inode in numbers.items():
        phases = opened.get(number, set())
        # A file that a further command used counts as it was before; all others also include the end of the service.
        pages = memory.first if phases - {0} else memory.end
        held_bytes = memory.held.get(inode, 0)
        touched_bytes = max(pages.get(inode, 0) - held_bytes, 0)
        first = 0 in phases
        if phases or touched_bytes or held_bytes or number in apart or number in mapped:
            seen[inode] = Seen(
                order=order.get(number),
                opened=first,
                read=first and (number in read or number in mapped or touched_bytes > 0),
                touched_bytes=touched_bytes,
                held_bytes=held_bytes,
                apart=frozenset(apart.get(number, ())),
                only_in=commands[min(phases)] if phases and not first else "",
            )
    return seen


def _remarks(lives: Sequence[Life], found: Sequence[Role]) -> tuple[str, ...]:
    names: dict[Role, set[str]] = {}
    for life, role in zip(lives, found, strict=True):
        if life.name:
            names.setdefault(role, set()).add(life.name)
    texts = {
        Role.CHECK: "health checks",
        Role.START: "shells, and what starts the service",
        Role.COMMAND: "from outside",
    }
    return tuple(f"{text}: {', '.join(sorted(names[role]))}" for role, text in texts.items() if role in names)
