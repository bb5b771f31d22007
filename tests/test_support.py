"""The helpers report the faults that they look for."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import pytest

from tests.people import Person
from tests.support import Program, complaints, free_ports, wait_until

LEAK = "open('/dev/null')"


def test_a_program_that_leaks_is_reported() -> None:
    program = Program([sys.executable, "-c", LEAK])
    assert program.end() == 0
    said = program.kill()
    assert "ResourceWarning: unclosed file" in said
    assert complaints(said)


def test_a_program_without_a_complaint_passes() -> None:
    program = Program([sys.executable, "-c", "pass"])
    assert program.end() == 0
    assert program.kill() == ""


@pytest.mark.parametrize(
    "log",
    ["sys:1: ResourceWarning: unclosed file", "Exception ignored in: <file>", "Traceback (most recent call last):"],
)
def test_a_complaint_in_a_log_is_reported(log: str) -> None:
    assert complaints(f"started\n{log}\nstopped\n") == [log]
    assert complaints("one Warning: of our own, without a Traceback\n") == []


def leak() -> None:
    open("/dev/null")  # noqa: SIM115


def test_a_leak_in_the_process_of_another_user_is_reported() -> None:
    person = Person(os.geteuid(), leak, group=os.getegid())
    with pytest.raises(AssertionError, match="ResourceWarning"):
        person.result()


def test_waiting_ends_with_the_first_true_value() -> None:
    values = iter([0, "", None, "seven", "eight"])
    assert wait_until(lambda: next(values), "a number") == "seven"


def test_a_time_out_names_the_condition_and_the_last_state() -> None:
    with pytest.raises(AssertionError, match=r"waited 0 s in vain: a frame; last seen: \[\]\nthe log of the service"):
        wait_until(lambda: [], "a frame", timeout_s=0, detail=lambda: "the log of the service")


def test_free_ports_can_be_bound() -> None:
    first = free_ports(3)
    with contextlib.ExitStack() as stack:
        for port in range(first, first + 3):
            stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
