"""Frames of a stream through its publisher's deaths and returns, for a service that outlives them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass

import structlog

from framebus import Frame, FramebusError, ReceiveTimeout, StreamGone, StreamNotFound, Subscriber


@dataclass(frozen=True, slots=True)
class Attached:
    """A publisher serves the stream, and the service is subscribed to it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """There is no stream to subscribe to, or it was lost; the next event comes when that changes."""

    reason: str
    """Why, in one sentence."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """The stream is there, but no frame came within the slice."""


def follow(
    stream: str,
    subscribe: Callable[[], Subscriber],
    stop: threading.Event,
    *,
    slice_s: float,
    retry_s: float,
    tolerate: tuple[type[FramebusError], ...] = (),
) -> Generator[Frame | Attached | Waiting | Quiet]:
    """Subscribe to a stream, yield what comes, and subscribe again whenever it is lost, until ``stop`` is set.

    The caller releases the frames. One that is still held when the stream is lost stays readable, but keeps the memory
    of a ring that has no publisher any more: release it at :class:`Waiting`. Each attachment and each new reason to
    wait is logged once.

    All of it happens in the thread that iterates. Use ``contextlib.closing`` where the loop may be left before ``stop``
    is set: closing the generator ends the subscription.

    Args:
        stream: Name of the stream, for the log.
        subscribe: Opens a subscription that looks once for a publisher: ``Subscriber(..., attach_timeout_s=0)``.
        stop: Ends the iteration: within ``slice_s`` while there is a stream, otherwise at once.
        slice_s: Longest wait for a frame before :class:`Quiet`, in seconds.
        retry_s: Wait between two tries to subscribe, in seconds.
        tolerate: Further errors after which to try again, as after StreamNotFound and StreamGone.

    Raises:
        FramebusError: The stream cannot be subscribed to or read, for a reason that is not tolerated.
    """
    log = structlog.get_logger()
    reason = ""
    attached_before = False
    while not stop.is_set():
        try:
            with subscribe() as subscriber:
                log.info("attached", stream=stream)
                reason = ""
                attached_before = True
                yield Attached()
                while not stop.is_set():
                    try:
                        # Not by way of a variable, which would hold the frame until the next one is there.
                        yield subscriber.receive(timeout_s=slice_s)
                    except ReceiveTimeout:
                        yield Quiet()
        except (StreamNotFound, StreamGone):
            found = f"stream {stream} has {'ended' if attached_before else 'not started'}"
        except tolerate as error:
            found = str(error)
        else:
            return
        if found != reason:
            reason = found
            log.warning("waiting for the stream", reason=reason)
            yield Waiting(reason)
        stop.wait(retry_s)
