"""The slot protocol: claim, publish, adopt, lease, skip. It neither waits nor uses sockets.

Theory of operation
===================

The publisher writes a slot while it holds the write lock of the slot's byte; a subscriber reads the slot while it holds
the read lock. The kernel arbitrates between them and releases the locks of processes that die. Its lock calls also act
as memory barriers. All other words only help a subscriber to find the right slot: they are hints until the slot is
locked.

Publish                                           Receive
P1. write-lock the oldest slot but the newest     R1. read ``tail``: sequence s, slot i
P2. ``seq[i] = 0``                                R2. read-lock slot i, or retry from R1
P3. write the pixels and a part of the header     R3. check ``seq[i] == s``, or unlock and retry
P4. write the rest of the slot's header           R4. read the header, and validate it
P5. ``seq[i] = s``                                R5. read the pixels, while the lock is held
P6. unlock                                        R6. unlock, when the last view goes
P7. ``tail = s << 8 | i``
P8. ``event += 1``, wake

The code that takes a step bears its number as a comment, in both backends, and other documents use the same numbers.

R3 is required because the publisher may have claimed, written and unlocked the slot again between R1 and R2. P2 comes
before the pixels, to prevent subscribers from accepting a slot whose publisher died while it was writing. P5 comes
before P6, because a subscriber may lock the slot as soon as it is unlocked. P7 comes after P6, to avoid that a
subscriber finds the slot through ``tail`` while it is still locked. P8 comes last, because a subscriber that wakes up
reads ``tail``.

Words are written through a cast memoryview, which stores each of them at once. ``struct.pack_into`` writes zeros first,
which another process could read.

A subscriber that receives every frame, or the history, selects in R1 the slot with the lowest ``seq[i]`` above the
sequence of its last frame. From R2 on, its steps are the same.

A publisher may write several slots at a time. Each goes through P1 to P3 independently, and P4 assigns the sequence, so
frames are numbered in the order in which they are published. The locks of one open file description do not exclude each
other, so P1 skips the slots of the publisher's own loans.

``_ring_c.c`` implements P1 and P2, P4 to P8, R1 to R4 and R6. If it was not built, :mod:`framebus.ring._ring_py` does.
"""
