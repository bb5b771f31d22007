"""Connections to the broker: they survive losses and end at once, and every refusal is reported in one sentence."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, AuthenticationError, ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelLockedResource

from services.common import broker
from services.common.broker import BROKER_ERRORS, connect, keep_connected, why
from services.common.remote_config import BrokerSection
from services.common.service import UnusableSetting
from tests.rabbitmq import RabbitMq

SECRET = "s3cr-t"


def refusal(section: BrokerSection) -> str:
    """Return the sentence that says why there is no connection."""

    async def work() -> None:
        await (await connect(section)).close()

    with pytest.raises(BROKER_ERRORS) as caught:
        asyncio.run(work())
    sentence = why(caught.value)
    assert "\n" not in sentence
    assert 5 < len(sentence) < 400
    assert SECRET not in sentence
    return sentence


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AuthenticationError(403, "ACCESS_REFUSED"), "it refuses the log-in: see broker.username"),
        (TimeoutError(), "it does not answer"),
        (ChannelLockedResource("RESOURCE_LOCKED"), "another relay is connected for this stream"),
        (ChannelPreconditionFailed("inequivalent arg"), "with other settings: let it run empty, then delete it: ineq"),
        (ChannelNotFoundEntity("NOT_FOUND"), "is not there yet: the relay declares them"),
        (ConnectionRefusedError(111, "Connect call failed"), "Connect call failed"),
        (OSError("a\nb\n\tc"), "a b c"),
        (AMQPError(), "AMQPError"),
        (RuntimeError("x" * 5000), "xxx"),
    ],
)
def test_each_error_is_reported_in_one_sentence(error: BaseException, told: str) -> None:
    sentence = why(error)
    assert told in sentence
    assert "\n" not in sentence
    assert len(sentence) < 400


def test_the_cause_of_an_error_is_reported() -> None:
    error = ConnectionError("lost")
    error.__cause__ = AuthenticationError(403, "ACCESS_REFUSED")
    assert "it refuses the log-in" in why(error)


def test_a_missing_broker_is_reported_with_the_setting() -> None:
    with pytest.raises(UnusableSetting, match=r"set broker\.url to amqp://HOST"):
        asyncio.run(connect(BrokerSection()))


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"url": "amqp://h", "password_file": "/nowhere/password"}, "/nowhere/password cannot be read"),
        ({"url": "amqps://h", "ca_file": "/nowhere/ca.pem"}, "certificates cannot be used"),
        ({"url": "amqps://h", "ca_file": "/etc/hostname"}, "certificates cannot be used"),
        (
            {"url": "amqps://h", "certificate_file": "/nowhere/c", "key_file": "/nowhere/k"},
            "certificates cannot be used",
        ),
    ],
)
def test_an_unusable_file_is_reported(section: dict[str, Any], told: str) -> None:
    with pytest.raises(UnusableSetting, match=told) as caught:
        asyncio.run(connect(BrokerSection.model_validate(section)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "url", "wanted"),
    [
        ({"url": "amqp://rabbit"}, None, ("rabbit", 5672, "guest", "guest", "/")),
        ({"url": "amqps://rabbit/"}, None, ("rabbit", 5671, "guest", "guest", "/")),
        ({"url": "amqp://u%40x:p%2Fw@rabbit:9/a%2Fb"}, None, ("rabbit", 9, "u@x", "p/w", "a/b")),
        (
            {"url": "amqp://rabbit", "username": "50%25", "password_env": "P"},
            None,
            ("rabbit", 5672, "50%25", "p%41", "/"),
        ),
        ({"url": "amqp://u@rabbit", "password_env": "P"}, None, ("rabbit", 5672, "u", "p%41", "/")),
        ({"url": "amqp://rabbit/%2F"}, "amqp://other/site", ("other", 5672, "guest", "guest", "site")),
    ],
)
def test_the_log_in_is_that_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch, section: dict[str, Any], url: str | None, wanted: tuple[object, ...]
) -> None:
    seen: dict[str, Any] = {}

    async def pretend(**arguments: Any) -> None:
        seen.update(arguments)

    monkeypatch.setenv("P", "p%41")
    monkeypatch.setattr(aio_pika, "connect", pretend)
    asyncio.run(connect(BrokerSection.model_validate(section), url))
    assert tuple(seen[name] for name in ("host", "port", "login", "password", "virtualhost")) == wanted


# Without a broker


class FakeConnection:
    """A connection that a test can lose."""

    def __init__(self) -> None:
        self.close_callbacks: set[Any] = set()
        self.closed = False

    async def close(self) -> None:
        self.closed = True

    def lose(self) -> None:
        for callback in list(self.close_callbacks):
            callback(self, ConnectionError("cut"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without a pause."""
    monkeypatch.setattr(broker, "RETRY_S", (0.001, 0.002))
    monkeypatch.setattr(broker, "STOP_SLICE_S", 0.001)


