"""The errors that framebus raises.

All of them derive from :class:`FramebusError`, and each also derives from the builtin exception that it refines, so a
program can catch either. The message is one sentence that says what is wrong, and what to do about it.
"""

from __future__ import annotations


class FramebusError(Exception):
    """Base of all errors of framebus."""

    def __str__(self) -> str:
        """Return the sentence alone, without the errno that an OSError puts before it."""
        return str(self.args[-1]) if self.args else ""


class InvalidArgument(FramebusError, ValueError):
    """An argument is of the wrong type or out of range. The message names it, its value, and what is accepted."""


class InvalidName(InvalidArgument):
    """The name of a stream or subscriber cannot be part of a file name in /dev/shm."""


class InvalidMetadata(InvalidArgument):
    """The metadata cannot be packed by msgpack, cannot be read by a subscriber, or is too large for a slot's header."""


class FormatMismatch(InvalidArgument):
    """The shape or element type of an array differs from that of the frame to publish."""


class FrameTooLarge(InvalidArgument):
    """The frame does not fit in a slot of the ring."""


class StreamNotFound(FramebusError, FileNotFoundError):
    """No publisher serves a stream of this name in this /dev/shm."""


class StreamExists(FramebusError, FileExistsError):
    """Another live publisher serves this stream."""


class StreamGone(FramebusError, ConnectionError):
    """The publisher closed or died, and no other one opened the stream in time."""


class LayoutMismatch(FramebusError, ValueError):
    """The file is not a ring, has an unsupported layout version, or is corrupted."""


class NoFreeSlot(FramebusError, RuntimeError):
    """All slots of the ring are held, so the publisher has to drop the frame or wait."""


class SubscriberLimitReached(FramebusError, RuntimeError):
    """The ring has fewer free leases than the subscriber asks for, because other subscribers have reserved them."""


class LoanOutstanding(FramebusError, RuntimeError):
    """The publisher was asked for another loan while ``max_loans`` loans are neither published nor abandoned."""


class TooManyLeases(FramebusError, RuntimeError):
    """The subscriber still holds ``max_leases`` frames, so it cannot lease another one."""


class ReceiveTimeout(FramebusError, TimeoutError):
    """No new frame arrived before the time-out."""


class FrameReleased(FramebusError, ValueError):
    """The pixels were accessed after the frame was released, or after the loan was published or abandoned."""


class Closed(FramebusError, ValueError):
    """A publisher or subscriber was used after it was closed, or in a forked child of the process that opened it."""


class WrongThread(FramebusError, RuntimeError):
    """A publisher or subscriber was used by a second thread. Only ``close()`` may be called from any thread."""


class AlreadyInUse(FramebusError, RuntimeError):
    """A second task, or a signal handler, used a publisher or subscriber during another call."""


class NotEnoughSharedMemory(FramebusError, OSError):
    """/dev/shm is too small for the ring."""


class ResourceExhausted(FramebusError, OSError):
    """The process or the host has run out of descriptors or of memory to map: EMFILE, ENFILE or ENOMEM."""


class PermissionDenied(FramebusError, PermissionError):
    """A file of the stream belongs to another user, or this user may not open it."""


class UnsupportedEnvironment(FramebusError, RuntimeError):
    """The interpreter was modified in a way that framebus does not support, for example by gevent's patches."""
