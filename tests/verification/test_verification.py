"""The slot protocol's model: every reachable state keeps the properties, and a protocol with a fault does not."""

from __future__ import annotations

import pytest

from verification.check import search
from verification.mutants import CONFIGURATIONS, HARMLESS, Mutant, orders, switches
from verification.slot_protocol import WHOLE

pytestmark = pytest.mark.slow

MUTANTS = [*switches(), *orders()]
SLOW = {"admission: a seat for each slot but one", "tick: does not check the path"}
"""Found by ``make verify``, which also searches the configurations ``lost`` and ``files``, and the harmless mutants."""


LONGER = [pytest.param(name, marks=pytest.mark.long) for name in ("two", "four", "loans")]


@pytest.mark.parametrize("configuration", ["deaths", *LONGER])
def test_the_protocol_keeps_every_property(configuration: str) -> None:
    outcome = search(CONFIGURATIONS[configuration])
    assert (outcome.broken, outcome.trace) == (None, ())
    assert outcome.states > 15_000


@pytest.mark.long
@pytest.mark.parametrize(
    "mutant",
    [pytest.param(one, id=one.name) for one in MUTANTS if one.name not in HARMLESS | dict.fromkeys(SLOW, "")],
)
def test_a_fault_is_found(mutant: Mutant) -> None:
    assert mutant.hunt().broken is not None


def test_every_mutant_that_is_called_harmless_or_slow_is_one() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert set(HARMLESS) | SLOW <= set(names)


def test_the_trace_of_a_torn_read_can_be_read() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "lease: 'lock' after 'check'")
    outcome = mutant.hunt()
    assert outcome.broken == WHOLE
    assert outcome.trace[-1] == "subscriber 0: the header is that frame's: has a view"
    assert "publisher: writes the first half" in outcome.trace[-6:]
    assert "publisher: writes the second half" not in outcome.trace[-6:]