@pytest.mark.usefixtures("quick")
def test_a_connection_is_retried_until_it_succeeds_and_after_each_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    states: list[str] = []
    connections: list[FakeConnection] = []
    answers: list[BaseException | None] = [ConnectionRefusedError("one"), TimeoutError(), None, OSError("two"), None]
    section = BrokerSection(url=f"amqp://user:{SECRET}@rabbit")

    async def pretend(_section: BrokerSection, _url: str | None = None) -> FakeConnection:
        if (error := answers.pop(0)) is not None:
            raise error
        connections.append(FakeConnection())
        return connections[-1]

    async def work(connection: Any) -> None:
        if answers:
            connection.lose()
        else:
            stop.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(broker, "connect", pretend)
    asyncio.run(keep_connected(section, work, stop, state=states.append))
    prefix = "no connection to the broker amqp://***@rabbit: "
    assert states == [f"{prefix}one", f"{prefix}it does not answer", "", f"{prefix}cut", f"{prefix}two", ""]
    assert all(connection.closed and not connection.close_callbacks for connection in connections)


@pytest.mark.usefixtures("quick")
def test_an_error_of_the_work_is_reported_or_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakeConnection()

    async def pretend(_section: BrokerSection, _url: str | None = None) -> FakeConnection:
        return connection

    async def work(_connection: Any) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(broker, "connect", pretend)
    with pytest.raises(ValueError, match="a fault of ours"):
        asyncio.run(keep_connected(BrokerSection(url="amqp://h"), work, threading.Event()))
    assert connection.closed


