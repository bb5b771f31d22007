"""The end of a Unix socket that nothing references any more."""

from __future__ import annotations

import _socket
import os
import socket
from pathlib import Path

from framebus.notify.local_socket import LocalSocket


def test_a_socket_is_closed_with_its_last_reference() -> None:
    opened = LocalSocket()
    descriptor = os.fstat(opened.fileno())
    number = opened.fileno()
    del opened
    assert not is_open(number, descriptor)


def test_a_socket_whose_creation_was_interrupted_is_closed() -> None:
    interrupted = LocalSocket.__new__(LocalSocket)
    _socket.socket.__init__(interrupted, socket.AF_UNIX, socket.SOCK_STREAM)  # the rest of socket.__init__() never ran
    number = interrupted.fileno()
    descriptor = os.fstat(number)
    del interrupted
    assert not is_open(number, descriptor)


def test_a_socket_that_was_never_created_ends_without_an_error() -> None:
    LocalSocket.__new__(LocalSocket)


def test_a_connection_that_nothing_references_is_closed_without_a_warning(tmp_path: Path) -> None:
    listening, connecting = LocalSocket(), LocalSocket()
    listening.bind(str(tmp_path / "socket"))
    listening.listen()
    connecting.connect(str(tmp_path / "socket"))
    accepted = listening.accept()[0]
    assert not accepted.getblocking()
    del accepted  # a ResourceWarning would fail the test
    assert connecting.recv(1) == b""


def is_open(number: int, descriptor: os.stat_result) -> bool:
    """Whether the descriptor of that number is still the same file."""
    try:
        return os.path.samestat(os.fstat(number), descriptor)
    except OSError:
        return False
