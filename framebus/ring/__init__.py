"""The slot protocol: claim, publish, adopt, lease, skip. No sockets, no waiting.

Theory of operation
===================

The publisher writes a slot under the write lock of its byte; a subscriber reads it under the read lock. The kernel
decides between them, frees the locks of the dead, and its lock calls are the memory barriers. Everything else exists so
that a subscriber finds the right slot, and is a hint until the slot is locked:

Publish                                          Receive
 1. write-lock the oldest slot but the newest     1. read ``tail``: sequence s, slot i
 2. ``seq[i] = 0``                                2. read-lock slot i, or look again
 3. the pixels, and what is known of the header   3. ``seq[i] == s``, or unlock and look again
 4. the rest of the slot's header                 4. the header, bounds checked
 5. ``seq[i] = s``                                5. the pixels, while the lock is held
 6. unlock
 7. ``tail = s << 8 | i``
 8. ``event += 1``, wake

The check 3 is needed because between 1 and 2 the slot may have been claimed, written and unlocked again. Step 2 comes
before the pixels, so that a publisher that dies in the middle leaves a slot that nobody takes for a frame. Words are
written through a cast memoryview, one store each; ``struct.pack_into`` would show zeros in between.

A publisher may write several slots at a time: each goes through the steps 1 to 3 on its own, and the sequence is given
in step 4, so that frames are numbered in the order in which they are published. Its own locks do not exclude each
other, so step 1 passes over the slots of its loans.

The steps 1 and 2, 4 to 8, and a subscriber's 1 to 4 are in ``_ring_c.c`` and, for where that was not built, in
:mod:`framebus.ring._ring_py`.
"""