@asynccontextmanager
async def listening(answer: bytes | None) -> AsyncIterator[str]:
    """Run a server that answers the first bytes and closes the connection; with None, it never answers."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if answer is None:
            return
        await reader.read(8)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in writers:
            writer.close()
        server.close()
        await server.wait_closed()


@pytest.mark.usefixtures("quick")
def test_stop_ends_the_connection_while_the_broker_does_not_answer() -> None:
    async def work(_connection: AbstractConnection) -> None:
        raise AssertionError

    async def run() -> None:
        stop = threading.Event()
        async with listening(None) as url:
            keeping = asyncio.ensure_future(keep_connected(BrokerSection(url=url), work, stop))
            await asyncio.sleep(0.02)
            stop.set()
            # Far less than the time that the broker has to answer.
            await asyncio.wait_for(keeping, broker.CONNECT_TIMEOUT_S / 2)

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\0\0\x08\0", bytes(64), b"\x01" * 64]
)
def test_a_server_that_is_not_a_broker_is_reported(answer: bytes) -> None:
    async def work() -> str:
        async with listening(answer) as url:
            try:
                await connect(BrokerSection(url=url))
            except BROKER_ERRORS as error:
                return why(error)
        raise AssertionError

    sentence = asyncio.run(work())
    assert sentence
    assert "\n" not in sentence


def test_the_client_library_does_not_log() -> None:
    for name in ("aio_pika", "aiormq"):
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


# With a broker


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("use", ["acknowledge", "reject", "publish", "declare", "consume", "open a channel"])
def test_the_use_of_a_connection_that_was_lost_leads_to_another_one(rabbitmq: RabbitMq, use: str) -> None:
    stop = threading.Event()
    connections: list[AbstractConnection] = []

    async def take(_message: AbstractIncomingMessage) -> None:
        raise AssertionError

    async def work(connection: AbstractConnection) -> None:
        connections.append(connection)
        if len(connections) == 2:
            stop.set()
            await asyncio.Event().wait()
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        sent = aio_pika.Message(b"x")
        await channel.default_exchange.publish(sent, queue.name)
        delivered = await queue.get()
        uses: dict[str, Callable[[], Awaitable[Any]]] = {
            "acknowledge": delivered.ack,
            "reject": delivered.reject,
            "publish": lambda: channel.default_exchange.publish(sent, queue.name),
            "declare": channel.declare_queue,
            "consume": lambda: queue.consume(take),
            "open a channel": connection.channel,
        }
        connection.close_callbacks.clear()  # so that the use comes first
        await connection.close()
        await uses[use]()

    asyncio.run(keep_connected(BrokerSection(url=rabbitmq.url), work, stop))
    assert len(connections) == 2


@pytest.mark.slow
@pytest.mark.parametrize("section", [{"username": "guest"}, {"username": "unknown"}, {}])
def test_a_wrong_password_is_reported(
    rabbitmq: RabbitMq, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any]
) -> None:
    monkeypatch.setenv("WRONG", SECRET)
    told = refusal(BrokerSection(url=rabbitmq.url, password_env="WRONG", **section))
    assert "it refuses the log-in: see broker.username and broker.password_file" in told


@pytest.mark.slow
def test_a_missing_virtual_host_is_reported(rabbitmq: RabbitMq) -> None:
    told = refusal(BrokerSection(url=f"{rabbitmq.url}/no%2Fsuch"))
    assert told == "it refuses the virtual host no/such: create it, and give the user permission to use it"


def over_tls(
    rabbitmq: RabbitMq, tls: Path, ca: str | None, client: str | None, host: str = "127.0.0.1"
) -> BrokerSection:
    return BrokerSection(
        url=f"amqps://{host}:{rabbitmq.tls_port}",
        ca_file=None if ca is None else tls / f"{ca}.pem",
        certificate_file=None if client is None else tls / f"{client}.pem",
        key_file=None if client is None else tls / f"{client}.key",
    )


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_client_and_server_authenticate_with_certificates(rabbitmq: RabbitMq, tls: Path, host: str) -> None:
    async def work() -> bool:
        async with await connect(over_tls(rabbitmq, tls, "ours", "client", host)) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue(exclusive=True)
            await channel.default_exchange.publish(aio_pika.Message(b"x"), queue.name)
            return (await queue.get()) is not None

    assert asyncio.run(work())


@pytest.mark.slow
@pytest.mark.parametrize("ca", ["others", None])
def test_a_server_certificate_of_an_unknown_authority_is_rejected(
    rabbitmq: RabbitMq, tls: Path, ca: str | None
) -> None:
    told = refusal(over_tls(rabbitmq, tls, ca, "client"))
    assert "TLS fails, see broker.ca_file" in told
    assert "certificate verify failed" in told


@pytest.mark.slow
@pytest.mark.parametrize("client", [None, "stranger"])
def test_a_rejected_client_certificate_is_reported(rabbitmq: RabbitMq, tls: Path, client: str | None) -> None:
    told = refusal(over_tls(rabbitmq, tls, "ours", client))
    assert "TLS" in told
    assert "broker.certificate_file" in told


@pytest.mark.slow
def test_tls_to_a_port_without_tls_is_reported(rabbitmq: RabbitMq, tls: Path) -> None:
    plain = BrokerSection(url=f"amqps://127.0.0.1:{rabbitmq.port}", ca_file=tls / "ours.pem")
    assert "TLS" in refusal(plain)
