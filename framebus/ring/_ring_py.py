"""The time-critical steps of a hand-over in plain Python, which run if ``_ring_c.c`` was not built.

The compiled module takes about two thirds of the time: the caches no longer hold the code that ran with the frame
before, so nearly every line of Python waits for memory. :mod:`framebus.ring` explains the steps and their order.
"""

from framebus.ring.claims import Claim, Writer
from framebus.ring.leases import Lease, Reader

__all__ = ["Claim", "Lease", "Reader", "Writer"]
