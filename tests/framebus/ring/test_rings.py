"""The slot protocol, step by step, with both sides in one process: their opens differ, so their locks conflict."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from framebus.errors import StreamNotFound
from framebus.ring import _ring_py as steps
from framebus.ring import backend, claims
from framebus.ring.claims import Claim
from framebus.ring.frame_header import Description
from framebus.ring.layout import EVENT, SLOT_FIELDS, TAIL, Geometry
from framebus.ring.leases import MAX_RETRIES
from framebus.ring.publisher_ring import PublisherRing
from framebus.ring.subscriber_ring import SubscriberRing
from framebus.ring.words import EVENT_WORD, LOCK_READ, SEQ_WORDS, TAIL_WORD
from framebus.shm import locks
from framebus.shm import segment as shm
from tests.support import SHM

pytestmark = pytest.mark.usefixtures("each_steps")

DESCRIPTION = Description(2, 3, 1, "|u1", "gray").pack()


@pytest.fixture
def publisher(stream: str) -> Iterator[PublisherRing]:
    opened = PublisherRing(stream, Geometry.for_frames(4, 6))
    yield opened
    opened.close(unlink=True)


def claim(publisher: PublisherRing) -> Claim | None:
    return publisher.writer.claim(DESCRIPTION)


def publish(publisher: PublisherRing) -> int:
    claimed = claim(publisher)
    assert claimed is not None
    return commit(publisher, claimed)


def commit(publisher: PublisherRing, claimed: Claim) -> int:
    publisher.writer.publish(claimed, 10, 20)
    return publisher.writer.next_sequence - 1


def hold_all_but(publisher: PublisherRing, free: int) -> shm.Segment:
    """Lease all other slots, with a descriptor that keeps them until it is closed."""
    holder = shm.attach(publisher.segment.name)
    for slot in range(publisher.geometry.slots):
        assert slot == free or holder.try_lock(LOCK_READ[slot])
    return holder


def test_words_are_where_the_layout_says() -> None:
    assert (TAIL_WORD * 8, EVENT_WORD * 4) == (TAIL, EVENT)


def test_a_published_frame_is_leased_once(stream: str, publisher: PublisherRing) -> None:
    subscriber = SubscriberRing(stream)
    assert subscriber.reader.take() is None
    before = subscriber.event()
    assert publish(publisher) == 1
    assert subscriber.event() == before + 1
    lease = subscriber.reader.take()
    assert lease is not None
    assert (lease.header.sequence, lease.header.epoch, lease.header.shape) == (1, publisher.epoch, (2, 3, 1))
    assert subscriber.reader.take() is None


def test_the_slots_that_are_written_next_are_mapped_first(stream: str, publisher: PublisherRing) -> None:
    for _ in range(6):
        publish(publisher)
    subscriber = SubscriberRing(stream)
    lease = subscriber.reader.take()
    assert lease is not None
    subscriber.prefault(lease.slot)
    slots = publisher.geometry.slots
    for following in range(1, slots):
        assert subscriber.prefault_one()
        mapped = {(lease.slot + step) % slots for step in range(following + 1)}
        assert subscriber.unmapped_slots == set(range(slots)) - mapped
    assert not subscriber.prefault_one()


def test_a_claimed_slot_is_unreadable_until_it_is_published(stream: str, publisher: PublisherRing) -> None:
    publish(publisher)
    subscriber = SubscriberRing(stream)
    claimed = claim(publisher)
    assert claimed is not None
    assert not subscriber.segment.try_lock(LOCK_READ[claimed.slot])
    assert publisher.segment.words[SEQ_WORDS[claimed.slot]] == 0
    claimed.abandon()
    lease = subscriber.reader.take()
    assert lease is not None
    assert lease.header.sequence == 1


def test_the_newest_slot_is_never_claimed(publisher: PublisherRing) -> None:
    for _ in range(20):
        publish(publisher)
        newest = publisher.segment.words[TAIL_WORD] & 0xFF
        claimed = claim(publisher)
        assert claimed is not None
        assert claimed.slot != newest
        claimed.abandon()


def test_the_oldest_frame_goes_first_whatever_order_the_slots_were_claimed_in(stream: str) -> None:
    publisher = PublisherRing(stream, Geometry.for_frames(6, 6, max_loans=3))
    for _ in range(6):
        publish(publisher)
    first, second, third = claim(publisher), claim(publisher), claim(publisher)
    assert first is not None
    assert second is not None
    assert third is not None
    for claimed in (second, third, first):
        commit(publisher, claimed)
    left = [publisher.segment.words[SEQ_WORDS[slot]] for slot in range(6)]
    taken = []
    for _ in range(6):
        following = claim(publisher)
        assert following is not None
        taken.append(left[following.slot])
        commit(publisher, following)
    assert taken == [4, 5, 6, 7, 8, 9]
    publisher.close(unlink=True)


@pytest.mark.parametrize("closes", [True, False])
def test_a_claim_that_nothing_references_unlocks_its_slot(publisher: PublisherRing, closes: bool) -> None:
    claimed = claim(publisher)
    assert claimed is not None
    held, slot = shm.attach(publisher.segment.name), claimed.slot
    if closes:
        publisher.close(unlink=True)
    assert not held.try_lock(LOCK_READ[slot])
    del claimed
    assert held.try_lock(LOCK_READ[slot])
    assert (publisher.writer.lost, publisher.writer.loans) == (1, 0)


def test_a_leased_slot_is_not_claimed_until_the_last_view_goes(stream: str, publisher: PublisherRing) -> None:
    subscriber = SubscriberRing(stream)
    publish(publisher)
    lease = subscriber.reader.take()
    assert lease is not None
    held = lease.slot
    view = np.asarray(lease)[1:].reshape(-1)
    del lease
    claimed = set()
    for _ in range(8):
        one = claim(publisher)
        assert one is not None
        claimed.add(one.slot)
        commit(publisher, one)
    assert held not in claimed
    assert subscriber.reader.leases == 1
    del view
    assert subscriber.reader.leases == 0
    claimed = {publish(publisher) and publisher.segment.words[TAIL_WORD] & 0xFF for _ in range(8)}
    assert held in claimed


def test_without_a_free_slot_claim_returns_none(stream: str, publisher: PublisherRing) -> None:
    subscribers = [SubscriberRing(stream) for _ in range(4)]
    leases = []
    for subscriber in subscribers:
        publish(publisher)
        leases.append(subscriber.reader.take())
        if len(leases) == 3:
            break
    assert publish(publisher) == 4
    assert claim(publisher) is None
    leases.pop()
    assert claim(publisher) is not None


def test_following_takes_all_in_order_and_newest_skips(stream: str, publisher: PublisherRing) -> None:
    every, newest = SubscriberRing(stream, every=True), SubscriberRing(stream)
    publish(publisher)
    first = every.reader.take()
    assert first is not None
    del first
    for _ in range(3):
        publish(publisher)
    sequences = []
    while (lease := every.reader.take()) is not None:
        sequences.append(lease.header.sequence)
        del lease
    assert sequences == [2, 3, 4]
    lease = newest.reader.take()
    assert lease is not None
    assert lease.header.sequence == 4


def test_a_slot_rewritten_between_look_and_lock_is_not_taken_for_the_old_frame(
    stream: str, publisher: PublisherRing
) -> None:
    publish(publisher)
    slot = publisher.segment.words[TAIL_WORD] & 0xFF
    subscriber = SubscriberRing(stream)
    publisher.segment.words[TAIL_WORD] = 99 << 8 | slot
    assert subscriber.reader.take() is None
    assert subscriber.reader.overruns == MAX_RETRIES
    assert not publisher.segment.is_locked(locks.write_lock((1 << 40) + 256 + slot))
    claimed = claim(publisher)
    assert claimed is not None
    publisher.segment.words[TAIL_WORD] = 100 << 8 | claimed.slot
    assert subscriber.reader.take() is None
    assert subscriber.reader.overruns == 2 * MAX_RETRIES
    claimed.abandon()
    assert not publisher.segment.is_locked(locks.write_lock((1 << 40) + 256 + claimed.slot))


def test_a_garbage_slot_header_is_counted_and_passed_over(stream: str, publisher: PublisherRing) -> None:
    publish(publisher)
    slot = publisher.segment.words[TAIL_WORD] & 0xFF
    start = publisher.geometry.slot_header(slot) + SLOT_FIELDS
    publisher.segment.buffer[start : start + 96] = b"\xff" * 96
    subscriber = SubscriberRing(stream)
    assert subscriber.reader.take() is None
    assert subscriber.reader.rejected == 1
    publish(publisher)
    lease = subscriber.reader.take()
    assert lease is not None
    assert lease.header.sequence == 2


@pytest.mark.parametrize("tail", [0xFFFFFFFFFFFFFFFF, (1 << 40) | 200, 0, 77])
def test_a_garbage_tail_yields_nothing(stream: str, publisher: PublisherRing, tail: int) -> None:
    publish(publisher)
    subscriber = SubscriberRing(stream)
    publisher.segment.words[TAIL_WORD] = tail
    assert subscriber.reader.take() is None


def test_the_next_publisher_adopts_ring_and_sequence(stream: str, publisher: PublisherRing) -> None:
    for _ in range(3):
        publish(publisher)
    subscriber = SubscriberRing(stream)
    lease = subscriber.reader.take()
    publisher.segment.close()  # as a kill does: nothing is marked, the locks are gone
    assert not subscriber.is_live()
    with pytest.raises(StreamNotFound, match="gone"):
        SubscriberRing(stream)
    adopter = PublisherRing(stream, publisher.geometry)
    assert adopter.adopted
    assert adopter.epoch != publisher.epoch
    assert subscriber.is_live()
    assert subscriber.segment.is_current()
    assert publish(adopter) == 4
    assert lease is not None
    after = subscriber.reader.take()
    assert after is not None
    assert (after.header.sequence, after.header.epoch) == (4, adopter.epoch)
    adopter.close(unlink=True)


def test_a_death_in_the_middle_of_the_pixels_leaves_an_unreadable_slot(stream: str, publisher: PublisherRing) -> None:
    publish(publisher)
    slot = claim(publisher)
    assert slot is not None
    publisher.segment.close()
    adopter = PublisherRing(stream, publisher.geometry)
    subscriber = SubscriberRing(stream)
    lease = subscriber.reader.take()
    assert lease is not None
    assert lease.header.sequence == 1
    assert subscriber.reader.take() is None
    assert publish(adopter) == 2
    adopter.close(unlink=True)


def test_a_death_between_the_slot_and_the_tail_wastes_no_sequence(stream: str, publisher: PublisherRing) -> None:
    publish(publisher)
    slot = claim(publisher)
    assert slot is not None
    tail = publisher.segment.words[TAIL_WORD]
    commit(publisher, slot)
    publisher.segment.words[TAIL_WORD] = tail
    publisher.segment.close()
    adopter = PublisherRing(stream, publisher.geometry)
    assert publish(adopter) == 3
    adopter.close(unlink=True)


def test_an_adopter_spares_the_newest_slot(stream: str, publisher: PublisherRing) -> None:
    for _ in range(6):
        publish(publisher)
    newest = publisher.segment.words[TAIL_WORD] & 0xFF
    publisher.segment.close()
    adopter = PublisherRing(stream, publisher.geometry)
    others = hold_all_but(adopter, newest)
    assert claim(adopter) is None
    others.close()
    adopter.close(unlink=True)


def test_another_geometry_takes_a_new_file_and_the_sequences_go_on(stream: str, publisher: PublisherRing) -> None:
    publish(publisher)
    old = SubscriberRing(stream)
    publisher.segment.close()
    larger = PublisherRing(stream, Geometry.for_frames(5, 10_000))
    assert not larger.adopted
    assert not old.segment.is_current()
    assert not old.is_open()
    assert publish(larger) == 2
    new = SubscriberRing(stream)
    assert new.header.first_sequence == 2
    larger.close(unlink=True)


def test_a_ring_whose_live_byte_is_pinned_is_replaced(stream: str, publisher: PublisherRing) -> None:
    publish(publisher)
    publisher.segment.close()
    neighbour = shm.attach(f"framebus.{stream}.ring")
    assert neighbour.try_lock(locks.read_lock(1 << 40))
    successor = PublisherRing(stream, publisher.geometry)
    assert not successor.adopted
    assert publish(successor) == 2
    successor.close(unlink=True)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"FRAMEBUS" + b"\xff" * 8192])
def test_garbage_in_the_place_of_the_ring_is_replaced(stream: str, content: bytes) -> None:
    (SHM / f"framebus.{stream}.ring").write_bytes(content)
    ring = PublisherRing(stream, Geometry.for_frames(3, 100))
    assert publish(ring) == 1
    ring.close(unlink=True)


def test_an_interrupted_creation_is_cleared_away(stream: str) -> None:
    (SHM / f"framebus.{stream}.ring.0123456789abcdef").write_bytes(b"half")
    ring = PublisherRing(stream, Geometry.for_frames(3, 100))
    ring.close(unlink=True)


def test_replace_moves_on_and_tells_the_subscribers(stream: str, publisher: PublisherRing) -> None:
    publish(publisher)
    old = SubscriberRing(stream)
    lease = old.reader.take()
    publisher.replace(stream)
    assert not old.is_open()
    assert not old.is_live()
    assert publish(publisher) == 2
    assert lease is not None
    assert np.asarray(lease).shape == (2, 3, 1)
    assert SubscriberRing(stream).reader.take() is not None


def test_a_file_without_a_frame_yet_continues_the_sequences(stream: str, publisher: PublisherRing) -> None:
    for _ in range(3):
        publish(publisher)
    publisher.replace(stream)
    publisher.segment.close()
    adopter = PublisherRing(stream, publisher.geometry)
    assert adopter.adopted
    assert publish(adopter) == 4
    adopter.close(unlink=True)


def test_an_adopter_finishes_the_tail_so_that_no_sequence_is_given_twice(stream: str, publisher: PublisherRing) -> None:
    publish(publisher)
    publish(publisher)
    tail = publisher.segment.words[TAIL_WORD]
    assert publish(publisher) == 3
    publisher.segment.words[TAIL_WORD] = tail  # as if it had died before it wrote the word
    publisher.segment.close()
    first = PublisherRing(stream, publisher.geometry)
    subscriber = SubscriberRing(stream)
    lease = subscriber.reader.take()
    assert lease is not None
    assert lease.header.sequence == 3
    others = hold_all_but(first, lease.slot)
    del lease
    assert claim(first) is None
    others.close()
    first.segment.close()
    second = PublisherRing(stream, publisher.geometry)
    assert publish(second) == 4
    second.close(unlink=True)


def test_a_lease_that_moves_on_during_a_claim_does_not_hide_the_free_slot(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "steps", steps)  # nothing can come between two locks of the compiled ones
    publisher = PublisherRing(stream, Geometry.for_frames(3, 6))
    subscriber = SubscriberRing(stream, every=True)
    publish(publisher)
    lease = subscriber.reader.take()
    publish(publisher)
    publish(publisher)
    lock_slot = claims.Writer._lock

    def interrupted(writer: claims.Writer, claim: Claim, slot: int, description: bytes) -> bool:
        nonlocal lease
        claimed = lock_slot(writer, claim, slot, description)
        if lease is not None and lease.header.sequence == 1:
            assert not claimed
            lease = None
            lease = subscriber.reader.take()
        return claimed

    with monkeypatch.context() as patch:
        patch.setattr(claims.Writer, "_lock", interrupted)
        assert claim(publisher) is not None
    assert lease is not None
    assert lease.header.sequence == 2
    publisher.close(unlink=True)
