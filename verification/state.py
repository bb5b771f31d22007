"""The state of a stream: its files, and the next step of each process. States that differ only in names are equal.

Sequences have no bound in the protocol, which only compares them and takes the next one. A state therefore keeps their
order, but not their size. Slots are sorted, because nothing depends on their numbers. This makes the number of states
finite, although frames, deaths and adoptions are unbounded, so an exhaustive search covers every run.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Final, NamedTuple

NONE: Final = -1
MINE: Final = 9
"""The content that the publisher is writing now. Other contents are numbered within their slot."""


class Slot(NamedTuple):
    """A slot: its words, contents and lock holders. Equal contents are from the same attempt to write a frame."""

    seq: int = 0
    header_seq: int = 0
    header: int = 0
    first: int = 0
    second: int = 0
    writer: int = 0
    """0 if free, 1 if locked by the publisher, 2 if locked by a dead publisher whose locks are not released yet."""
    readers: int = 0
    """A bit for each subscriber."""


GARBAGE: Final = Slot(0, 0, 0, 1, 2)


class Ring(NamedTuple):
    """A ring file."""

    slots: tuple[Slot, ...]
    seats: tuple[int, ...]
    """A bit for each subscriber that holds the seat."""
    base: int = 0
    """One less than the first sequence of the file."""
    tail_seq: int = 0
    tail_slot: int = NONE
    live: int = 0
    """0, 1 or 2, like ``writer`` of a slot."""
    flock: int = NONE


class Loan(NamedTuple):
    """A slot that the publisher has locked and set aside, to be published later."""

    slot: int
    done: int
    """Number of steps done of its publication."""
    seq: int = 0
    """The sequence assigned at the claim, in a mutant only."""


class Publisher(NamedTuple):
    """The process that holds the publisher's lock, or ``none``."""

    at: str = "none"
    ring: int = NONE
    old: int = NONE
    """The file that the publisher replaces by a new one."""
    slot: int = NONE
    """The slot that the publisher is writing now."""
    seq: int = 0
    """The sequence assigned to this slot at the claim, in a mutant only."""
    loans: tuple[Loan, ...] = ()
    """The other slots that it has claimed."""
    newest: int = NONE
    order: tuple[int, ...] = ()
    """All slots, from the oldest frame to the newest."""
    tries: int = 0
    """Number of slots tried in this claim, or of steps done of this publication."""
    top: int = 0
    """One less than the next sequence."""
    told: bool = False
    """Whether this publisher has published a frame."""
    joined: bool = False
    """Whether a subscriber took a seat during this claim."""

    def writes(self, ring: int, slot: int) -> bool:
        """Return whether the publisher has claimed the slot."""
        return ring == self.ring and (slot == self.slot or any(loan.slot == slot for loan in self.loans))


class Lease(NamedTuple):
    """A view on a frame, and the number of steps done of its end."""

    slot: int
    frame: int
    ended: int = 0


class Subscriber(NamedTuple):
    """A subscriber's process."""

    at: str = "out"
    ring: int = NONE
    last: int = -1
    slot: int = NONE
    seq: int = 0
    frame: int = NONE
    """The content to which the header belongs."""
    done: int = 0
    """Number of steps done of this lease."""
    woken: bool = False
    """Whether the event word has changed since it was read."""
    leases: tuple[Lease, ...] = ()


class State(NamedTuple):
    """The state of a stream."""

    rings: tuple[Ring, ...]
    publisher: Publisher
    subscribers: tuple[Subscriber, ...]
    path: int = NONE
    """The file that has the stream's name."""
    publisher_lock: int = 0
    """0, 1 or 2, like ``writer`` of a slot."""
    highest: int = 0
    """The highest sequence that was ever visible to a process."""
    files: int = 0
    """Files to which publishers moved. They are counted only if the search limits them."""
    deaths: int = 0
    """Publishers that died. They are counted only if the search limits them."""


