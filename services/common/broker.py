"""Connections to the message broker: kept through losses, and every fault explained in a sentence.

The client is aio-pika; docs/decisions/0005-the-relay-on-rabbitmq-and-obstore.md says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelInvalidStateError, ChannelLockedResource

from services.common.credentials import MissingPassword
from services.common.masking import mask_url
from services.common.remote_config import BrokerSection
from services.common.service import UnusableSetting

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 1.0  # containers are killed two seconds after they were told to stop
HEARTBEAT_S: Final = 20
"""Heartbeat interval. A broker that disappears without closing the connection is detected within two intervals."""
RETRY_S: Final = (0.2, 5.0)
"""Shortest and longest wait before a retry to connect."""
STOP_SLICE_S: Final = 0.1
BROKER_ERRORS: Final = (
    AMQPError,
    ConnectionError,
    OSError,
    TimeoutError,
    asyncio.InvalidStateError,
    ChannelInvalidStateError,
)
"""Exceptions of aio-pika for a connection that is lost or refused, or a channel that is closed."""
_CUT: Final = re.compile(r"connection reset|unexpectedly closed")

# Both libraries log, with tracebacks, the errors that they also raise. Log them once, by the code that handles them.
for _library in ("aio_pika", "aiormq"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)


class _Connection(aio_pika.Connection):
    """A connection that its owner closes explicitly."""

    def __del__(self) -> None:
        # The base class starts a task here, which fails when no event loop runs.
        pass


async def connect(section: BrokerSection, url: str | None = None) -> AbstractConnection:
    """Open a connection.

    Args:
        section: Address and credentials.
        url: Address that overrides the section's.

    Raises:
        UnusableSetting: The section names no broker, or names a file that cannot be read.
        OSError, AMQPError: The broker cannot be reached, or refuses the log-in.
    """
    address = url or section.url
    if address is None:
        raise UnusableSetting("no broker is named: set broker.url to amqp://HOST, or amqps://HOST with TLS")
    parts = urlsplit(address)
    try:
        password = section.password()
        context = _tls(section) if parts.scheme == "amqps" else None
    except MissingPassword as error:
        raise UnusableSetting(f"broker: {error}") from None
    except OSError as error:  # ssl.SSLError is one
        raise UnusableSetting(f"broker: its certificates cannot be used: {error}") from None
    virtual_host = unquote(parts.path.removeprefix("/")) or "/"
    try:
        return await aio_pika.connect(
            host=parts.hostname or "",
            port=parts.port or (5671 if context else 5672),
            # The URL of a service's own section may name another user than the section that all share.
            login=unquote(parts.username or "") or section.username or "guest",
            password=unquote(parts.password or "") or password or "guest",
            virtualhost=virtual_host,
            ssl=context is not None,
            ssl_context=context,
            timeout=CONNECT_TIMEOUT_S,
            heartbeat=HEARTBEAT_S,
            connection_class=_Connection,
        )
    except AMQPError as error:
        # aio-pika has no exception of its own for these two faults, so recognise them by their messages.
        if "OpenOk" in str(error):
            reason = f"it refuses the virtual host {virtual_host}: create it, and give the user permission to use it"
        elif context is not None and _CUT.search(str(error)):
            reason = "it ends the connection after TLS's greeting: it may require another broker.certificate_file"
        else:
            raise
        raise ConnectionError(reason) from None


def _tls(section: BrokerSection) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=section.ca_file)
    if section.certificate_file is not None:
        context.load_cert_chain(section.certificate_file, section.key_file)
    return context


async def keep_connected(
    section: BrokerSection,
    work: Callable[[AbstractConnection], Awaitable[None]],
    stop: threading.Event,
    *,
    url: str | None = None,
    state: Callable[[str], None] = lambda _reason: None,
) -> None:
    """Connect, run ``work``, and reconnect whenever the connection is lost, until ``stop`` is set.

    Args:
        section: Address and credentials.
        work: Uses the connection until it is cancelled, which happens when the connection is lost or ``stop`` is set.
            Messages that are not confirmed by then count as not sent; messages that are not acknowledged are
            redelivered.
        stop: Ends the loop.
        url: Address that overrides the section's.
        state: Called with the reason while there is no connection, and with an empty string once connected.

    Raises:
        UnusableSetting: The configuration cannot be used.
    """
    log = structlog.get_logger()
    shown = mask_url(url or section.url or "")
    reason, wait_s = "", RETRY_S[0]
    while not stop.is_set():
        try:
            connection = await _connect_unless_stopped(section, url, stop)
            if connection is None:
                return
            try:
                log.info("broker connected", broker=shown)
                state("")
                reason, wait_s = "", RETRY_S[0]
                await _work_until_lost(connection, work, stop)
            finally:
                # The peer of a half-open connection may never answer a close.
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await connection.close()
        except BROKER_ERRORS as error:
            found = why(error)
            state(f"no connection to the broker {shown}: {found}")
            if found != reason:  # log an outage once, not with each attempt
                reason = found
                log.warning("broker not connected", broker=shown, reason=found)
        if await stopped(stop, wait_s):
            return
        wait_s = min(2 * wait_s, RETRY_S[1])


async def _connect_unless_stopped(
    section: BrokerSection, url: str | None, stop: threading.Event
) -> AbstractConnection | None:
    """Connect. Return None if ``stop`` is set first, so that an unresponsive broker cannot delay the shutdown."""
    connecting = asyncio.ensure_future(connect(section, url))
    stopping = asyncio.ensure_future(stopped(stop, None))
    try:
        await asyncio.wait([connecting, stopping], return_when=asyncio.FIRST_COMPLETED)
        return connecting.result() if connecting.done() else None
    finally:
        # Await the cancelled tasks, so that no attempt to connect goes on by itself.
        for task in (connecting, stopping):
            task.cancel()
        await asyncio.gather(connecting, stopping, return_exceptions=True)


async def _work_until_lost(
    connection: AbstractConnection, work: Callable[[AbstractConnection], Awaitable[None]], stop: threading.Event
) -> None:
    # Work that waits for deliveries does not notice a lost connection by itself.
    lost = asyncio.Event()
    cause: list[BaseException | None] = []

    def closed(_connection: object, error: BaseException | None) -> None:
        cause.append(error)
        lost.set()

    connection.close_callbacks.add(closed)
    working = asyncio.ensure_future(work(connection))
    waiting = [asyncio.ensure_future(lost.wait()), asyncio.ensure_future(stopped(stop, None))]
    try:
        await asyncio.wait([working, *waiting], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            try:
                working.result()
            except RuntimeError as error:
                # aio-pika has no exception of its own for some uses of a connection that was lost in the meantime.
                if connection.is_closed and type(error) is RuntimeError:
                    raise ConnectionError(str(error)) from error
                raise
        elif lost.is_set():
            raise ConnectionError(why(cause[0]) if cause and cause[0] else "the connection was lost")
    finally:
        connection.close_callbacks.discard(closed)
        for task in (working, *waiting):
            task.cancel()
        await asyncio.gather(working, *waiting, return_exceptions=True)


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until one of them ends, then cancel the others. If that one raised, raise its exception."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def stopped(stop: threading.Event, timeout_s: float | None) -> bool:
    """Wait until ``stop`` is set, at most ``timeout_s`` seconds. Return whether it is set."""
    # Poll, because a threading.Event cannot be awaited, and a thread that waits for it could not be cancelled.
    loop = asyncio.get_running_loop()
    deadline_s = None if timeout_s is None else loop.time() + timeout_s
    while not stop.is_set():
        left_s = STOP_SLICE_S if deadline_s is None else min(STOP_SLICE_S, deadline_s - loop.time())
        if left_s <= 0:
            return False
        await asyncio.sleep(left_s)
    return True


_MEANINGS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (
        AuthenticationError,
        "it refuses the log-in: see broker.username and broker.password_file, and the user's permissions",
    ),
    (
        ProbableAuthenticationError,
        "it refuses the log-in: see broker.username and broker.password_file, and the user's permissions",
    ),
    (ssl.SSLError, "TLS fails, see broker.ca_file and broker.certificate_file: {error}"),
    (TimeoutError, "it does not answer"),
    (
        ChannelLockedResource,
        "another relay is connected for this stream: give each site a stream.name or a virtual host of its own",
    ),
    (
        ChannelPreconditionFailed,
        "a queue or exchange is there with other settings: let it run empty, then delete it: {error}",
    ),
    (ChannelNotFoundEntity, "a queue or exchange is not there yet: the relay declares them: {error}"),
)


def why(error: BaseException | None) -> str:
    """Explain an error of aio-pika in one sentence."""
    # aio-pika wraps some errors of aiormq and ssl, of which the cause is the one that explains.
    cause = None if error is None else error.__cause__
    for kind, meaning in _MEANINGS:
        for one in (error, cause):
            if isinstance(one, kind):
                return meaning.format(error=_in_short(one))
    return _in_short(error)


def _in_short(error: BaseException | None) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
