"""Names at the message broker: a stream's exchanges and queues, the types of messages, and their headers.

A stream NAME has these exchanges and queues. Each name begins with ``framebus.NAME.``.

| name | what |
| --- | --- |
| ``frames`` | fanout exchange for references to frames; bound to a queue ``frames.GROUP`` for each group of detectors |
| ``results`` | fanout exchange for references to results; each reader of results binds a queue of its own |
| ``dropped`` | fanout exchange to which the broker dead-letters frames of a live policy that are too many or too old |
| ``dead`` | fanout exchange for messages that could not be processed, and the queue that keeps them |
| ``relay`` | exclusive queue of a connected relay; ensures that a stream has a single relay |
| ``settled`` | queue from which a relay reads the outcome of each frame |

Source: RabbitMQ's guide "Dead Letter Exchanges".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FRAME, RESULT = "framebus.frame", "framebus.result"
"""Message types."""
REASON: Final = "x-framebus-reason"
"""Header of a dead letter: why the message could not be processed."""
GROUP: Final = "x-framebus-group"
"""Header of a dead letter: the group of the detector that rejected the message."""
WORKER: Final = "x-framebus-worker"
"""Header of a dead letter: the detector that rejected the message."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a stream's exchanges and queues."""

    stream: str

    @property
    def frames(self) -> str:
        """Exchange for references to frames."""
        return f"framebus.{self.stream}.frames"

    @property
    def results(self) -> str:
        """Exchange for references to results."""
        return f"framebus.{self.stream}.results"

    @property
    def dropped(self) -> str:
        """Exchange for frames that the broker dropped."""
        return f"framebus.{self.stream}.dropped"

    @property
    def dead(self) -> str:
        """Exchange and queue for messages that could not be processed."""
        return f"framebus.{self.stream}.dead"

    @property
    def settled(self) -> str:
        """The relay's queue of results, dropped frames and dead letters."""
        return f"framebus.{self.stream}.settled"

    @property
    def relay(self) -> str:
        """Exclusive queue, which ensures that a stream has a single relay."""
        return f"framebus.{self.stream}.relay"

    def group(self, group: str) -> str:
        """Queue of a group of detectors."""
        return f"{self.frames}.{group}"
