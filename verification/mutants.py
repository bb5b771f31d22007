"""Every protocol that differs from the true one in one step, and the configurations in which its fault shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from verification.check import Outcome, search
from verification.slot_protocol import Protocol, SlotProtocol

TRUE: Final = Protocol()

CONFIGURATIONS: Final = {
    "deaths": SlotProtocol(),
    "two": SlotProtocol(subscribers=2, publisher_deaths=0, subscriber_dies=False),
    "four": SlotProtocol(slots=4, max_leases=2, publisher_deaths=0, subscriber_dies=False),
    "loans": SlotProtocol(slots=4, max_loans=2, publisher_deaths=0, subscriber_dies=False),
    "lost": SlotProtocol(slots=4, max_loans=2, subscriber_dies=False),
    "files": SlotProtocol(publisher_deaths=1, subscriber_dies=False, new_files=1),
}
"""In order: three slots and a subscriber, with any number of deaths on both sides; two subscribers that compete for a
seat; four slots and two leases; four slots and two loans; the same, with publishers that die with open loans; a file
that is replaced. The number of frames is unbounded in all."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A protocol with one fault."""

    name: str
    protocol: Protocol
    configurations: tuple[str, ...] = ("deaths",)
    max_leases: int | None = None
    """Leases that a subscriber takes, if it would be rejected without the fault."""

    def hunt(self) -> Outcome:
        """Search the configurations of the mutant until a property is violated."""
        for configuration in self.configurations:
            model = replace(CONFIGURATIONS[configuration], protocol=self.protocol)
            outcome = search(replace(model, max_leases=self.max_leases or model.max_leases))
            if outcome.broken is not None:
                break
        return outcome


def _moved(steps: tuple[str, ...], kept: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each way to omit one of the steps, or to move one. The steps in ``kept`` stay first."""
    seen = {steps}
    for place, step in enumerate(steps):
        if step in kept:
            continue
        others = (*steps[:place], *steps[place + 1 :])
        yield f"without '{step}'", others
        for target in range(len(kept), len(steps)):
            order = (*others[:target], step, *others[target:])
            if order not in seen:
                seen.add(order)
                before = f"before '{order[target + 1]}'" if target < place else f"after '{order[target - 1]}'"
                yield f"'{step}' {before}", order


def orders() -> Iterator[Mutant]:
    """Yield every omission and every move of a step of a publication, of a lease and of its end."""
    for name, order in _moved(TRUE.publish, kept=("lock",)):
        if not {"first", "second"} - set(order):  # a publisher that writes no pixels is meaningless
            # Without deaths, because the kernel would unlock what the mutant does not.
            configurations = ("deaths",) if "unlock" in order else ("two",)
            yield Mutant(f"publish: {name}", replace(TRUE, publish=order), configurations)
    yield Mutant("publish: without 'lock'", replace(TRUE, publish=TRUE.publish[1:]))
    for name, order in _moved(TRUE.lease):
        yield Mutant(f"lease: {name}", replace(TRUE, lease=order))
    yield Mutant("lease: unlocked while the view lives", replace(TRUE, lease=(*TRUE.lease, "unlock")))
    yield Mutant("lease: not unlocked after a failed check", replace(TRUE, unlocks_after_check=False))
    yield Mutant("release: counted before it is unlocked", replace(TRUE, release=("return", "unlock")))
    yield Mutant("search: 'tail' before 'event'", replace(TRUE, search=("tail", "event")))


def switches() -> Iterator[Mutant]:
    """Yield the other faults, and pairs of faults of which each alone is harmless."""
    yield Mutant("claim: the newest slot too", replace(TRUE, spares_newest=False))
    yield Mutant("claim: one pass", replace(TRUE, second_pass=False))
    yield Mutant("claim: a slot that is loaned too", replace(TRUE, spares_loans=False), ("loans",))
    yield Mutant("claim: gives the sequence", replace(TRUE, numbers_claims=True), ("loans",))
    yield Mutant("claim: counts the last publication alone", replace(TRUE, orders_all=False), ("loans",))
    yield Mutant("adopt: forgets which slot is the newest", replace(TRUE, adopts_newest=False))
    yield Mutant("adopt: goes on after tail, not seq[]", replace(TRUE, counts_seq=False, finishes_tail=False))
    yield Mutant("adopt: goes on after seq[], not tail", replace(TRUE, counts_tail=False))
    yield Mutant("adopt: goes on without first_sequence", replace(TRUE, counts_base=False), ("files",))
    yield Mutant("adopt: leaves the tail unfinished", replace(TRUE, finishes_tail=False))
    yield Mutant("admission: seats without the flock", replace(TRUE, admission=False), ("two",))
    yield Mutant("admission: a seat for each slot but one", replace(TRUE, reserved=0), ("two",))
    yield Mutant("admission: one slot for all loans", replace(TRUE, reserved=1), ("loans",), max_leases=2)
    yield Mutant("death: locks stay, as a semaphore would", replace(TRUE, unlocks_when_dead=False))
    yield Mutant("sleep: woken, sleeps again without a search", replace(TRUE, searches_when_woken=False))
    yield Mutant("tick: does not check the path", replace(TRUE, checks_path=False), ("files",))
    late_header = tuple(step for step in TRUE.publish if step != "header")
    late_header = (*late_header[: late_header.index("seq") + 1], "header", *late_header[late_header.index("seq") + 1 :])
    # Either check alone finds such a frame, so each pair removes one check and relies on the other.
    believed = replace(TRUE, lease=("lock", "check"))
    yield Mutant("pair: 'header' after 'seq', not compared", replace(believed, publish=late_header))
    yield Mutant("pair: neither 'check' nor 'header'", replace(TRUE, lease=("lock",)))


HARMLESS: Final = {
    "adopt: goes on after seq[], not tail": "the newest slot is never claimed, so its seq says the same",
    "lease: 'check' after 'header'": "both are under the lock",
    "lease: 'header' before 'lock'": "seq is compared under the lock, and a sequence is given once; but a header that "
    "is read while it is written may be of two frames, which here it is not",
    "lease: without 'header'": "seq was compared; it is a second line against a damaged header",
    "publish: 'first' after 'second'": "all are under the lock, with seq 0",
    "publish: 'first' after 'header'": "all are under the lock, with seq 0",
    "publish: 'second' after 'header'": "all are under the lock, with seq 0",
    "publish: 'header' before 'first'": "all are under the lock, with seq 0",
    "publish: 'header' before 'zero'": "the header's sequence is not what the reader came for",
    "publish: 'header' after 'seq'": "the header's sequence is compared: a death costs that frame",
    "publish: 'header' after 'unlock'": "the header's sequence is compared: the reader skips the frame",
    "publish: 'header' after 'tail'": "the header's sequence is compared: the reader skips the frame",
    "publish: 'header' after 'event'": "the header's sequence is compared: the reader skips the frame",
    "publish: 'unlock' before 'first'": "seq is 0, so a subscriber rejects the slot; but without the barrier",
    "publish: 'unlock' before 'second'": "seq is 0, so a subscriber rejects the slot; but without the barrier",
    "publish: 'unlock' before 'header'": "seq is 0, so a subscriber rejects the slot; but without the barrier",
    "publish: 'seq' after 'unlock'": "seq is 0, so a subscriber rejects the slot; but without the barrier",
    "publish: 'unlock' after 'tail'": "an early subscriber cannot lock, and retries",
    "publish: 'unlock' after 'event'": "an early subscriber cannot lock, and retries; eight retries cost a tick",
}
"""Mutants that violate no property of the model, and why: another check exists, or the order does not matter."""
