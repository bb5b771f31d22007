"""Why a camera fails, and how long to wait before the next attempt."""

from __future__ import annotations

import errno
import socket
from enum import StrEnum
from urllib.parse import urlsplit

import av

from services.stitcher.config import ReconnectSection


class Cause(StrEnum):
    """Why a connection ended, could not be made, or delivers unusable pictures."""

    REFUSED = "refused"
    """The camera rejects the user or password (401, 403)."""
    NOT_FOUND = "not found"
    """The camera answers but does not have the stream, or the file does not exist."""
    UNREACHABLE = "unreachable"
    """Nothing answers at that address, or the host name has no address."""
    TIMEOUT = "time-out"
    """The camera does not answer in time, or is connected but sends nothing in time."""
    UNSUPPORTED = "unsupported"
    """FFmpeg cannot read the protocol, transport or codec, or the stream has no video."""
    DECODING = "decoding"
    """The packets cannot be decoded."""
    DAMAGED = "damaged"
    """No picture is intact, because packets are lost on the network."""
    ENDED = "ended"
    """The camera or the file ended the stream."""
    SETTING = "setting"
    """The configuration names something that does not exist, such as the password's file."""
    OTHER = "other"
    """Any other cause; the reason says which."""


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
    ((av.error.ExitError,), Cause.TIMEOUT),  # PyAV interrupts FFmpeg when a time-out expires
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
    """A fault detected by this service; the message is its reason."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


def cause_of(error: Exception, url: str = "", *, late: bool = False) -> tuple[Cause, str]:
    """Classify an error. Return its cause, and the reason without the URL.

    Args:
        error: Exception of FFmpeg or of this service.
        url: URL of the camera, to recognise a host name without an address, for which FFmpeg has no error of its own.
        late: Whether the time-out for opening had expired. FFmpeg may then report invalid data instead of a time-out.
    """
    if isinstance(error, Unreadable):
        return error.cause, str(error)
    if late or isinstance(error, av.error.ExitError):
        return Cause.TIMEOUT, "no data in time"
    number = getattr(error, "errno", None)
    # FFmpeg reports a failed name look-up only as EIO, so look the name up again.
    if number == errno.EIO and (host := _unknown_host(url)):
        return Cause.UNREACHABLE, f"the name {host} has no address"
    # Do not use str(error): it contains the URL, which may hold a password.
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
    """Return the wait before the next attempt. It doubles with each failure, up to a bound.

    Args:
        failures: Number of consecutive failures with this kind of cause, from 1.
        section: First and longest waits.
        jitter: Random number, 0 to 1. It shortens a wait by up to a half. After a rejected log-in it lengthens the wait
            by up to a tenth instead, because the camera may lock the account.
        cause: Why the last attempt failed.
    """
    # Without a bound, the power overflows after a thousand failures.
    doublings = min(max(0, failures - 1), 32)
    if cause is Cause.REFUSED:
        # With the other waits there were eight log-ins in 37 s, which lock a camera.
        return min(section.refused_max_s, section.refused_first_s * 2.0**doublings) * (1.0 + 0.1 * jitter)
    return min(section.max_s, section.first_s * 2.0**doublings) * (0.5 + 0.5 * jitter)
