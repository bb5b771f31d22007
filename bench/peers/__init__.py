"""Ways to hand a frame to another process, behind one interface: one module a technology.

A peer is described in the harness's process and used in others: a sender, and one or more receivers. The harness
measures from just before :meth:`Sender.publish` to just after :meth:`Receiver.receive`, so these calls must contain all
that a peer has to do with each frame. What it can do once belongs into the opening of a side.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

OPEN_TIMEOUT_S: Final = 15.0
"""How long one side may wait for the other while it opens."""


@dataclass(frozen=True)
class Config:
    """What both sides know before they open. It is pickled for the workers."""

    channel: str
    """Name that no other run uses: letters, digits, ``-``; at most 40 characters."""
    shape: tuple[int, int, int]
    """Height, width, channels of every frame, uint8."""
    receivers: int
    """How many receivers there are."""
    pinned: bool = True
    """Whether the sender has one core for itself and the receivers the others; if not, the scheduler moves them."""
    handles: Any = None
    """What :meth:`Peer.prepare` yielded."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.shape[0] * self.shape[1] * self.shape[2]


class Sender(ABC):
    """The side that sends frames. It runs in one thread of a process of its own."""

    @abstractmethod
    def loan(self) -> Pixels:
        """Return a writable array for the next frame: in shared memory if the peer has it, else in private memory.

        It has the config's shape, and its content is undefined. Every loaned frame is published.
        """

    @abstractmethod
    def publish(self) -> None:
        """Hand the loaned frame to every receiver. The peer may drop older frames, or wait for room."""

    def close(self) -> None:  # noqa: B027  many have nothing to free
        """Free what was opened."""


class Receiver(ABC):
    """A side that receives frames. It runs in one thread of a process of its own."""

    @abstractmethod
    def receive(self, timeout_s: float) -> Pixels:
        """Return the next frame, as an array of the config's shape that is valid until :meth:`release`.

        Raises:
            TimeoutError: No frame arrived in time.
        """

    def release(self) -> None:  # noqa: B027  many have nothing to give back
        """Release the frame of the last :meth:`receive`; the harness no longer holds a view on it."""

    def close(self) -> None:  # noqa: B027  many have nothing to free
        """Free what was opened."""


class Peer(ABC):
    """One way to hand over frames. Instances are small, and are pickled for the workers."""

    name: ClassVar[str]
    """Short and unique: letters, digits, ``-``."""
    title: ClassVar[str]
    """Name in the report, such as ``Redis pub/sub``."""
    how: ClassVar[str]
    """One sentence for the report: what is copied where, and what the receiver waits on."""
    distribution: ClassVar[str | None] = None
    """The PyPI package it needs, if any."""
    module: ClassVar[str | None] = None
    """The module of that package."""
    lossless: ClassVar[bool] = False
    """Whether every receiver gets every frame; if not, a newer frame may replace those that wait."""

    def missing(self) -> str | None:
        """Return why the peer cannot run on this machine and what to install, or ``None`` if it can run."""
        # Look for the module without importing it: an import may start threads or take seconds.
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            return f"{self.distribution} is not installed: pip install {self.distribution}"
        return None

    def version(self) -> str:
        """Return the version of what is measured."""
        return importlib.metadata.version(self.distribution) if self.distribution else ""

    @contextmanager
    def prepare(self, config: Config) -> Iterator[Any]:
        """Start a server or make queues, in the harness, before the workers start. Yields handles; they are pickled."""
        del config
        yield None

    @abstractmethod
    def sender(self, config: Config) -> Sender:
        """Open the sending side. Both sides open at the same time, and wait for each other if they must."""

    @abstractmethod
    def receiver(self, config: Config, index: int) -> Receiver:
        """Open the receiving side with the number ``index``, from 0."""


MODULES: Final = (
    "framebus_ring",
    "iceoryx2_loan",
    "momentumx_stream",
    "zenoh_shm",
    "dora_dataflow",
    "standard_library",
    "tmpfs_file",
    "gstreamer_shm",
    "zeromq_inline",
    "redis_server",
    "rabbitmq_server",
    "h264_stream",
    "floors",
)
"""Modules of this package with peers, in the report's order. Each has ``PEERS``, a tuple of instances."""


def all_peers() -> dict[str, Peer]:
    """Return every peer by its name."""
    return {peer.name: peer for name in MODULES for peer in importlib.import_module(f"bench.peers.{name}").PEERS}
