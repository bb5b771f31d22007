"""The slot protocol: claim, publish, adopt, lease, skip. No sockets, no waiting.

Theory of operation
===================

The publisher writes a slot under the write lock of its byte; a subscriber reads it under the read lock. The kernel
decides between them, frees the locks of the dead, and its lock calls are the memory barriers. Everything else exists so
that a subscriber finds the right slot, and is a hint until the slot is locked:

Publish                                           Receive
P1. write-lock the oldest slot but the newest     R1. read ``tail``: sequence s, slot i
P2. ``seq[i] = 0``                                R2. read-lock slot i, or look again
P3. the pixels, and what is known of the header   R3. ``seq[i] == s``, or unlock and look again
P4. the rest of the slot's header                 R4. the header, bounds checked
P5. ``seq[i] = s``                                R5. the pixels, while the lock is held
P6. unlock                                        R6. unlock, when the last view goes
P7. ``tail = s << 8 | i``
P8. ``event += 1``, wake

The code that takes a step bears its number as a comment, in both backends, and other documents use the same numbers.

R3 is needed because the publisher may have claimed, written and unlocked the slot again between R1 and R2. P2 comes
before the pixels, so that a publisher that dies while it writes leaves a slot that no subscriber takes for a frame. P5
comes before P6, because a subscriber may lock the slot as soon as it is unlocked; P7 comes after P6, because a
subscriber that finds the slot through ``tail`` should not find it locked. P8 comes last, because a subscriber that
wakes reads ``tail``. Words are written through a cast memoryview, one store each; ``struct.pack_into`` would show zeros
in between.

A subscriber that takes every frame, or the history, finds its slot in R1 by the lowest ``seq[i]`` that is higher than
that of its last frame. From R2 on it does the same as all others.

A publisher may write several slots at a time: each goes through P1 to P3 on its own, and P4 assigns the sequence, so
that frames are numbered in the order in which they are published. The locks of one publisher do not exclude each other,
so P1 passes over the slots of its loans.

P1 and P2, P4 to P8, R1 to R4 and R6 are in ``_ring_c.c`` and, where that was not built, in
:mod:`framebus.ring._ring_py`.
"""
