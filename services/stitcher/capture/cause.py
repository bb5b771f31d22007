"""Why a camera gives no pictures, and how long to wait before it is asked again."""

from __future__ import annotations

import errno
import socket
from enum import StrEnum
from urllib.parse import urlsplit

import av

from services.stitcher.config import ReconnectSection


class Cause(StrEnum):
    """What ended a connection, prevented one, or spoils it."""

    REFUSED = "refused"
    """The camera wants another user or password (401, 403)."""
    NOT_FOUND = "not found"
    """The camera answers, and has no such stream; or there is no such file."""
    UNREACHABLE = "unreachable"
    """Nothing answers at that address."""
    TIMEOUT = "time-out"
    """It is connected, and sends nothing in time."""
    UNSUPPORTED = "unsupported"
    """FFmpeg cannot read that protocol, transport or codec, or there is no video."""
    DECODING = "decoding"
    """What comes cannot be decoded."""
    DAMAGED = "damaged"
    """Pictures come, and none is whole: packets are lost on the way."""
    ENDED = "ended"
    """The camera or the file ended the stream."""
    SETTING = "setting"
    """The configuration names something that is not there, such as the password's file."""
    OTHER = "other"
    """Anything else; the reason says what."""


_BY_NUMBER = {
    errno.EPROTONOSUPPORT: Cause.UNSUPPORTED,
    errno.ENOENT: Cause.NOT_FOUND,
    errno.ENOTDIR: Cause.NOT_FOUND,
    errno.ECONNREFUSED: Cause.UNREACHABLE,
    errno.ECONNRESET: Cause.UNREACHABLE,
    errno.EHOSTUNREACH: Cause.UNREACHABLE,
    errno.EHOSTDOWN: Cause.UNREACHABLE,
    errno.ENETUNREACH: Cause.UNREACHABLE,
    errno.ENETDOWN: Cause.UNREACHABLE,
    errno.EADDRNOTAVAIL: Cause.UNREACHABLE,
    errno.EPIPE: Cause.UNREACHABLE,
    errno.ETIMEDOUT: Cause.TIMEOUT,
}
_BY_TYPE = (
    ((av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError), Cause.REFUSED),
    ((av.error.HTTPNotFoundError,), Cause.NOT_FOUND),
    ((av.error.ExitError,), Cause.TIMEOUT),
    (
        (
            av.error.ProtocolNotFoundError,
            av.error.DemuxerNotFoundError,
            av.error.DecoderNotFoundError,
            av.error.OptionNotFoundError,
            av.error.PatchWelcomeError,
        ),
        Cause.UNSUPPORTED,
    ),
    ((av.error.InvalidDataError,), Cause.DECODING),
    ((av.error.EOFError,), Cause.ENDED),
)


class Unreadable(Exception):
    """A fault that this service finds by itself; the message is its reason."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


def cause_of(error: Exception, url: str = "", *, late: bool = False) -> tuple[Cause, str]:
    """Return the cause of an error, and its reason without the URL.

    Args:
        error: What FFmpeg or this service raised.
        url: The camera's, to tell a host without an address, for which FFmpeg has no error of its own.
        late: Whether the time for opening was over: FFmpeg may call what it was interrupted in invalid data.
    """
    if isinstance(error, Unreadable):
        return error.cause, str(error)
    if late or isinstance(error, av.error.ExitError):
        return Cause.TIMEOUT, "no data in time"
    number = getattr(error, "errno", None)
    if number == errno.EIO and (host := _unknown_host(url)):
        return Cause.UNREACHABLE, f"the name {host} has no address"
    # Not str(error): it holds the URL.
    reason = getattr(error, "strerror", None) or type(error).__name__
    for types, cause in _BY_TYPE:
        if isinstance(error, types):
            return cause, reason
    return _BY_NUMBER.get(number or 0, Cause.OTHER), reason


def _unknown_host(url: str) -> str:
    try:
        host = urlsplit(url).hostname or ""
        if host:
            socket.getaddrinfo(host, None)
    except socket.gaierror:
        return host
    except ValueError:
        pass
    return ""


def backoff_s(failures: int, section: ReconnectSection, jitter: float, cause: Cause = Cause.OTHER) -> float:
    """Return the wait before the next try: it doubles with each failure up to a bound.

    Args:
        failures: How often it failed one after the other with this kind of cause, from 1.
        section: First and longest waits.
        jitter: 0 to 1. It shortens a wait to the half at most; after a refused log-in it only lengthens it, by a tenth.
        cause: Why it failed.
    """
    doublings = min(max(0, failures - 1), 32)
    if cause is Cause.REFUSED:
        return min(section.refused_max_s, section.refused_first_s * 2.0**doublings) * (1.0 + 0.1 * jitter)
    return min(section.max_s, section.first_s * 2.0**doublings) * (0.5 + 0.5 * jitter)
