"""Releases what a forked child inherits, before any other code of the child runs.

A child shares the open file descriptions of its parent, so an unlock or a shutdown in the child would affect the
parent. To prevent this, every object that holds a descriptor registers here, and closes its duplicate in the child.

Source: fork(2); fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """An object that must not be used in a forked child."""

    def after_fork_in_child(self) -> None:
        """Close the child's duplicates of what belongs to the parent."""


# Weak, so that registering does not keep objects and their descriptors alive.
_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def register(owner: Inherited) -> None:
    """Call ``owner.after_fork_in_child()`` in every child that is forked while ``owner`` lives."""
    _inherited.add(owner)


def _give_up() -> None:
    for owner in list(_inherited):
        owner.after_fork_in_child()


os.register_at_fork(after_in_child=_give_up)
