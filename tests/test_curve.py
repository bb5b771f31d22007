"""Keys: who has the right one hears the notifications, who has not hears nothing and disturbs nobody."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest
import zmq
import zmq.auth

from framebus import CurveServer, FrameFormat, InvalidKey, Publisher, Subscriber, UnprotectedEndpoint
from framebus import outlet as outlet_module
from tests.listeners import Flood, PlainListener, wait_until
from tests.support import files_of, lacks, needs_root

SMALL = FrameFormat(4, 6)
EVERYWHERE = "tcp://0.0.0.0:*"


@dataclass
class KeyRing:
    """Certificates in a directory: one of the publisher, two of listeners, of whom one is allowed."""

    folder: Path

    @property
    def server(self) -> CurveServer:
        return CurveServer(self.folder / "publisher.key_secret", [self.folder / "allowed"])

    def public(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def secret(self, name: str) -> Path:
        return self.folder / f"{name}.key_secret"


@pytest.fixture
def keys(tmp_path: Path) -> KeyRing:
    if not zmq.has("curve"):
        lacks("this ZeroMQ has no CURVE: pip install --force-reinstall --only-binary pyzmq pyzmq")
    for name in ("publisher", "listener", "stranger"):
        zmq.auth.create_certificates(tmp_path, name)
        (tmp_path / f"{name}.key_secret").chmod(0o600)
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "listener.key").write_bytes((tmp_path / "listener.key").read_bytes())
    return KeyRing(tmp_path)


@pytest.fixture
def publisher(stream: str, keys: KeyRing) -> Iterator[Publisher]:
    with Publisher(stream, SMALL, endpoint=EVERYWHERE, curve=keys.server) as publisher:
        yield publisher


def publish(publisher: Publisher) -> int:
    with publisher.loan() as loan:
        loan.pixels[:] = 1
    assert loan.sequence is not None
    return loan.sequence


def local(publisher: Publisher) -> str:
    assert publisher.endpoint is not None
    return publisher.endpoint.replace("0.0.0.0", "127.0.0.1")


def hear(publisher: Publisher, listener: PlainListener) -> list[object]:
    """Publish until the listener hears; the notification."""
    heard: list[bytes | None] = [None]

    def step() -> None:
        publish(publisher)
        heard[0] = heard[0] or listener.take(5)

    wait_until(lambda: heard[0] is not None, step)
    return list(msgpack.unpackb(heard[0]))


def test_the_right_key_hears(publisher: Publisher, keys: KeyRing) -> None:
    listener = PlainListener(local(publisher), keys.public("publisher"), keys.secret("listener"))
    assert hear(publisher, listener)[0] == publisher.stream
    assert publisher.statistics.refused == 0
    listener.close()


def test_who_has_no_right_key_hears_nothing_while_others_do(publisher: Publisher, keys: KeyRing) -> None:
    without = PlainListener(local(publisher))
    unknown = PlainListener(local(publisher), keys.public("publisher"), keys.secret("stranger"))
    misled = PlainListener(local(publisher), keys.public("stranger"), keys.secret("listener"))
    allowed = PlainListener(local(publisher), keys.public("publisher"), keys.secret("listener"))
    with Subscriber(publisher.stream) as subscriber:
        # Each has been turned away at least once, by the protocol or by the list of keys; only then is silence a proof.
        wait_until(lambda: without.has_seen(zmq.EVENT_DISCONNECTED), lambda: publish(publisher))
        wait_until(lambda: unknown.has_seen(zmq.EVENT_HANDSHAKE_FAILED_AUTH), lambda: publish(publisher))
        wait_until(lambda: misled.has_seen(zmq.EVENT_DISCONNECTED), lambda: publish(publisher))
        hear(publisher, allowed)
        for _ in range(20):
            sequence = publish(publisher)
            assert subscriber.receive(5).sequence == sequence
            assert allowed.take(10_000) is not None
        for stranger in (without, unknown, misled):
            assert stranger.take(50) is None
            assert not stranger.has_seen(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    assert publisher.statistics.refused > 0
    for listener in (without, unknown, misled, allowed):
        listener.close()


def test_a_subscriber_beside_it_is_woken_by_the_unix_socket(publisher: Publisher) -> None:
    with Subscriber(publisher.stream, wake="zmq") as subscriber:
        notifier = publisher._notifier
        wait_until(notifier.local.has_listeners)
        assert notifier._further is not None
        assert not notifier._further.has_listeners()
        publish(publisher)
        poller = zmq.Poller()
        poller.register(subscriber.fileno(), zmq.POLLIN)
        assert poller.poll(10_000)
        assert subscriber.receive(0).sequence == 1


def test_an_allowed_listener_that_floods_is_thrown_out_and_the_others_come_back(
    publisher: Publisher, keys: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet_module, "MAX_ODD_SUBSCRIPTIONS", 200)
    listener = PlainListener(local(publisher), keys.public("publisher"), keys.secret("listener"))
    hear(publisher, listener)
    flood = Flood(local(publisher), keys.public("publisher"), keys.secret("listener"))
    tcp = publisher._notifier._further
    assert tcp is not None

    def step() -> None:
        flood.send()
        publish(publisher)

    wait_until(lambda: tcp.reopened > 0, step)
    flood.close()
    while listener.take():
        pass
    hear(publisher, listener)
    listener.close()


def test_rubbish_on_the_port_disturbs_nobody(publisher: Publisher, keys: KeyRing) -> None:
    port = int(local(publisher).rpartition(":")[2])
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(os.urandom(3000))
        publish(publisher)
    listener = PlainListener(local(publisher), keys.public("publisher"), keys.secret("listener"))
    hear(publisher, listener)
    listener.close()


def test_no_key_is_shown(
    publisher: Publisher, keys: KeyRing, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    listener = PlainListener(local(publisher), keys.public("publisher"), keys.secret("listener"))
    hear(publisher, listener)
    listener.close()
    _, secret = zmq.auth.load_certificate(keys.secret("publisher"))
    assert secret is not None
    secret_text = secret.decode()
    damaged = keys.folder / "damaged.key_secret"
    damaged.write_text(keys.secret("publisher").read_text().replace("public-key = ", "public-key = x"))
    damaged.chmod(0o600)
    with pytest.raises(InvalidKey) as caught:
        Publisher(
            f"{publisher.stream}-2", SMALL, endpoint=EVERYWHERE, curve=CurveServer(damaged, [keys.folder / "allowed"])
        )
    shown = [repr(keys.server), repr(publisher), repr(vars(publisher._notifier)), str(publisher.statistics)]
    shown += [str(caught.value), caplog.text, *capfd.readouterr()]
    assert not [text for text in shown if secret_text in text]
    assert "publisher.key_secret" in repr(keys.server)


def refusal(server: CurveServer) -> str:
    stream = f"test-{secrets.token_hex(6)}"
    with pytest.raises(InvalidKey) as caught:
        Publisher(stream, SMALL, endpoint=EVERYWHERE, curve=server)
    assert files_of(stream) == []
    return str(caught.value)


def test_a_secret_that_others_can_read_is_refused(keys: KeyRing) -> None:
    for mode in (0o640, 0o604, 0o660, 0o644):
        keys.secret("publisher").chmod(mode)
        assert refusal(keys.server) == (
            f"{keys.secret('publisher')}: the secret key is open to others, mode {mode:04o}: "
            f"chmod 600 {keys.secret('publisher')}"
        )


@needs_root
def test_a_secret_of_another_user_is_refused(keys: KeyRing) -> None:
    os.chown(keys.secret("publisher"), 12345, -1)
    assert "belongs to user 12345" in refusal(keys.server)


def test_what_is_no_key_is_named(keys: KeyRing) -> None:
    secret = keys.secret("publisher")
    content = secret.read_text()
    server = keys.server
    stranger_public, _ = zmq.auth.load_certificate(keys.public("stranger"))
    own_public, own_secret = zmq.auth.load_certificate(secret)
    assert own_secret is not None
    for text, words in [
        (keys.public("publisher").read_text(), "holds no secret key"),
        ("", "is no certificate"),
        ("public-key\nsecret-key\n", "is no certificate"),
        ("x" * 70_000, "is no certificate"),
        (content.replace(own_secret.decode(), "~" * 40), "secret key is damaged"),
        (content.replace(own_secret.decode(), "abc"), "holds no secret key"),
        (content.replace(own_public.decode(), stranger_public.decode()), "do not belong together"),
    ]:
        secret.write_text(text)
        assert words in refusal(server)
    secret.unlink()
    assert refusal(server) == f"{secret}: the secret key cannot be read: No such file or directory"
    secret.mkdir(0o700)
    assert "is no certificate" in refusal(server)
    secret.rmdir()
    os.mkfifo(secret, 0o600)
    assert "is no certificate" in refusal(server)


def test_whom_it_allows_must_be_said(keys: KeyRing) -> None:
    secret = keys.secret("publisher")
    empty = keys.folder / "empty"
    empty.mkdir()
    assert "names no file *.key" in refusal(CurveServer(secret, []))
    assert "names no file *.key" in refusal(CurveServer(secret, [empty]))
    assert "not one name" in refusal(CurveServer(secret, str(keys.public("listener"))))
    missing = keys.folder / "missing.key"
    assert refusal(CurveServer(secret, [missing])) == (
        f"{missing}: the public key cannot be read: No such file or directory"
    )
    for text in ("", "curve\n", 'public-key = "short"', f'public-key = "{"~" * 40}"', f'public-key = "{"#" * 40}"'):
        missing.write_text(text)
        assert str(missing) in refusal(CurveServer(secret, [missing]))


def test_keys_without_an_endpoint_are_a_mistake(stream: str, keys: KeyRing) -> None:
    with pytest.raises(UnprotectedEndpoint, match="give endpoint="):
        Publisher(stream, SMALL, curve=keys.server)
    assert files_of(stream) == []
