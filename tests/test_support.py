"""The helpers see what they are there to see."""

from __future__ import annotations

import os
import sys

import pytest

from tests.people import Person
from tests.support import Program, complaints

LEAK = "open('/dev/null')"


def test_a_program_that_leaks_is_seen() -> None:
    program = Program([sys.executable, "-c", LEAK])
    assert program.end() == 0
    said = program.kill()
    assert "ResourceWarning: unclosed file" in said
    assert complaints(said)


def test_a_program_that_has_nothing_to_say_is_quiet() -> None:
    program = Program([sys.executable, "-c", "pass"])
    assert program.end() == 0
    assert program.kill() == ""


@pytest.mark.parametrize(
    "log",
    ["sys:1: ResourceWarning: unclosed file", "Exception ignored in: <file>", "Traceback (most recent call last):"],
)
def test_a_log_that_complains_is_seen(log: str) -> None:
    assert complaints(f"started\n{log}\nstopped\n") == [log]
    assert complaints("one Warning: of our own, without a Traceback\n") == []


def leak() -> None:
    open("/dev/null")  # noqa: SIM115


def test_a_person_that_leaks_is_seen() -> None:
    person = Person(os.geteuid(), leak, group=os.getegid())
    with pytest.raises(AssertionError, match="ResourceWarning"):
        person.result()
