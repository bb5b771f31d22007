"""Receive a stream's frames across restarts of its publisher."""

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
    """The stream does not exist, was lost, or cannot be used yet. The next event follows when that changes."""

    reason: str
    """Why, in one sentence."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """The stream exists, but no frame arrived within the slice."""


def follow(
    stream: str,
    subscribe: Callable[[], Subscriber],
    stop: threading.Event,
    *,
    slice_s: float,
    retry_s: float,
    tolerate: tuple[type[FramebusError], ...] = (),
) -> Generator[Frame | Attached | Waiting | Quiet]:
    """Subscribe to a stream, yield frames and events, and resubscribe whenever it is lost, until ``stop`` is set.

    The caller releases the frames. A frame that is held when the stream is lost stays readable, but keeps the memory of
    a ring without a publisher: release it at :class:`Waiting`. Each attachment and each new reason to wait is logged
    once.

    The iterating thread does all the work. Use ``contextlib.closing`` if the loop may be left before ``stop`` is set:
    closing the generator ends the subscription.

    Args:
        stream: Name of the stream, for the log.
        subscribe: Opens a subscription without waiting for a publisher: ``Subscriber(..., attach_timeout_s=0)``.
        stop: Ends the iteration, within ``slice_s`` while the stream exists, immediately otherwise.
        slice_s: Longest wait for a frame before :class:`Quiet`, in seconds.
        retry_s: Wait between two attempts to subscribe, in seconds.
        tolerate: Further errors to retry after, besides StreamNotFound and StreamGone.

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
                        # Yield without a local variable, which would hold the frame until the next one arrives.
                        yield subscriber.receive(timeout_s=slice_s)
                    except ReceiveTimeout:
                        yield Quiet()
        except (StreamNotFound, StreamGone):
            found = f"stream {stream} has {'ended' if attached_before else 'not started'}"
        except tolerate as error:
            found = str(error)
        else:
            return  # the subscription ends without an error only if stop is set
        if found != reason:  # not with each attempt
            reason = found
            log.warning("waiting for the stream", reason=reason)
            yield Waiting(reason)
        stop.wait(retry_s)
