"""The four ways to wait for a frame, behind one interface."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Final

from framebus.bus.frames import Frame
from framebus.bus.pace import Pace
from framebus.errors import InvalidArgument
from framebus.notify.listener import Listener
from framebus.ring.frame_header import FrameHeader
from framebus.ring.leases import Lease, Reader

SPIN_NS: Final = 500_000
"""How long to spin after a warm-up: its effect on the caches wears off."""


class Waiter(ABC):
    """Waits for the next frame of a subscriber.

    The subscriber's thread uses it; another thread closes it only while that one is not in a receive.
    """

    delivered: FrameHeader | None = None
    """Header of the frame that the subscriber received last."""

    @property
    def rejected(self) -> int:
        """Notifications that were not of the stream."""
        return 0

    @abstractmethod
    def wait(self, reader: Reader, event: int, timeout_s: float) -> Lease | None:
        """Wait for an event of the ring.

        Args:
            reader: The subscriber's reader of the ring.
            event: The ring's event word, read before the subscriber last found no frame.
            timeout_s: Seconds to wait at most; it may return early.

        Returns:
            The next frame's lease, where the wait has found it; after ``None``, the subscriber looks itself.
        """

    def drain(self) -> None:  # noqa: B027  most ways have nothing to take
        """Take the notifications that have come, so that :meth:`wait` sleeps until the next."""

    def fileno(self) -> int:
        """Descriptor that is readable while notifications have come.

        Raises:
            InvalidArgument: This way to wait has none.
        """
        raise InvalidArgument("only a subscriber with wake='zmq' has a descriptor: open it with wake='zmq'")

    def close(self) -> None:  # noqa: B027  most ways hold nothing
        """Release what it holds; harmless when that was done before."""


class SocketWaiter(Waiter):
    """Sleeps in poll(2) until a notification comes."""

    def __init__(self, stream: str) -> None:
        """Connect to the stream's notifications.

        Raises:
            ResourceExhausted: The process has no descriptor left.
        """
        self._listener = Listener(stream)

    @property
    def rejected(self) -> int:
        """Notifications that were not of the stream."""
        return self._listener.rejected

    def wait(self, reader: Reader, event: int, timeout_s: float) -> None:  # noqa: ARG002
        """Sleep until a notification comes."""
        self._listener.wait(timeout_s)

    def drain(self) -> None:
        """Take the notifications that have come."""
        self._listener.drain()

    def fileno(self) -> int:
        """Descriptor that is readable while notifications have come."""
        return self._listener.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._listener.close()


class FutexWaiter(Waiter):
    """Sleeps in futex(2) on the ring's event word."""

    def wait(self, reader: Reader, event: int, timeout_s: float) -> Lease | None:
        """Sleep until the event word changes, and lease what is there."""
        return reader.sleep(event, int(timeout_s * 1e9))


class PredictiveWaiter(Waiter):
    """Sleeps like :class:`FutexWaiter`, but spins from shortly before the next frame is due."""

    def __init__(self) -> None:
        self._pace = Pace()

    def wait(self, reader: Reader, event: int, timeout_s: float) -> Lease | None:
        """Sleep until the next frame is nearly due, or spin if it is."""
        now_ns = time.monotonic_ns()
        end_ns = now_ns + int(timeout_s * 1e9)
        # Learnt here rather than at the delivery, where the frame would wait for it.
        if self.delivered is not None:
            self._pace.learn(self.delivered.sequence, self.delivered.published_ns)
        begin_ns, until_ns = self._pace.window()
        if begin_ns <= now_ns < until_ns:
            return spin(reader, min(until_ns, now_ns + SPIN_NS, end_ns))
        if now_ns < begin_ns < end_ns:
            end_ns = begin_ns
        return reader.sleep(event, end_ns - now_ns)


class BusyWaiter(Waiter):
    """Spins all the time, and takes a whole core."""

    def wait(self, reader: Reader, event: int, timeout_s: float) -> Lease | None:  # noqa: ARG002
        """Spin."""
        return spin(reader, time.monotonic_ns() + min(SPIN_NS, int(timeout_s * 1e9)))


def spin(reader: Reader, until_ns: int) -> Lease | None:
    """Warm the caches with all that a delivery takes, then look for a frame without sleeping.

    Args:
        reader: The subscriber's reader of the ring.
        until_ns: When to give up, CLOCK_MONOTONIC.
    """
    if (lease := reader.rehearse()) is not None:
        Frame(lease).pixels  # noqa: B018  the property maps them
        del lease
    return reader.look(until_ns)


def waiter_for(wake: str, stream: str) -> Waiter:
    """Make the waiter for one of the ways of :data:`~framebus.bus.options.Wake`.

    Raises:
        ResourceExhausted: The process has no descriptor left for its socket.
    """
    if wake == "zmq":
        return SocketWaiter(stream)
    kinds: dict[str, type[FutexWaiter | PredictiveWaiter | BusyWaiter]]
    kinds = {"futex": FutexWaiter, "predict": PredictiveWaiter, "busy": BusyWaiter}
    return kinds[wake]()
