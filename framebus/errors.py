"""The errors that framebus raises: one tree, and each is also the builtin that fits.

The message is one sentence for the person who must act on it.
"""

from __future__ import annotations


class FramebusError(Exception):
    """Base of all errors of framebus."""

    def __str__(self) -> str:
        """The sentence alone, without the errno that an OSError puts before it."""
        return str(self.args[-1]) if self.args else ""


class InvalidName(FramebusError, ValueError):
    """A stream's or subscriber's name that cannot be part of a file name in /dev/shm."""


class StreamNotFound(FramebusError, FileNotFoundError):
    """No publisher serves a stream of this name here."""


class StreamExists(FramebusError, FileExistsError):
    """Another publisher that lives serves this stream."""


class LayoutMismatch(FramebusError, ValueError):
    """A file that is no ring of this version of the layout, or is cut short or overwritten."""


class RingFull(FramebusError, RuntimeError):
    """No slot is free for the publisher, or no seat for a further subscriber."""


class TooManyLeases(FramebusError, RuntimeError):
    """The subscriber still views as many frames as it may hold at once."""


class ReceiveTimeout(FramebusError, TimeoutError):
    """No new frame came in time."""


class StreamGone(FramebusError, ConnectionError):
    """The publisher closed or died, and none came back in time."""


class FrameTooLarge(FramebusError, ValueError):
    """A frame, or its metadata, that does not fit its slot."""


class FrameReleased(FramebusError, ValueError):
    """The pixels of a frame that was released, or of a loan that was published or abandoned."""


class LoanOutstanding(FramebusError, RuntimeError):
    """The publisher was asked for a second loan before the first was published or abandoned."""


class Closed(FramebusError, ValueError):
    """A publisher or subscriber used after its close."""


class WrongThread(FramebusError, RuntimeError):
    """A publisher or subscriber used by a second thread; locks and sockets belong to one."""


class NotEnoughSharedMemory(FramebusError, OSError):
    """/dev/shm is too small for the ring."""


class UnprotectedEndpoint(FramebusError, ValueError):
    """A notification endpoint that others than this host could reach, without keys."""


class InvalidKey(FramebusError, ValueError):
    """A key's file that is missing, open to others, or no key."""


class PermissionDenied(FramebusError, PermissionError):
    """A file of the stream belongs to another user, or is closed to this one."""
