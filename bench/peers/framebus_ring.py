"""framebus itself, as one peer for each way to wait."""

from __future__ import annotations

from typing import ClassVar, Final

from bench.peers import OPEN_TIMEOUT_S, Config, Peer, Pixels, Receiver, Sender
from framebus import Frame, FrameFormat, Loan, Publisher, Subscriber
from framebus.bus.options import Wake

SLOTS: Final = 8
"""Minimum number of slots."""


def slots_for(receivers: int) -> int:
    """Return the slots of a ring: two leases for every receiver, and some spare ones."""
    return max(SLOTS, 2 * receivers + 3)


class RingSender(Sender):
    """A publisher."""

    def __init__(self, config: Config) -> None:
        height, width, channels = config.shape
        self._publisher = Publisher(
            config.channel, FrameFormat(height, width, channels), slots=slots_for(config.receivers)
        )
        self._loan: Loan

    def loan(self) -> Pixels:
        self._loan = self._publisher.loan()
        return self._loan.pixels

    def publish(self) -> None:
        self._loan.publish()

    def close(self) -> None:
        self._publisher.close()


class RingReceiver(Receiver):
    """A subscriber to the newest frame."""

    def __init__(self, config: Config, index: int, wake: Wake) -> None:
        self._subscriber = Subscriber(
            config.channel,
            name=f"bench-{index}",
            # The mode and the number of leases are the defaults.
            wake=wake,
            attach_timeout_s=OPEN_TIMEOUT_S,
        )
        self._frame: Frame

    def receive(self, timeout_s: float) -> Pixels:
        self._frame = self._subscriber.receive(timeout_s)
        return self._frame.pixels

    def release(self) -> None:
        self._frame.release()

    def close(self) -> None:
        self._subscriber.close()


class Ring(Peer):
    """framebus with one way to wait."""

    wake: ClassVar[Wake]
    distribution = "framebus"
    module = "framebus"

    def sender(self, config: Config) -> Sender:
        return RingSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        return RingReceiver(config, index, self.wake)


class RingZmq(Ring):
    name = "framebus-zmq"
    title = "framebus, zmq"
    how = "No copy. The receiver waits on a ZeroMQ socket."
    wake = "zmq"


class RingFutex(Ring):
    name = "framebus-futex"
    title = "framebus, futex"
    how = "No copy. The receiver sleeps on a futex in the ring."
    wake = "futex"


class RingPredict(Ring):
    name = "framebus-predict"
    title = "framebus, predict"
    how = "No copy. The receiver sleeps until shortly before a frame is due, and then polls."
    wake = "predict"


class RingBusy(Ring):
    name = "framebus-busy"
    title = "framebus, busy"
    how = "No copy. The receiver polls without a pause, which takes a whole core."
    wake = "busy"


PEERS = (RingZmq(), RingFutex(), RingPredict(), RingBusy())
