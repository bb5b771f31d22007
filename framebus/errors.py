"""The errors that framebus raises: one tree, and each is also the builtin that fits.

The message is one sentence for the person who must act on it.
"""

from __future__ import annotations


class FramebusError(Exception):
    """Base of all errors of framebus."""

    def __str__(self) -> str:
        """The sentence alone, without the errno that an OSError puts before it."""
        return str(self.args[-1]) if self.args else ""


class InvalidArgument(FramebusError, ValueError):
    """An argument that the call cannot take: the message says which, what was found, and what is wanted."""


class InvalidName(InvalidArgument):
    """A stream's or subscriber's name that cannot be part of a file name in /dev/shm."""


class InvalidMetadata(InvalidArgument):
    """Metadata that msgpack cannot pack, that a subscriber could not read, or that is larger than its room."""


class FormatMismatch(InvalidArgument):
    """An array whose shape or element type is not that of the frame to publish."""


class FrameTooLarge(InvalidArgument):
    """A frame that does not fit a slot of the ring."""


class StreamNotFound(FramebusError, FileNotFoundError):
    """No publisher serves a stream of this name here."""


class StreamExists(FramebusError, FileExistsError):
    """Another publisher that lives serves this stream."""


class StreamGone(FramebusError, ConnectionError):
    """The publisher closed or died, and none came back in time."""


class LayoutMismatch(FramebusError, ValueError):
    """The file is not a ring, has an unsupported layout version, or is corrupted."""


class NoFreeSlot(FramebusError, RuntimeError):
    """All slots of the ring are held, so the publisher has to drop the frame or wait."""


class SubscriberLimitReached(FramebusError, RuntimeError):
    """The ring's slots are promised to other subscribers already."""


class LoanOutstanding(FramebusError, RuntimeError):
    """The publisher was asked for a further loan while ``max_loans`` are neither published nor abandoned."""


class TooManyLeases(FramebusError, RuntimeError):
    """The subscriber still holds as many frames as it may hold at once."""


class ReceiveTimeout(FramebusError, TimeoutError):
    """No new frame came in time."""


class FrameReleased(FramebusError, ValueError):
    """The pixels of a frame that was released, or of a loan that was published or abandoned."""


class Closed(FramebusError, ValueError):
    """A publisher or subscriber used after its close, or in a forked child of the process that opened it."""


class WrongThread(FramebusError, RuntimeError):
    """A publisher or subscriber used by a second thread; only ``close()`` may be called from any."""


class AlreadyInUse(FramebusError, RuntimeError):
    """A second task, or a signal handler, uses a publisher or subscriber that is in the middle of a call."""


class NotEnoughSharedMemory(FramebusError, OSError):
    """/dev/shm is too small for the ring."""


class ResourceExhausted(FramebusError, OSError):
    """The process or the host has no descriptor, or no memory to map, left: EMFILE, ENFILE or ENOMEM."""


class PermissionDenied(FramebusError, PermissionError):
    """A file of the stream belongs to another user, or is closed to this one."""


class UnsupportedEnvironment(FramebusError, RuntimeError):
    """The interpreter was changed in a way that framebus cannot work with, such as by gevent's patches."""
