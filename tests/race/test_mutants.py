"""The race programs find a protocol that is wrong in one step: those faults of the model that a race can show.

docs/verification.md says of the others which test finds them, or why nothing but the model can. In the same races, what
has no fault finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.race.mutants import SLOW, build
from tests.support import Program

pytestmark = pytest.mark.long

Start = Callable[..., Program]
ROUNDS = 12
"""One is enough on a machine that is not overloaded."""


class Seen(NamedTuple):
    """What a race came to."""

    received: dict[str, int]
    """By the reader's fault."""
    torn: dict[str, int]
    dropped: int


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Compiled steps with faults, made once for each set of them."""
    folder, built = tmp_path_factory.mktemp("mutants"), dict[str, Path]()

    def library(faults: str) -> str:
        if faults not in built:
            built[faults] = folder / f"{len(built)}.so"
            build(faults.split(","), built[faults])
        return str(built[faults])

    return library


@pytest.fixture(params=["compiled", "plain"])
def start(request: pytest.FixtureRequest, start_program: Start) -> Start:
    """Starts a program with faults, in the compiled steps and in those in Python; without any as it is."""
    libraries: Callable[[str], str] = str
    if request.param == "compiled":
        request.getfixturevalue("compiled_steps")
        libraries = request.getfixturevalue("libraries")

    def start(fault: str, *program: str) -> Program:
        return start_program("mutated", libraries(fault), *program) if fault else start_program(*program)

    return start


def race(start: Start, stream: str, readers: dict[str, str], *, fault: str = "", dies: bool, loans: int = 1) -> Seen:
    """A publisher with a fault, or none, and subscribers with a fault each, for a second."""

    def run(fault: str, *program: str) -> Program:
        started = start(fault, *program)
        assert started.read() == "open"
        return started

    publisher = run(fault, "lives" if dies else "flat_out", stream, "60", "100", "8", "1", *[str(loans)] * (not dies))
    subscribers = {
        name: run(name, "check_frames", stream, *options.split(), "1" if dies else "0.2")
        for name, options in readers.items()
    }
    publisher.send()
    answer = publisher.read().split()
    if not dies:
        publisher.send()
    assert publisher.end() == 0
    received, torn = {}, {}
    for name, subscriber in subscribers.items():
        received[name], torn[name], backwards, _, _ = map(int, subscriber.read().split())
        assert subscriber.end() == 0
        assert backwards == 0
    return Seen(received, torn, 0 if dies else int(answer[1]))


def torn(start: Start, stream: str, readers: dict[str, str], *, fault: str = "", dies: bool, loans: int = 1) -> bool:
    """Whether all readers see torn frames in one of some races, but one without a fault, which reads too, in none."""
    found: set[str] = set()
    for _ in range(ROUNDS):
        seen = race(start, stream, readers, fault=fault, dies=dies, loans=loans)
        assert not seen.torn.get(SLOW)
        found |= {name for name in readers if seen.torn[name] or (name == SLOW and seen.received[name])}
        if found == set(readers):
            return True
    return False


def test_a_subscriber_without_the_lock_receives_torn_frames(stream: str, start: Start) -> None:
    readers = {"lease: without 'lock'": "newest futex 20", "lease: unlocked while the view lives": "newest futex 20"}
    assert torn(start, stream, {**readers, SLOW: "newest futex 0"}, dies=False)


def test_a_publisher_that_does_not_lock_tears_frames(stream: str, start: Start) -> None:
    assert torn(start, stream, {"": "newest futex 20"}, fault="publish: without 'lock'", dies=False)


def test_a_publisher_that_claims_the_slot_of_its_own_loan_tears_frames(stream: str, start: Start) -> None:
    assert torn(start, stream, {"": "newest futex 20"}, fault="claim: a slot that is loaned too", dies=False, loans=2)


@pytest.mark.parametrize("fault", ["publish: without 'zero'", "publish: 'header' and 'seq' before 'first'"])
def test_a_death_in_the_pixels_of_a_slot_with_a_sequence_is_a_torn_frame(stream: str, start: Start, fault: str) -> None:
    assert torn(start, stream, {"": "every futex 5"}, fault=fault, dies=True)


def test_a_slot_that_is_not_checked_under_its_lock_may_be_half_a_frame(stream: str, start: Start) -> None:
    readers = {f"lease: without 'check',{SLOW}": "every futex 1", "lease: 'check' before 'lock'": "every futex 1"}
    assert torn(start, stream, {**readers, SLOW: "every futex 1"}, dies=True)


def test_a_lock_that_is_kept_after_a_failed_check_costs_the_publisher_its_slots(stream: str, start: Start) -> None:
    fault = f"lease: not unlocked after a failed check,{SLOW}"
    assert any(race(start, stream, {fault: "newest futex 0"}, dies=False).dropped for _ in range(ROUNDS))


def test_the_slow_reader_without_the_fault_costs_it_none(stream: str, start: Start) -> None:
    assert race(start, stream, {SLOW: "newest futex 0"}, dies=False).dropped == 0