# Steps that commute lead to the same state in several orders, close to each other: half of the calls are repeated.
@lru_cache(1 << 14)
def canonical(state: State) -> State:
    """Return the state that represents all states which differ only in the names of files, slots and frames."""
    return _forget_frames(_sort_slots(_forget_sizes(_forget_garbage(_drop_files(state)))))


def _drop_files(state: State) -> State:
    publisher = state.publisher
    # A file that no process uses and no path names cannot affect any later step.
    used = [state.path, publisher.ring, publisher.old, *(subscriber.ring for subscriber in state.subscribers)]
    kept = list(dict.fromkeys(ring for ring in used if ring >= 0))
    if kept == list(range(len(state.rings))):
        return state
    place = {ring: number for number, ring in enumerate(kept)} | {NONE: NONE}
    return state._replace(
        rings=tuple(state.rings[ring] for ring in kept),
        path=place[state.path],
        publisher=publisher._replace(ring=place[publisher.ring], old=place[publisher.old]),
        subscribers=tuple(subscriber._replace(ring=place[subscriber.ring]) for subscriber in state.subscribers),
    )


def _forget_garbage(state: State) -> State:
    """Drop contents that no process will read, to merge equivalent states.

    The contents of a slot with ``seq`` 0 that no process is using are written before they are read. A header's sequence
    matters only if a subscriber may expect it: that of the slot, that of the tail, or a future one.
    """
    publisher = state.publisher
    for number, ring in enumerate(state.rings):
        slots = ring.slots
        for place, slot in enumerate(slots):
            if (slot.seq == slot.header_seq and slot.seq) or slot[1:5] == GARBAGE[1:5]:
                continue
            wanted = [sub.seq for sub in state.subscribers if sub.ring == number and sub.slot == place]
            writing = publisher.writes(number, place)
            viewed = any(
                sub.ring == number and lease.slot == place for sub in state.subscribers for lease in sub.leases
            )
            if not (slot.seq or slot.readers or writing or wanted or viewed):
                plain = Slot(*GARBAGE[:5], slot.writer)
            elif (
                slot.header_seq <= state.highest
                and slot.header_seq not in wanted
                and not (place == ring.tail_slot and slot.header_seq == ring.tail_seq)
            ):
                plain = slot._replace(header_seq=0)
            else:
                continue
            slots = (*slots[:place], plain, *slots[place + 1 :])
        if slots is not ring.slots:
            rings = (*state.rings[:number], ring._replace(slots=slots), *state.rings[number + 1 :])
            state = state._replace(rings=rings)
    return state


def _forget_sizes(state: State) -> State:
    publisher = state.publisher
    values = {0, state.highest, publisher.top, publisher.seq, *(loan.seq for loan in publisher.loans)}
    for ring in state.rings:
        values.add(ring.base)
        values.add(ring.tail_seq)
        for slot in ring.slots:
            values.add(slot.seq)
            values.add(slot.header_seq)
    for subscriber in state.subscribers:
        values.add(subscriber.last)
        values.add(subscriber.seq)
    values.discard(-1)
    if max(values) == len(values) - 1:
        return state
    # Keep only the order of the values, because the protocol never compares their distance.
    rank = {value: number for number, value in enumerate(sorted(values))} | {-1: -1}
    return state._replace(
        rings=tuple(
            ring._replace(
                slots=tuple(slot._replace(seq=rank[slot.seq], header_seq=rank[slot.header_seq]) for slot in ring.slots),
                base=rank[ring.base],
                tail_seq=rank[ring.tail_seq],
            )
            for ring in state.rings
        ),
        publisher=publisher._replace(
            top=rank[publisher.top],
            seq=rank[publisher.seq],
            loans=tuple(loan._replace(seq=rank[loan.seq]) for loan in publisher.loans),
        ),
        subscribers=tuple(
            subscriber._replace(last=rank[subscriber.last], seq=rank[subscriber.seq])
            for subscriber in state.subscribers
        ),
        highest=rank[state.highest],
    )


