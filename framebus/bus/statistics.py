"""Counters of publishers and subscribers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """Counters of a publisher since it opened."""

    published: int
    """Frames published."""
    abandoned: int
    """Loans given back without publication, including the lost ones."""
    lost: int
    """Loans that were given back because nothing referenced them any more."""
    dropped: int
    """Loans refused because no slot was free."""
    replaced: int
    """Times the ring was replaced because another process held its slots and did not release them."""
    adopted: bool
    """Whether the publisher took over the ring of an earlier one."""
    epoch: int
    """The random number that identifies this publisher instance."""
    sequence: int
    """Sequence of the newest frame; 0 before the first frame of a new ring."""


@dataclass(frozen=True, slots=True)
class SubscriberStatistics:
    """Counters of a subscriber since it subscribed."""

    received: int
    """Frames received."""
    skipped: int
    """Frames missed between those received."""
    overruns: int
    """Times the publisher reused a slot before it was leased; the subscriber retried immediately."""
    rejected: int
    """Frames skipped because the slot's header was invalid."""
    notifications_rejected: int
    """Messages on the notification socket that were not of this stream."""
    reattached: int
    """Times the subscriber moved to a new ring file."""
    leases: int
    """Frames held now."""
