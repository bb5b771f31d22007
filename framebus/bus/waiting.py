"""The four ways to wait for a frame, behind one interface."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Final

from framebus.bus.arrivals import ArrivalPredictor
from framebus.bus.frames import Frame
from framebus.errors import InvalidArgument
from framebus.notify.listener import Listener
from framebus.ring.frame_header import FrameHeader
from framebus.ring.leases import Lease, Reader

SPIN_NS: Final = 500_000
"""How long to spin after a warm-up, whose effect on the caches wears off."""


class Waiter(ABC):
    """A way to wait for the next frame of a subscriber.

    The subscriber's thread uses it. Another thread may close it only while the subscriber is not receiving.
    """

    delivered: FrameHeader | None = None
    """Header of the last frame that the subscriber received."""

    @property
    def rejected(self) -> int:
        """Messages that were not notifications of the stream."""
        return 0

    @abstractmethod
    def wait(self, reader: Reader, event: int, timeout_s: float) -> Lease | None:
        """Wait for an event of the ring.

        Args:
            reader: The subscriber's reader of the ring.
            event: The ring's event word, read before the subscriber last found no frame.
            timeout_s: Seconds to wait at most. The method may return early.

        Returns:
            The next frame's lease, if the wait has found one. After ``None``, the caller must search for a frame.
        """

    def drain(self) -> None:  # noqa: B027  most ways have no notifications
        """Consume the notifications that have arrived, so that :meth:`wait` sleeps until the next one."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are notifications.

        Raises:
            InvalidArgument: This way to wait has no descriptor.
        """
        raise InvalidArgument("only a subscriber with wake='zmq' has a descriptor: open it with wake='zmq'")

    def close(self) -> None:  # noqa: B027  most ways hold nothing
        """Release what it holds. May be called again."""


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
        """Messages that were not notifications of the stream."""
        return self._listener.rejected

    def wait(self, reader: Reader, event: int, timeout_s: float) -> None:  # noqa: ARG002
        """Sleep until a notification comes."""
        self._listener.wait(timeout_s)

    def drain(self) -> None:
        """Consume the notifications that have arrived."""
        self._listener.drain()

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are notifications."""
        return self._listener.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._listener.close()


class FutexWaiter(Waiter):
    """Sleeps in futex(2) on the ring's event word."""

    def wait(self, reader: Reader, event: int, timeout_s: float) -> Lease | None:
        """Sleep until the event word changes, then try to lease a frame."""
        return reader.sleep(event, int(timeout_s * 1e9))


class PredictiveWaiter(Waiter):
    """Sleeps like :class:`FutexWaiter`, but spins from shortly before the predicted arrival of the next frame."""

    def __init__(self) -> None:
        self._predictor = ArrivalPredictor()

    def wait(self, reader: Reader, event: int, timeout_s: float) -> Lease | None:
        """Sleep until shortly before the predicted arrival, or spin if it is near."""
        now_ns = time.monotonic_ns()
        end_ns = now_ns + int(timeout_s * 1e9)
        # Record the last frame here instead of at its delivery, to avoid delaying it.
        if self.delivered is not None:
            self._predictor.observe(self.delivered.sequence, self.delivered.published_ns)
        begin_ns, until_ns = self._predictor.window()
        # Spin for SPIN_NS at most: the next call warms the caches again.
        if begin_ns <= now_ns < until_ns:
            return spin(reader, min(until_ns, now_ns + SPIN_NS, end_ns))
        # Before the window, sleep until it begins. An earlier frame still ends the sleep.
        if now_ns < begin_ns < end_ns:
            end_ns = begin_ns
        return reader.sleep(event, end_ns - now_ns)


class BusyWaiter(Waiter):
    """Always spins, which takes a whole core."""

    def wait(self, reader: Reader, event: int, timeout_s: float) -> Lease | None:  # noqa: ARG002
        """Spin."""
        return spin(reader, time.monotonic_ns() + min(SPIN_NS, int(timeout_s * 1e9)))


def spin(reader: Reader, until_ns: int) -> Lease | None:
    """Warm the caches by running the delivery path, then spin until there is a frame.

    Args:
        reader: The subscriber's reader of the ring.
        until_ns: When to give up, CLOCK_MONOTONIC.
    """
    # Create an array too, so that the code of numpy is in the caches when the frame arrives.
    if (lease := reader.warm_up()) is not None:
        Frame(lease).pixels  # noqa: B018  accessing the property creates the array
        del lease
    return reader.spin(until_ns)


def waiter_for(wake: str, stream: str) -> Waiter:
    """Create the waiter for one of the values of :data:`~framebus.bus.options.Wake`.

    Raises:
        ResourceExhausted: The process has no descriptor left for its socket.
    """
    if wake == "zmq":
        return SocketWaiter(stream)
    kinds: dict[str, type[FutexWaiter | PredictiveWaiter | BusyWaiter]]
    kinds = {"futex": FutexWaiter, "predict": PredictiveWaiter, "busy": BusyWaiter}
    return kinds[wake]()
