"""Hosts for tests: network namespaces of this machine, each connected to it by its own virtual cable."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.support import lacks

NETWORK = 100 + os.getpid() % 100
"""Second number of the hosts' addresses, 10.NETWORK.HOST.x, of each run its own: a killed one may leave some."""


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace."""

    name: str
    gateway: str
    """The address of this machine, as the host sees it."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """The command prefix that runs another command on the host."""
        return ("ip", "netns", "exec", self.name)


@contextmanager
def running_hosts(count: int) -> Iterator[list[Host]]:
    """Make namespaces, and remove them at the end."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        lacks("hosts are network namespaces, which only root makes: run as root, after 'make system-packages'")
    with ExitStack() as stack:
        yield [stack.enter_context(_host(f"fb{os.getpid()}-{number}", number)) for number in range(1, count + 1)]


@contextmanager
def _host(name: str, number: int) -> Iterator[Host]:
    outer, inner = f"fbo{os.getpid() % 100_000}-{number}", f"fbi{os.getpid() % 100_000}-{number}"
    gateway, address = f"10.{NETWORK}.{number}.1", f"10.{NETWORK}.{number}.2"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _ip("addr", "add", f"{gateway}/24", "dev", outer)
        _ip("link", "set", outer, "up")
        for command in (
            ("addr", "add", f"{address}/24", "dev", inner),
            ("link", "set", inner, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *command)
        yield Host(name, gateway)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)  # this removes the cable too


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        lacks(f"ip {' '.join(arguments)}: {done.stderr.strip()}: the tests' hosts need the right to make namespaces")
