"""The ledger: each frame is accepted or missed, once, and has one fate in each group, whatever dies in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.common.service import ServiceError
from services.relay.ledger import ANALYSED, DEAD, Entry, Fate, Ledger
from tests.services.relay.frames import DATA, frame, result
from tests.support import ROOT

ONE = ("detector",)
TWO = ("people", "cars")


@contextmanager
def opened(path: Path | None = None, groups: tuple[str, ...] = ONE) -> Iterator[Ledger]:
    with closing(Ledger(path, groups)) as ledger:
        yield ledger


def total(ledger: Ledger, word: str) -> int:
    return sum(number for name, number in ledger.counts().items() if name.startswith(word))


def published(ledger: Ledger, sequence: int, epoch: int = 7) -> Entry:
    """Accept and publish a frame."""
    reference = frame(sequence, epoch)
    ledger.accept(reference)
    entry = next(entry for entry in ledger.pending(0, -1) if entry.reference == reference)
    ledger.published([entry])
    return entry


def test_accepted_frames_wait_in_order() -> None:
    with opened() as ledger:
        for sequence in (1, 2, 3):
            ledger.accept(frame(sequence))
        first, second, third = ledger.pending(0, -1)
        assert [entry.reference for entry in (first, second, third)] == [frame(1), frame(2), frame(3)]
        assert ledger.pending(0, 2) == [first, second]
        assert ledger.pending(second.id, -1) == [third]
        assert ledger.spooled_bytes == 3 * len(DATA)
        assert ledger.waiting() == (3, 0, frame(1).captured_wall_ns)
        ledger.published([first])
        assert ledger.pending(0, -1) == [second, third]
        assert ledger.waiting() == (2, 1, frame(1).captured_wall_ns)
        assert ledger.counts() == {"accepted": 3, "published": 1}


def test_frames_skipped_in_the_ring_are_missed() -> None:
    with opened() as ledger:
        ledger.accept(frame(5))  # a relay that starts later has missed nothing
        ledger.accept(frame(9))
        ledger.miss(7, 12, "thinned")
        ledger.accept(frame(13))
        assert ledger.missed() == [(7, 6, 8, "overwritten"), (7, 10, 11, "overwritten"), (7, 12, 12, "thinned")]
        assert ledger.counts() == {"accepted": 3, "missed: overwritten": 5, "missed: thinned": 1}


def test_adjacent_misses_become_one_range() -> None:
    with opened() as ledger:
        for sequence in range(1, 6):
            ledger.miss(7, sequence, "spool full")
        ledger.miss(7, 6, "thinned")
        ledger.miss(7, 7, "spool full")
        assert ledger.missed() == [(7, 1, 5, "spool full"), (7, 6, 6, "thinned"), (7, 7, 7, "spool full")]


def test_the_oldest_ranges_are_forgotten_and_stay_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.relay.ledger.KEPT_RANGES", 3)
    with opened() as ledger:
        for sequence in range(1, 41):
            ledger.miss(7, sequence, f"reason {sequence % 2}")
        assert [first for _, first, _, _ in ledger.missed()] == [37, 38, 39, 40]
        assert total(ledger, "missed") == 40


def test_a_publisher_that_returns_continues_in_its_ring() -> None:
    with opened() as ledger:
        ledger.accept(frame(3, epoch=1))
        ledger.accept(frame(6, epoch=2))
        assert ledger.missed() == [(2, 4, 5, "overwritten")]
        assert not ledger.is_new(1, 3)
        assert not ledger.is_new(2, 5)
        assert ledger.is_new(2, 7)


def test_a_new_ring_begins_at_1() -> None:
    with opened() as ledger:
        ledger.accept(frame(30, epoch=1))
        assert ledger.is_new(2, 3)
        ledger.accept(frame(3, epoch=2))
        assert ledger.missed() == [(2, 1, 2, "overwritten")]
        assert not ledger.is_new(2, 3)
        assert ledger.is_new(2, 4)


@pytest.mark.parametrize("number", [1 << 63, (1 << 64) - 1])
def test_an_epoch_of_64_bits_is_kept(tmp_path: Path, number: int) -> None:
    for _ in range(2):
        with opened(tmp_path / "ledger") as ledger:
            if ledger.is_new(number, 1):
                published(ledger, 1, epoch=number)
    with opened(tmp_path / "ledger") as ledger:
        assert ledger.counts() == {"accepted": 1, "published": 1}
        assert ledger.settle([Fate(result(frame(1, epoch=number)), "detector", ANALYSED)]) == [True]


def test_the_ledger_is_complete_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with opened(path, TWO) as ledger:
        ledger.accept(frame(1))
        published(ledger, 3)
        ledger.settle([Fate(result(frame(3), "cars"), "cars", DEAD)])
        before = (ledger.counts(), ledger.missed(), ledger.waiting(), ledger.spooled_bytes, ledger.pending(0, -1))
    with opened(path, TWO) as ledger:
        after = (ledger.counts(), ledger.missed(), ledger.waiting(), ledger.spooled_bytes, ledger.pending(0, -1))
        assert after == before
        assert not ledger.is_new(7, 3)
        assert ledger.is_dead(frame(3).address)
        ledger.accept(frame(4))
        assert ledger.missed() == [(7, 2, 2, "overwritten")]


def test_a_copy_of_the_files_at_any_point_can_be_continued(tmp_path: Path) -> None:
    # What a loss of power leaves: the database and its log, without a close.
    path = tmp_path / "one" / "ledger"
    path.parent.mkdir()
    with opened(path) as ledger:
        steps: list[Callable[[], object]] = [
            lambda: ledger.accept(frame(1)),
            lambda: ledger.miss(7, 2, "thinned"),
            lambda: ledger.published(ledger.pending(0, 1)),
            lambda: ledger.settle([Fate(result(frame(1)), "detector", ANALYSED)]),
            lambda: ledger.accept(frame(5)),
            lambda: ledger.drop(ledger.pending(0, 1)[0], "too old"),
        ]
        for number, step in enumerate(steps):
            step()
            copy = tmp_path / str(number)
            shutil.copytree(path.parent, copy)
            with opened(copy / "ledger") as found:
                assert found.counts() == ledger.counts()
                assert found.missed() == ledger.missed()
                assert found.waiting() == ledger.waiting()
                assert found.spooled_bytes == ledger.spooled_bytes


def test_a_transaction_that_fails_changes_nothing() -> None:
    with opened() as ledger:
        ledger.accept(frame(1))
        before = ledger.counts(), ledger.waiting(), ledger.spooled_bytes
        with pytest.raises(ServiceError, match="the relay's ledger cannot be written: UNIQUE") as caught:
            ledger.accept(frame(1))
        assert "\n" not in str(caught.value)
        assert (ledger.counts(), ledger.waiting(), ledger.spooled_bytes) == before
        ledger.accept(frame(2))
        assert ledger.missed() == []


def test_a_frame_is_settled_once_however_often_it_is_reported() -> None:
    with opened() as ledger:
        published(ledger, 1)
        fate = Fate(result(frame(1)), "detector", ANALYSED)
        assert fate.address == frame(1).address
        assert ledger.settle([fate, fate]) == [True, True]
        assert ledger.settle([fate]) == [True]
        assert ledger.counts() == {"accepted": 1, "published": 1, "analysed": 1}
        assert ledger.waiting() == (0, 0, None)


def test_an_object_is_needed_until_every_group_has_settled() -> None:
    with opened(None, TWO) as ledger:
        published(ledger, 1)
        people = Fate(result(frame(1), "people"), "people", ANALYSED)
        assert ledger.settle([people, people]) == [False, False]
        assert ledger.waiting()[1] == 1
        assert ledger.settle([Fate(frame(1), "cars", "dropped: too old")]) == [True]
        assert ledger.counts() == {"accepted": 1, "published": 1, "analysed": 1, "dropped: too old": 1}


def test_an_unknown_group_settles_nothing() -> None:
    with opened() as ledger:
        published(ledger, 1)
        assert ledger.settle([Fate(result(frame(1), "other"), "other", ANALYSED)]) == [False]
        assert ledger.waiting()[1] == 1


@pytest.mark.parametrize("dead_first", [True, False])
def test_the_object_of_a_dead_letter_is_kept_until_it_is_removed(dead_first: bool) -> None:
    with opened(None, TWO) as ledger:
        published(ledger, 1)
        fates = [Fate(frame(1), "people", DEAD), Fate(result(frame(1), "cars"), "cars", ANALYSED)]
        for fate in fates if dead_first else reversed(fates):
            assert ledger.settle([fate]) == [False]
        assert ledger.is_dead(frame(1).address)
        assert not ledger.is_dead(frame(2).address)
        # A replayed letter gives a result at last: the frame is not known any more.
        ledger.removed([frame(1).address])
        assert not ledger.is_dead(frame(1).address)
        assert ledger.counts()["dead letters"] == 1


@pytest.mark.parametrize("sequence", [99, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_message_about_an_unknown_frame_is_not_an_error(sequence: int) -> None:
    with opened() as ledger:
        ledger.settle([Fate(result(frame(sequence)), "detector", ANALYSED), Fate(frame(sequence), "detector", DEAD)])
        assert ledger.counts() == {}


def test_a_result_before_the_brokers_confirmation_counts_once() -> None:
    with opened() as ledger:
        ledger.accept(frame(1))
        (entry,) = ledger.pending(0, -1)
        assert ledger.settle([Fate(result(frame(1)), "detector", ANALYSED)]) == [True]
        ledger.published([entry])
        ledger.drop(entry, "too old")
        assert ledger.counts() == {"accepted": 1, "published": 1, "analysed": 1}
        assert ledger.spooled_bytes == 0


def test_a_drop_counts_the_groups_that_have_not_settled() -> None:
    with opened(None, TWO) as ledger:
        ledger.accept(frame(1))
        (entry,) = ledger.pending(0, -1)
        ledger.settle([Fate(result(frame(1), "cars"), "cars", ANALYSED)])
        ledger.drop(entry, "too old")
        ledger.drop(entry, "too old")
        assert ledger.counts() == {"accepted": 1, "analysed": 1, "dropped: too old": 1}
        assert ledger.spooled_bytes == 0


def test_a_moved_frame_is_found_at_its_new_address(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger") as ledger:
        ledger.accept(frame(1))
        moved = ledger.move(ledger.pending(0, 1)[0], f"{frame(1).address}.3")
        assert moved.reference.address == f"{frame(1).address}.3"
    with opened(tmp_path / "ledger") as ledger:
        assert ledger.pending(0, -1) == [moved]


def test_published_frames_expire_and_waiting_ones_do_not() -> None:
    with opened(None, TWO) as ledger:
        published(ledger, 1)
        published(ledger, 2)
        ledger.settle([Fate(result(frame(2), "cars"), "cars", ANALYSED)])
        ledger.accept(frame(3))
        published(ledger, 4)
        assert ledger.expire(frame(4).captured_wall_ns) == 2
        assert ledger.counts()["dropped: expired in the storage"] == 3
        assert ledger.waiting()[:2] == (1, 1)
        assert ledger.expire(frame(4).captured_wall_ns) == 0


@pytest.mark.slow
def test_a_relay_killed_at_any_point_loses_and_doubles_no_frame(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    code = f"""
import pathlib
from services.relay.ledger import Ledger
from tests.services.relay.frames import frame
ledger = Ledger(pathlib.Path({str(path)!r}), ("detector",))
accepted = [entry.reference.sequence for entry in ledger.pending(0, -1)]
sequence = max([0, *accepted, *(last for _, _, last, _ in ledger.missed())])
print("ready", flush=True)
while True:
    sequence += 1
    if sequence % 3:
        ledger.accept(frame(sequence))
    else:
        ledger.miss(7, sequence, "thinned")
    print(sequence, flush=True)
