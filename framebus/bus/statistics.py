"""What a publisher and a subscriber count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """What a publisher has done since it opened."""

    published: int
    """Frames published."""
    abandoned: int
    """Loans given back unpublished, the lost ones included."""
    lost: int
    """Loans that were given back because nothing referenced them any more."""
    dropped: int
    """Loans refused because no slot was free."""
    replaced: int
    """Times the ring was replaced because another process held its slots and did not release them."""
    adopted: bool
    """Whether the publisher took over the ring of an earlier one."""
    epoch: int
    """The random number that marks this life of the publisher."""
    sequence: int
    """Sequence of the newest frame published; 0 before the first of a new ring."""


@dataclass(frozen=True, slots=True)
class SubscriberStatistics:
    """What a subscriber has seen since it subscribed."""

    received: int
    """Frames received."""
    skipped: int
    """Frames missed between those received."""
    overruns: int
    """Slots that the publisher reused before they were leased; the subscriber retried at once."""
    rejected: int
    """Slot headers that were invalid, and were skipped."""
    notifications_rejected: int
    """Messages on the notification socket that were not of this stream."""
    reattached: int
    """Times another ring file took the place of the first."""
    leases: int
    """Frames held now."""
