"""CURVE: keys for a notification endpoint that others than this host can reach.

ZeroMQ encrypts and authenticates a connection by elliptic-curve keys: a listener has to know the publisher's public
key, and the publisher has a list of the public keys that may listen. ZeroMQ asks a handler in the same process about
each key that comes (ZAP). Here the publisher's own thread answers, a few for each frame, so that no flood of handshakes
takes the time for its frames.

Keys are read from files of the form that ``zmq.auth.create_certificates`` and czmq write, and are in no repr, message
or statistics.

Sources: zmq_curve(7); zmq_setsockopt(3), ZMQ_CURVE_SERVER, ZMQ_ZAP_ENFORCE_DOMAIN; ZMTP-CURVE and ZAP are RFC 26 and 27
of rfc.zeromq.org.
"""

from __future__ import annotations

import ipaddress
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq
import zmq.auth
from zmq.utils import z85

from framebus.errors import InvalidKey, UnprotectedEndpoint

MAX_ANSWERS: Final = 8
"""Handshakes answered in one go; the others wait for the next frame."""
MAX_KEY_FILE_BYTES: Final = 65536
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_ZAP_VERSION: Final = b"1.0"
_ZAP_DOMAIN: Final = b"framebus"
_KEY_CHARACTERS: Final = 40


@dataclass(frozen=True, slots=True)
class CurveServer:
    """Where a publisher finds its secret key, and the public keys of those who may listen.

    The files are read when the publisher opens; a key that is added later counts from the next start on.
    """

    secret_key_file: str | os.PathLike[str]
    """The publisher's certificate with its secret key, closed to all other users (mode 0600 or 0400)."""
    allowed_clients: Sequence[str | os.PathLike[str]]
    """Certificates with the listeners' public keys: files, and directories whose files ``*.key`` are all taken."""


class Keys:
    """The keys that a :class:`CurveServer` names."""

    def __init__(self, server: CurveServer) -> None:
        """Read and check them.

        Raises:
            InvalidKey: A file is missing, open to others, or no certificate; or no listener is allowed.
        """
        if not zmq.has("curve"):
            raise InvalidKey("this ZeroMQ was built without keys: install pyzmq as a wheel, or libzmq with libsodium")
        self._secret, self._public = _read_secret(Path(server.secret_key_file))
        names = server.allowed_clients
        if isinstance(names, str | os.PathLike):
            raise InvalidKey("allowed_clients is a list of files and directories, not one name")
        self._allowed = frozenset(_read_public(path) for path in _certificates(names))
        if not self._allowed:
            raise InvalidKey("no listener's public key is given: allowed_clients names no file *.key")

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket, not yet bound, refuse whoever has none of the allowed keys."""
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, self._secret)
        socket.set(zmq.CURVE_PUBLICKEY, self._public)
        socket.set(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # else ZeroMQ would let everybody in while no handler is there

    def allows(self, key: bytes) -> bool:
        """Whether a listener with that public key, of 32 bytes, may listen."""
        return key in self._allowed


class Doorkeeper:
    """Answers which keys may come in, for all sockets of one context that :meth:`Keys.protect` has made ask."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keys) -> None:
        self.refused = 0
        """Handshakes with a key that is not allowed."""
        self._keys = keys
        self._socket = context.socket(zmq.REP)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(_ZAP_ENDPOINT)

    def answer(self) -> None:
        """Answer some of those who wait; never waits itself."""
        for _ in range(MAX_ANSWERS):
            if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                break
            _version, request, _domain, _address, _identity, mechanism, *credentials = self._socket.recv_multipart()
            allowed = mechanism == b"CURVE" and len(credentials) == 1 and self._keys.allows(credentials[0])
            self.refused += not allowed
            status = (b"200", b"OK") if allowed else (b"400", b"unknown key")
            self._socket.send_multipart([_ZAP_VERSION, request, *status, b"", b""])

    def close(self) -> None:
        """Answer nobody any more."""
        self._socket.close(0)


def check_endpoint(endpoint: str, *, protected: bool) -> None:
    """Check that an endpoint stays within the host, or has keys.

    Raises:
        UnprotectedEndpoint: It is neither ``ipc://`` nor ``tcp://``, or reaches beyond the loopback without keys.
    """
    transport, _, address = endpoint.partition("://")
    if transport not in ("ipc", "tcp"):
        raise UnprotectedEndpoint(f"{endpoint} is no endpoint for notifications: use tcp://ADDRESS:PORT or ipc://PATH")
    if transport == "tcp" and not protected and not _is_loopback(address.rpartition(":")[0].strip("[]")):
        raise UnprotectedEndpoint(
            f"{endpoint} can be reached from outside this host: give keys, curve=CurveServer(...), or bind "
            "tcp://127.0.0.1:PORT"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "lo"  # zmq_tcp(7) binds an interface by its name too


def _read_secret(path: Path) -> tuple[bytes, bytes]:
    """The secret and the public key of a certificate that only this user, or root, can read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidKey(f"{path}: the secret key cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise InvalidKey(f"{path}: the secret key is open to others, mode {mode:04o}: chmod 600 {path}")
        if status.st_uid not in (os.geteuid(), 0):
            raise InvalidKey(f"{path}: the secret key belongs to user {status.st_uid}, who may read and change it")
        # The file that was looked at, whatever its name means by now.
        public, secret = _load(path, f"/proc/self/fd/{fd}", status)
    finally:
        os.close(fd)
    if secret is None or len(secret) != _KEY_CHARACTERS:
        raise InvalidKey(f"{path}: it holds no secret key: name the file *.key_secret of zmq.auth.create_certificates")
    try:
        derived = zmq.curve_public(secret)
    except (zmq.ZMQError, ValueError):
        raise InvalidKey(f"{path}: its secret key is damaged") from None
    if derived != public:
        raise InvalidKey(f"{path}: its public and its secret key do not belong together")
    return secret, public


def _read_public(path: Path) -> bytes:
    """The public key of a certificate, 32 bytes."""
    try:
        public, _ = _load(path, path, path.stat())
    except OSError as error:
        raise InvalidKey(f"{path}: the public key cannot be read: {error.strerror}") from None
    try:
        key = bytes(z85.decode(public))
    except (ValueError, KeyError, struct.error):
        key = b""
    if len(public) != _KEY_CHARACTERS or len(key) != 32:
        raise InvalidKey(f"{path}: its public key is damaged")
    return key


def _load(path: Path, source: str | Path, status: os.stat_result) -> tuple[bytes, bytes | None]:
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_KEY_FILE_BYTES:
        raise InvalidKey(f"{path}: it is no certificate: make one with zmq.auth.create_certificates")
    try:
        return zmq.auth.load_certificate(source)
    except (ValueError, IndexError):
        raise InvalidKey(f"{path}: it is no certificate: make one with zmq.auth.create_certificates") from None


def _certificates(names: Sequence[str | os.PathLike[str]]) -> list[Path]:
    found = []
    for path in map(Path, names):
        found += sorted(path.glob("*.key")) if path.is_dir() else [path]
    return found
