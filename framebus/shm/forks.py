"""What a forked child must give up at once, before any other code of its own runs.

A child shares its parent's open file descriptions: an unlock, a shutdown or a removed file in the child would be the
parent's. So whatever holds a descriptor registers here, and gives it up in the child.

Source: fork(2); fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something that must not act in a forked child."""

    def after_fork_in_child(self) -> None:
        """Give up what belongs to the parent."""


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def register(owner: Inherited) -> None:
    """Call ``owner.after_fork_in_child()`` in every child that is forked while ``owner`` lives."""
    _inherited.add(owner)


def _give_up() -> None:
    for owner in list(_inherited):
        owner.after_fork_in_child()


os.register_at_fork(after_in_child=_give_up)
