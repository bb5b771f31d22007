"""Open claims: the object that a program holds, and the writer's table of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from sys import getrefcount
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from framebus.ring.words import NO_SLOT, UNLOCK

if TYPE_CHECKING:
    from framebus.ring.claims import Writer

OWN_REFERENCES: Final = 2
"""What sys.getrefcount() returns for an array without views: one reference of the list, one of the argument."""


class Claim:
    """A slot that the publisher has write-locked. Unless published, it is given back when its last reference goes.

    An array that is made from the claim has it as its base, so views on the pixels hold the claim too.
    """

    __slots__ = ("__weakref__", "_reference", "is_open", "now_ns", "now_wall_ns", "slot", "writer")

    def __init__(self, writer: Writer) -> None:
        self.writer: Writer = writer
        """The writer to which the claim belongs."""
        self.slot: int = NO_SLOT
        """The slot's number."""
        self.is_open: bool = True
        """Whether the claim is neither published nor abandoned."""
        self.now_ns: int = 0
        """When the slot was claimed, CLOCK_MONOTONIC."""
        self.now_wall_ns: int = 0
        """When the slot was claimed, nanoseconds since 1970."""
        self._reference = weakref.ref(self)  # the key under which the writer tracks the claim without keeping it alive

    @property
    def __array_interface__(self) -> dict[str, Any]:
        size = self.writer._slot_bytes
        address = self.writer.segment.address + self.writer._first_slot + self.slot * size
        return {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}

    @property
    def memory(self) -> Any:
        """The slot's bytes, as an object that numpy can wrap as an array."""
        return np.asarray(self)

    def abandon(self) -> None:
        """Give the slot back without publishing it. May be called again.

        Raises:
            OSError: The kernel refused to unlock the slot; the claim stays open.
        """
        self.writer._give_back(self)

    def __del__(self, _unlock: list[bytes] = UNLOCK) -> None:
        # Writer._sweep() unlocks lost claims too, but it no longer runs after a close, and the ring's next publisher
        # would lack the slot. If the garbage collector has cleared the weak reference, _sweep() may already have
        # unlocked the slot, and the writer may have claimed it again. In this case, leave it alone, as Lease.__del__()
        # does.
        reference = getattr(self, "_reference", None)
        if reference is None or not self.is_open or reference() is None:
            return
        if not self.writer._open.is_viewed(self.slot):
            self.writer.segment.unlock(_unlock[self.slot])
            self.writer.lost += self.slot != NO_SLOT
            self.writer._forget(self)


class OpenClaims:
    """Tracks the slots that are claimed, without keeping the claims alive.

    A claim counts as referenced while its object is referenced, or while there are views on its slot's array. Only the
    publisher's thread changes this table; other threads may count.
    """

    def __init__(self) -> None:
        self.slots: dict[weakref.ref[Any], int] = {}
        """The slot of each claim, by the claim's weak reference."""
        self.arrays: Sequence[object] = ()
        """One array for each slot. Only this sequence and the views on an array reference it."""

    def is_viewed(self, slot: int) -> bool:
        """Return whether there are views on the slot's array."""
        # A view has the slot's array as its base, so each one is a further reference.
        return slot < len(self.arrays) and getrefcount(self.arrays[slot]) > OWN_REFERENCES

    def referenced(self) -> int:
        """Return how many claims are still referenced."""
        return sum(self._is_referenced(*claim) for claim in list(self.slots.items()))

    def lost(self) -> Iterator[tuple[weakref.ref[Any], int]]:
        """Yield the claims that are no longer referenced. The caller may delete them from ``slots`` meanwhile."""
        for reference, slot in list(self.slots.items()):
            if not self._is_referenced(reference, slot):
                yield reference, slot

    def _is_referenced(self, reference: weakref.ref[Any], slot: int) -> bool:
        return reference() is not None or self.is_viewed(slot)