"""
    told = 0
    for lines in (1, 100):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            for _ in range(lines):
                told = int(child.stdout.readline())
            os.kill(child.pid, signal.SIGKILL)
            told = max([told, *map(int, child.stdout.read().split())])
        with opened(path) as ledger:
            done = total(ledger, "accepted") + total(ledger, "missed")
            # The last frame may be in the ledger, but not reported yet.
            assert done in (told, told + 1)
            assert len(ledger.pending(0, -1)) == total(ledger, "accepted")
            assert not ledger.is_new(7, done)
            assert ledger.is_new(7, done + 1)


class LedgerMachine(RuleBasedStateMachine):
    """A publisher that continues, dies and restarts, and a relay that takes, misses, publishes, settles and drops."""

    @initialize()
    def begin(self) -> None:
        self.ledger = Ledger(None, TWO)
        self.epoch, self.sequence, self.ring_total = 1, 0, 0
        self.known: list[Entry] = []

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()

    def _publish(self, skipped: int) -> None:
        # What a ring had before the relay's first frame of all is not counted.
        self.sequence += 1 + (skipped if self.ring_total else 0)
        self.ring_total += 1 + (skipped if self.ring_total else 0)

    @rule(skipped=st.integers(0, 3))
    def accept(self, skipped: int) -> None:
        self._publish(skipped)
        self.ledger.accept(frame(self.sequence, epoch=self.epoch))
        self.known.append(self.ledger.pending(0, -1)[-1])

    @rule(skipped=st.integers(0, 3), reason=st.sampled_from(["thinned", "spool full"]))
    def miss(self, skipped: int, reason: str) -> None:
        self._publish(skipped)
        self.ledger.miss(self.epoch, self.sequence, reason)

    @rule(new_ring=st.booleans())
    def restart_publisher(self, new_ring: bool) -> None:
        self.epoch += 1
        if new_ring and self.sequence:
            self.sequence = 0
            self._publish(0)
            self.ledger.miss(self.epoch, self.sequence, "thinned")

    @rule(data=st.data(), act=st.sampled_from(["publish", "drop", "settle", "settle"]), group=st.sampled_from(TWO))
    def work(self, data: st.DataObject, act: str, group: str) -> None:
        if not self.known:
            return
        entry = data.draw(st.sampled_from(self.known))
        if act == "publish":
            self.ledger.published([entry])
        elif act == "drop":
            self.ledger.drop(entry, "too old")
        else:
            outcome = data.draw(st.sampled_from([ANALYSED, DEAD, "dropped: too many"]))
            self.ledger.settle([Fate(entry.reference, group, outcome)])

    @rule(before=st.integers(0, 20))
    def expire(self, before: int) -> None:
        self.ledger.expire(before * 10**9)

    @invariant()
    def nothing_is_lost_or_counted_twice(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert total(self.ledger, "accepted") + total(self.ledger, "missed") == self.ring_total
        assert sum(last - first + 1 for _, first, last, _ in self.ledger.missed()) == total(self.ledger, "missed")
        spooled, unsettled, _ = self.ledger.waiting()
        assert self.ledger.spooled_bytes == spooled * len(DATA)
        fates = sum(total(self.ledger, word) for word in (ANALYSED, DEAD, "dropped"))
        in_ledger = spooled + unsettled
        gone = total(self.ledger, "accepted") - in_ledger
        assert gone * len(TWO) <= fates <= gone * len(TWO) + in_ledger * (len(TWO) - 1)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
