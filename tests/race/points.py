"""The points of their work at which publishers and subscribers are killed or stopped.

A point is armed in the process that is to be interrupted. When its work comes there, the process sends itself SIGKILL;
or SIGSTOP, and goes on with what it was about when SIGCONT comes. A point whose function is not there fails to arm.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Final

from framebus.bus import attachment, served_stream, waiting
from framebus.bus import publisher as publisher_module
from framebus.notify.listener import Listener
from framebus.notify.server import NotificationServer
from framebus.ring import admission as seats
from framebus.ring import claims, leases, publisher_ring, words
from framebus.ring.publisher_ring import PublisherRing
from framebus.ring.subscriber_ring import SubscriberRing
from framebus.shm import locks
from framebus.shm import segment as shm

_SLOTS: Final = frozenset(words.UNLOCK)
_chosen = signal.SIGKILL


def choose(number: signal.Signals) -> None:
    """Take another signal for this process than SIGKILL."""
    global _chosen  # noqa: PLW0603  the process has one end
    _chosen = number


def interrupt() -> None:
    """Send this process its signal."""
    os.kill(os.getpid(), _chosen)


def always(*_arguments: object) -> bool:
    """Any call is the one."""
    return True


def of_a_slot(_segment: shm.Segment, command: bytes) -> bool:
    """The call unlocks a slot."""
    return command in _SLOTS


def of_ready(_listener: Listener, body: bytes) -> bool:
    """The call answers the publisher's side of the handshake."""
    return body.startswith(b"\5READY")


def of_a_record(_segment: shm.Segment, command: bytes) -> bool:
    """The call locks a subscriber's record."""
    return command is seats._ALIVE


def before(owner: object, name: str, when: Callable[..., bool] = always) -> None:
    """Interrupt the process once, before it calls the function."""
    _wrap(owner, name, when, before=True)


def after(owner: object, name: str, when: Callable[..., bool] = always) -> None:
    """Interrupt the process once, after it called the function."""
    _wrap(owner, name, when, before=False)


def _wrap(owner: object, name: str, when: Callable[..., bool], *, before: bool) -> None:
    original = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if not when(*arguments):
            return original(*arguments, **named)
        setattr(owner, name, original)
        if before:
            interrupt()
        result = original(*arguments, **named)
        if not before:
            interrupt()
        return result

    setattr(owner, name, call)


class Stores:
    """A view on the ring's words that interrupts the process before one of its stores."""

    def __init__(self, words: Any, countdown: list[int]) -> None:
        self._words = words
        self._countdown = countdown

    def __getitem__(self, index: int) -> int:
        return int(self._words[index])

    def __setitem__(self, index: int, value: int) -> None:
        self._countdown[0] -= 1
        if self._countdown[0] == 0:
            interrupt()
        self._words[index] = value


def before_store(segment: shm.Segment, count: int) -> None:
    """Interrupt the process before its ``count``-th store of a word into the ring from now on."""
    countdown = [count]
    segment.words = Stores(segment.words, countdown)  # type: ignore[assignment]
    segment.words32 = Stores(segment.words32, countdown)  # type: ignore[assignment]


Points = dict[str, Callable[[], None]]

OPENING: Final[Points] = {
    "lock acquired": lambda: after(locks.PublisherLock, "acquire"),
    "ring opened, nothing written": lambda: before(PublisherRing, "_use"),
    "ring opened": lambda: after(PublisherRing, "_use"),
    "file created": lambda: after(shm, "create"),
    "before the rename": lambda: before(shm.Segment, "rename"),
    "after the rename": lambda: after(shm.Segment, "rename"),
    "before the bind": lambda: before(NotificationServer, "_bind"),
    "after the bind": lambda: after(NotificationServer, "_bind"),
}
NEW_FILE: Final = ("file created", "before the rename", "after the rename")
"""Those that only a publisher comes to that makes a new file."""
PUBLISHING: Final[Points] = {
    "slot locked": lambda: after(claims.Writer, "claim"),
    "before the publication": lambda: before(claims.Writer, "publish"),
    "before the unlock": lambda: before(shm.Segment, "unlock", of_a_slot),
    "before the tail": lambda: after(shm.Segment, "unlock", of_a_slot),
    "published, before the wake": lambda: before(words, "wake_all"),
    "woken, before the notification": lambda: after(words, "wake_all"),
    "notified": lambda: after(publisher_module.Publisher, "_publish"),
}
PIXELS: Final = "in the middle of the pixels"
TWO_LOANS: Final = (
    "in the middle of one of two loans",
    "the later of two loans published",
    "one of two loans abandoned",
    "one of two loans lost",
)
"""Those that only a publisher comes to that has two loans out; victims.py interrupts it there."""
STORES: Final = tuple(f"before store {count} of the publication" for count in range(1, 8))
"""The last changes the event word."""
REPLACING: Final[Points] = {
    "replacement created": lambda: after(shm, "create"),
    "replacement not renamed": lambda: before(shm.Segment, "rename"),
    "replacement renamed": lambda: after(shm.Segment, "rename"),
    "old ring not superseded": lambda: before(publisher_ring, "_supersede"),
    "old ring superseded": lambda: after(publisher_ring, "_supersede"),
    "replaced, before the wake": lambda: after(PublisherRing, "replace"),
}
CLOSING: Final[Points] = {
    "ring marked as closed": lambda: before(shm.Segment, "unlink"),
    "ring closed": lambda: before(served_stream.ServedStream, "_close_rest"),
    "socket closed": lambda: after(NotificationServer, "close"),
}
SUBSCRIBING: Final[Points] = {
    "attached": lambda: after(SubscriberRing, "is_live"),
    "first seat taken": lambda: after(shm.Segment, "try_lock"),
    "seats taken": lambda: before(locks, "release_flock"),
    "seats taken, flock released": lambda: after(locks, "release_flock"),
    "record created": lambda: after(shm, "create"),
    "record written, not locked": lambda: before(shm.Segment, "try_lock", of_a_record),
    "record locked": lambda: after(attachment, "RecordFile"),
    "before the connection": lambda: before(Listener, "_connect"),
    "connected": lambda: after(waiting, "Listener"),
    "before the subscription": lambda: before(Listener, "_handle_command", of_ready),
    "subscribed": lambda: after(Listener, "_handle_command", of_ready),
}
RECEIVING: Final[Points] = {
    "before the lease": lambda: before(leases.Reader, "_lease"),
    "leased": lambda: before(attachment, "Frame"),
    "before the release": lambda: before(shm.Segment, "unlock", of_a_slot),
    "after the release": lambda: after(shm.Segment, "unlock", of_a_slot),
}
IN_STEPS: Final = frozenset(
    {
        "slot locked",
        "before the publication",
        "before the unlock",
        "before the tail",
        "published, before the wake",
        "woken, before the notification",
        *STORES,
        "before the lease",
        "before the release",
        "after the release",
    }
)
"""Points inside compiled code, which cannot be interrupted: a process that is to die there runs the Python steps."""
LEAVING: Final[Points] = {
    "record removed": lambda: after(seats.RecordFile, "remove"),
}
AT_RANDOM: Final = "at random"
POINTS: Final = {
    "publisher": [*OPENING, *PUBLISHING, PIXELS, *TWO_LOANS, *STORES, *REPLACING, *CLOSING, AT_RANDOM],
    "subscriber": [*SUBSCRIBING, *RECEIVING, *LEAVING, AT_RANDOM],
}
