"""The steps of a hand-over that decide its time, in plain Python: what runs where ``_ring_c.c`` was not built.

The compiled module does the same in about two thirds of the time, because code that has not run since the frame before
waits for memory with nearly every line. :mod:`framebus.ring` says what the steps are for, and in which order they
must come.
"""

from framebus.ring.claims import Claim, Writer
from framebus.ring.leases import Lease, Reader

__all__ = ["Claim", "Lease", "Reader", "Writer"]
