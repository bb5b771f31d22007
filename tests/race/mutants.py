"""Faults to put into the real code, one step moved or left out: what the race programs must find.

A fault replaces a piece of the source of one function, as it is in ``framebus/`` now; where that piece is no longer
there, applying the fault fails, so no fault outlives the code that it is about. The names are those of the model's
mutants (``model/mutants.py``).
"""

from __future__ import annotations

import inspect
import textwrap
import time
from types import ModuleType
from typing import Final, NamedTuple

from framebus import ring, steps
from framebus.segment import Segment


class Fault(NamedTuple):
    """A piece of a function, and what stands there instead."""

    owner: type | ModuleType
    function: str
    piece: str
    instead: str


MEANWHILE_S: Final = 0.05


def meanwhile(segment: Segment, slot: int) -> None:
    """Wait until somebody has begun to write the slot and let it go, alive or dead; not for long."""
    end_s = time.monotonic() + MEANWHILE_S
    words, seq = segment.words, steps.SEQ_WORDS[slot]
    while words[seq] and time.monotonic() < end_s:
        time.sleep(0)
    while segment.is_locked(steps.LOCK_READ[slot]) and time.monotonic() < end_s:
        time.sleep(0)


LOCK: Final = """
    if not segment.try_lock(LOCK_READ[slot]):
        self.overruns += 1
        return None
"""
CHECK: Final = """
    if segment.words[SEQ_WORDS[slot]] != sequence:
        segment.unlock(UNLOCK[slot])
        self.overruns += 1
        return None
"""
VIEW: Final = """
    return Lease(self, slot, sequence)
"""
CLAIM: Final = "segment.try_lock(LOCK_WRITE[slot])"
ZERO: Final = "words[seq] = 0"
HEADER_SEQUENCE: Final = "words[seq + EPOCH_WORD + 1] = self.next_sequence"
REST: Final = "words[seq + CAPTURED_WORD] = captured\n"
BEFORE_LOCK: Final = """
    segment = self.segment
"""

FAULTS: Final = {
    "lease: without 'lock'": Fault(steps.Reader, "_lease", LOCK, "\n"),
    "lease: without 'check'": Fault(steps.Reader, "_lease", CHECK, "\n"),
    "lease: 'check' before 'lock'": Fault(
        steps.Reader,
        "_lease",
        LOCK + CHECK[1:],
        CHECK + "    meanwhile(segment, slot)\n" + LOCK[1:],
    ),
    "lease: unlocked while the view lives": Fault(
        steps.Reader, "_lease", VIEW, "\n    segment.unlock(UNLOCK[slot])" + VIEW
    ),
    "lease: not unlocked after a failed check": Fault(
        steps.Reader, "_lease", CHECK, CHECK.replace("segment.unlock(UNLOCK[slot])", "pass")
    ),
    "publish: without 'lock'": Fault(steps.Writer, "_claim", CLAIM, "True"),
    "publish: without 'zero'": Fault(steps.Writer, "_claim", ZERO, "pass"),
    "publish: 'header' and 'seq' before 'first'": Fault(
        steps.Writer,
        "_claim",
        ZERO,
        "words[seq + EPOCH_WORD + 1] = words[seq] = self.next_sequence",
    ),
    "header: no sequence before the pixels": Fault(steps.Writer, "_claim", HEADER_SEQUENCE, "pass"),
    "header: its sequence after the pixels": Fault(steps.Writer, "publish", REST, f"{HEADER_SEQUENCE}\n    {REST}"),
    "slow between look and lock": Fault(
        steps.Reader, "_lease", BEFORE_LOCK, BEFORE_LOCK + "    meanwhile(segment, slot)\n"
    ),
}
"""The last three are none. A header that is begun before the pixels is a second line of defence, for it has another
sequence than the slot's old one; where a fault hides behind it, the two of ``LATE_HEADER`` move it behind the pixels.
And a subscriber that takes its time makes what may happen meanwhile likely."""
LATE_HEADER: Final = "header: no sequence before the pixels,header: its sequence after the pixels"


_sources: dict[str, str] = {}
"""Functions that have a fault already."""


def apply(name: str) -> None:
    """Put the fault into this process, which takes its steps in Python from now on."""
    ring.steps = steps
    owner, function, piece, instead = FAULTS[name]
    source = _sources.get(function) or textwrap.dedent(inspect.getsource(getattr(owner, function)))
    if source.count(piece) != 1:
        raise ValueError(f"{name}: {owner.__name__}.{function} no longer has the lines that it is about")
    scope: dict[str, object] = {}
    _sources[function] = source.replace(piece, instead)
    exec(_sources[function], {**vars(steps), "meanwhile": meanwhile}, scope)
    setattr(owner, function, scope[function])