def _sort_slots(state: State) -> State:
    for number, ring in enumerate(state.rings):
        publisher = state.publisher
        order = publisher.order if publisher.ring == number else ()
        # The order contains every slot, so the slots that the publisher holds need no mark of their own.
        present = [subscriber for subscriber in state.subscribers if subscriber.ring == number]
        marks = [
            (*slot, order.index(place) if order else 0, ring.tail_slot == place, _marks(present, place))
            for place, slot in enumerate(ring.slots)
        ]
        ranking = sorted(range(len(marks)), key=marks.__getitem__)
        if ranking == list(range(len(marks))):
            continue
        # Every reference to a slot must follow its new place.
        place_of = {old: new for new, old in enumerate(ranking)} | {NONE: NONE}
        sorted_ring = ring._replace(slots=tuple(ring.slots[old] for old in ranking), tail_slot=place_of[ring.tail_slot])
        if publisher.ring == number:
            publisher = publisher._replace(
                slot=place_of[publisher.slot],
                loans=tuple(sorted(loan._replace(slot=place_of[loan.slot]) for loan in publisher.loans)),
                newest=place_of[publisher.newest],
                order=tuple(place_of[place] for place in publisher.order),
            )
        state = state._replace(
            rings=(*state.rings[:number], sorted_ring, *state.rings[number + 1 :]),
            publisher=publisher,
            subscribers=tuple(
                subscriber
                if subscriber.ring != number
                else subscriber._replace(
                    slot=place_of[subscriber.slot],
                    leases=tuple(lease._replace(slot=place_of[lease.slot]) for lease in subscriber.leases),
                )
                for subscriber in state.subscribers
            ),
        )
    return state


def _marks(present: list[Subscriber], place: int) -> list[tuple[bool, int]]:
    return [
        (subscriber.slot == place, sum([lease.slot == place for lease in subscriber.leases])) for subscriber in present
    ]


def _forget_frames(state: State) -> State:
    publisher = state.publisher
    for number, ring in enumerate(state.rings):
        in_hand = _frames_in_hand(state, number)
        for place, slot in enumerate(ring.slots):
            frames = (*slot[2:5], *in_hand[place]) if place in in_hand else slot[2:5]
            names = _names(frames, publisher.writes(number, place))
            if names is not None:
                state = _renamed(state, number, place, names)
    return state


@cache
def _names(frames: tuple[int, ...], writing: bool) -> dict[int, int] | None:
    """Return new names of a slot's frames, in the order in which they occur; ``None`` if they have these names."""
    names: dict[int, int] = {MINE: MINE} if writing else {}
    for frame in frames:
        names.setdefault(frame, len(names))
    return names if any(name != frame for frame, name in names.items()) else None


def _frames_in_hand(state: State, ring: int) -> dict[int, list[int]]:
    """Return the frames that subscribers hold, by slot."""
    frames: dict[int, list[int]] = {}
    for subscriber in state.subscribers:
        if subscriber.ring == ring:
            for lease in subscriber.leases:
                frames.setdefault(lease.slot, []).append(lease.frame)
            if subscriber.slot >= 0 and subscriber.frame >= 0:
                frames.setdefault(subscriber.slot, []).append(subscriber.frame)
    return frames


def _renamed(state: State, number: int, place: int, names: dict[int, int]) -> State:
    ring = state.rings[number]
    slot = ring.slots[place]
    slot = slot._replace(header=names[slot.header], first=names[slot.first], second=names[slot.second])
    ring = ring._replace(slots=(*ring.slots[:place], slot, *ring.slots[place + 1 :]))
    subscribers = tuple(
        subscriber
        if subscriber.ring != number
        else subscriber._replace(
            frame=names.get(subscriber.frame, NONE) if subscriber.slot == place else subscriber.frame,
            leases=tuple(
                lease._replace(frame=names[lease.frame]) if lease.slot == place else lease
                for lease in subscriber.leases
            ),
        )
        for subscriber in state.subscribers
    )
    return state._replace(rings=(*state.rings[:number], ring, *state.rings[number + 1 :]), subscribers=subscribers)
