"""The end of a Unix socket that nothing references any more."""

from __future__ import annotations

import _socket
import os
import socket

from framebus.notify.local_socket import LocalSocket


def test_it_is_closed_with_its_last_reference() -> None:
    opened = LocalSocket()
    descriptor = os.fstat(opened.fileno())
    number = opened.fileno()
    del opened
    assert not is_open(number, descriptor)


def test_it_is_closed_though_its_making_was_interrupted() -> None:
    interrupted = LocalSocket.__new__(LocalSocket)
    _socket.socket.__init__(interrupted, socket.AF_UNIX, socket.SOCK_STREAM)  # the rest of socket.__init__() never ran
    number = interrupted.fileno()
    descriptor = os.fstat(number)
    del interrupted
    assert not is_open(number, descriptor)


def test_one_that_was_never_made_ends_without_an_error() -> None:
    LocalSocket.__new__(LocalSocket)


def is_open(number: int, descriptor: os.stat_result) -> bool:
    """Whether the descriptor of that number is still the same file."""
    try:
        return os.path.samestat(os.fstat(number), descriptor)
    except OSError:
        return False
