"""The claims of a publisher that are out: what a program holds, and the writer's record of them."""

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
"""Of an array that a sequence holds, as sys.getrefcount() counts them."""


class Claim:
    """A slot that the publisher has write-locked. It is given back when its last reference goes unpublished.

    An array made of it keeps it as the array's base, so a view on the pixels is a reference too.
    """

    __slots__ = ("__weakref__", "_reference", "is_open", "now_ns", "now_wall_ns", "slot", "writer")

    def __init__(self, writer: Writer) -> None:
        self.writer: Writer = writer
        """The writer that it belongs to."""
        self.slot: int = NO_SLOT
        """The slot's number."""
        self.is_open: bool = True
        """Whether it is neither published nor abandoned."""
        self.now_ns: int = 0
        """When it was made, CLOCK_MONOTONIC."""
        self.now_wall_ns: int = 0
        """When it was made, nanoseconds since 1970."""
        self._reference = weakref.ref(self)  # how the writer knows of the claim without keeping it

    @property
    def __array_interface__(self) -> dict[str, Any]:
        size = self.writer._slot_bytes
        address = self.writer.segment.address + self.writer._first_slot + self.slot * size
        return {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}

    @property
    def memory(self) -> Any:
        """The slot's bytes, for numpy to make an array of."""
        return np.asarray(self)

    def abandon(self) -> None:
        """Give the slot back unpublished; harmless if that was done before.

        Raises:
            OSError: The kernel refused to unlock it; the claim stays open.
        """
        self.writer._give_back(self)

    def __del__(self, _unlock: list[bytes] = UNLOCK) -> None:
        # Writer._sweep() unlocks lost claims too, but nothing calls it after a close, and the ring's next publisher
        # would lack the slot. As with a lease: if the garbage collector has cleared the weak reference, _sweep() may
        # have unlocked the slot already, and the writer claimed it again, so this leaves it alone.
        reference = getattr(self, "_reference", None)
        if reference is None or not self.is_open or reference() is None:
            return
        if not self.writer._open.is_viewed(self.slot):
            self.writer.segment.unlock(_unlock[self.slot])
            self.writer.lost += self.slot != NO_SLOT
            self.writer._forget(self)


class OpenClaims:
    """Knows the slots that are claimed without keeping the claims.

    A claim is referenced while its object is, or while there are views on its slot's array. The publisher's thread
    changes this record; any other may count.
    """

    def __init__(self) -> None:
        self.slots: dict[weakref.ref[Any], int] = {}
        """The slot of each claim, by the claim's weak reference."""
        self.arrays: Sequence[object] = ()
        """An array on each slot, which only this sequence references besides the views on it."""

    def is_viewed(self, slot: int) -> bool:
        """Whether there are views on the slot's array."""
        return slot < len(self.arrays) and getrefcount(self.arrays[slot]) > OWN_REFERENCES

    def referenced(self) -> int:
        """How many claims something still references."""
        return sum(self._is_referenced(*claim) for claim in list(self.slots.items()))

    def lost(self) -> Iterator[tuple[weakref.ref[Any], int]]:
        """The claims that nothing references any more, which may be deleted from ``slots`` meanwhile."""
        for reference, slot in list(self.slots.items()):
            if not self._is_referenced(reference, slot):
                yield reference, slot

    def _is_referenced(self, reference: weakref.ref[Any], slot: int) -> bool:
        return reference() is not None or self.is_viewed(slot)
