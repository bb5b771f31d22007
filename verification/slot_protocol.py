"""Model of the slot protocol with one shared access per step: publishers that die and adopt, subscribers, kernel locks.

The three tuples and the switches of :class:`Protocol` hold the order of the steps, as in ``framebus/ring/__init__.py``,
``framebus/ring/admission.py`` and ``framebus/bus/attachment.py``. A mutant is a protocol with a step moved or omitted,
or with a switch changed. Between two steps of one process, the other processes may take any steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from verification.state import GARBAGE, MINE, NONE, Lease, Loan, Publisher, Ring, Slot, State, Subscriber, canonical

Steps = Iterator[tuple[str, State]]

WHOLE = "a view shows the whole frame that was leased, as long as it lives"
GROWS = "no sequence is used twice, and sequences grow across deaths and files"
ROOM = "the publisher always finds a slot"
OLDEST = "the oldest frame whose slot is free goes first"
NEWEST = "a late subscriber finds the newest frame"
TOLD = "no subscriber sleeps while there is a new frame"
BROKEN = {"full": ROOM, "reused": GROWS, "newer": OLDEST}
"""States of a publisher that has violated a property."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """The order of the steps, and what a mutant may change."""

    publish: tuple[str, ...] = ("lock", "zero", "first", "second", "header", "seq", "unlock", "tail", "event")
    """P1 to P8, of which P3 is two: ``first`` and ``second`` are the halves of the pixels."""
    lease: tuple[str, ...] = ("lock", "check", "header")
    """R2 to R4: ``header`` reads it and compares its sequence."""
    release: tuple[str, ...] = ("unlock", "return")
    """R6: ``return`` decrements the subscriber's count of leases."""
    search: tuple[str, ...] = ("event", "tail")
    """The words that a subscriber reads before it sleeps, in order: the second is R1."""
    unlocks_after_check: bool = True
    spares_newest: bool = True
    spares_loans: bool = True
    """A claim skips the slots of the publisher's own loans, which its own locks do not exclude."""
    numbers_claims: bool = False
    """The sequence is assigned at the claim instead of the publication."""
    orders_all: bool = True
    """Every publication makes its slot the newest in the publisher's order, instead of the last one before a claim."""
    second_pass: bool = True
    """A claim that found every slot held tries them again, newest first."""
    adopts_newest: bool = True
    counts_seq: bool = True
    """An adopting publisher continues after the highest ``seq[i]`` instead of ``tail`` alone."""
    counts_tail: bool = True
    counts_base: bool = True
    """It also continues after the file's ``first_sequence``, if the file has no frame yet."""
    finishes_tail: bool = True
    """An adopting publisher writes the ``tail`` that its predecessor died before writing."""
    admission: bool = True
    """Seats are taken under the file's flock(2)."""
    reserved: int | None = None
    """Slots without a seat, in addition to the newest frame's; ``None`` for one per loan."""
    unlocks_when_dead: bool = True
    """The kernel releases the locks of dead processes; a lock in shared memory would stay locked."""
    searches_when_woken: bool = True
    """A subscriber that was woken searches for a frame before it sleeps again."""
    checks_path: bool = True
    """A subscriber checks on its tick whether the path names another file."""


@dataclass(frozen=True, slots=True)
class SlotProtocol:
    """A stream with bounded numbers of slots and processes, and unbounded numbers of frames, deaths and adoptions."""

    protocol: Protocol = Protocol()
    slots: int = 3
    subscribers: int = 1
    max_leases: int = 1
    max_loans: int = 1
    """Slots that the publisher may write at a time: it may claim or publish another one before it finishes one."""
    publisher_deaths: int | None = None
    """How many publishers may die; ``None`` for any number. The next publisher adopts the file each time."""
    subscriber_dies: bool = True
    new_files: int = 0
    """How often a publisher may move to a new file, because of another geometry or of slots that are held."""

    def initial(self) -> State:
        """Return the state without files and attached processes."""
        return State((), Publisher(), (Subscriber(),) * self.subscribers)

    def steps(self, state: State) -> Steps:
        """Yield every possible next step."""
        for name, after in self._publisher(state):
            # Equivalent states are merged here, which keeps the number of states finite.
            yield f"publisher: {name}", canonical(after)
        for reader in range(self.subscribers):
            for name, after in self._subscriber(state, reader):
                yield f"subscriber {reader}: {name}", canonical(after)
        for name, after in self._kernel(state):
            yield f"kernel: {name}", canonical(after)

    def broken(self, state: State) -> str | None:
        """Return the property that the state violates, if any."""
        publisher = state.publisher
        if publisher.at in BROKEN:
            return BROKEN[publisher.at]
        for ring in state.rings:
            # A late subscriber starts at the tail, so its slot must hold the frame that the tail names.
            if ring.tail_seq and ring.slots[ring.tail_slot].seq != ring.tail_seq:
                return NEWEST
        for subscriber in state.subscribers:
            if subscriber.ring < 0 or subscriber.at == "dying":
                continue
            ring = state.rings[subscriber.ring]
            for lease in subscriber.leases:
                slot = ring.slots[lease.slot]
                if not lease.ended and not slot.header == slot.first == slot.second == lease.frame:
                    return WHOLE
            if (
                subscriber.at == "sleep"
                and not subscriber.woken
                # While the publisher is still publishing, it may yet wake the subscriber.
                and publisher.at == "rest"
                and publisher.told
                and publisher.ring == subscriber.ring
                and ring.tail_seq > subscriber.last
            ):
                return TOLD
        return None

    def is_good(self, state: State) -> bool:
        """Return whether the publisher is at rest and a subscriber holds its newest frame."""
        publisher = state.publisher
        if publisher.at != "rest":
            return False
        newest = state.rings[publisher.ring].tail_slot
        return any(
            lease.slot == newest and not lease.ended
            for subscriber in state.subscribers
            if subscriber.ring == publisher.ring and subscriber.at != "dying"
            for lease in subscriber.leases
        )

    # The publisher: framebus/ring/publisher_ring.py, under the publisher's lock of framebus/bus/served_stream.py.

    def _publisher(self, state: State) -> Steps:
        publisher = state.publisher
        at = publisher.at
        if at == "none":
            if not state.publisher_lock:
                yield "acquires the publisher's lock", state._replace(publisher_lock=1, publisher=Publisher("open"))
            return
        if (self.publisher_deaths is None or state.deaths < self.publisher_deaths) and not self._is_dying(state):
            yield "dies", self._publisher_dead(state)
        if at == "open":
            yield from self._open(state)
        elif at == "adopt":
            yield "finishes tail", self._adopted(state)
        elif at == "rename":
            yield "renames its file over the path", self._renamed(state)
        elif at == "release":
            old = state.rings[publisher.old]._replace(live=0)
            yield (
                "unlocks LIVE of the old file",
                self._with_ring(state, publisher.old, old)._replace(publisher=publisher._replace(at="rest", old=NONE)),
            )
        elif at == "rest":
            yield from self._begin(state)
        elif at == "claim":
            yield self._claim(state)
        elif at == "publish":
            yield from self._publish(state)

    def _begin(self, state: State) -> Steps:
        """Yield what a publisher at rest may do."""
        publisher = state.publisher
        if len(publisher.loans) < self.max_loans:
            yield "wants a slot", state._replace(publisher=self._wanting(publisher))
        for loan in publisher.loans:
            yield "takes up a loan", state._replace(publisher=self._taken_up(publisher, loan))
        if state.files < self.new_files and not publisher.loans:
            after = state._replace(files=state.files + 1)
            yield "creates a new file", self._create(after, publisher.top, publisher.ring)

    def _open(self, state: State) -> Steps:
        if state.path < 0:
            yield "creates a file", self._create(state, 0, NONE)
            return
        protocol, ring = self.protocol, state.rings[state.path]
        top = max(
            ring.tail_seq if protocol.counts_tail else 0,
            max(slot.seq for slot in ring.slots) if protocol.counts_seq else 0,
            ring.base if protocol.counts_base else 0,
        )
        # The lock LIVE of a dead publisher may outlast the publisher's lock for a moment. No file is adopted before.
        if not ring.live:
            order = tuple(sorted(range(self.slots), key=lambda place: (ring.slots[place].seq, place)))
            adopter = Publisher("adopt", state.path, order=order, top=top)
            yield (
                "locks LIVE, adopts the file",
                self._with_ring(state, state.path, ring._replace(live=1))._replace(publisher=adopter),
            )
        if state.files < self.new_files:
            after = state._replace(files=state.files + 1)
            yield "creates a file of another geometry", self._create(after, top, NONE)

    def _adopted(self, state: State) -> State:
        protocol, publisher = self.protocol, state.publisher
        ring = state.rings[publisher.ring]
        last = publisher.order[-1]
        if protocol.finishes_tail and ring.slots[last].seq > ring.tail_seq:
            ring = ring._replace(tail_seq=ring.slots[last].seq, tail_slot=last)
        newest = ring.tail_slot if protocol.adopts_newest else NONE
        after = self._with_ring(state, publisher.ring, ring)
        return after._replace(publisher=publisher._replace(at="rest", newest=newest))

    def _create(self, state: State, top: int, old: int) -> State:
        reserved = self.max_loans if self.protocol.reserved is None else self.protocol.reserved
        seats = max(self.slots - 1 - reserved, 0)
        ring = Ring((GARBAGE,) * self.slots, (0,) * seats, base=top, live=1)
        number = len(state.rings)
        publisher = Publisher("rename", number, old, order=tuple(range(self.slots)), top=top)
        return state._replace(rings=(*state.rings, ring), publisher=publisher)

    def _renamed(self, state: State) -> State:
        publisher = state.publisher
        at = "rest" if publisher.old < 0 else "release"
        return state._replace(path=publisher.ring, publisher=publisher._replace(at=at))

    def _wanting(self, publisher: Publisher) -> Publisher:
        order = publisher.order
        if not self.protocol.orders_all and publisher.newest >= 0:
            order = self._moved_last(order, publisher.newest)
        return publisher._replace(at="claim", tries=0, joined=False, order=order)

    @staticmethod
    def _moved_last(order: tuple[int, ...], place: int) -> tuple[int, ...]:
        return (*(other for other in order if other != place), place)

    @staticmethod
    def _taken_up(publisher: Publisher, loan: Loan) -> Publisher:
        left = tuple(other for other in publisher.loans if other != loan)
        return publisher._replace(at="publish", slot=loan.slot, tries=loan.done, seq=loan.seq, loans=left)

    def _claim(self, state: State) -> tuple[str, State]:
        publisher = state.publisher
        order = publisher.order + (publisher.order[::-1] if self.protocol.second_pass else ())
        if publisher.tries == len(order):
            at = "rest" if publisher.joined else "full"
            return "finds no slot", state._replace(publisher=publisher._replace(at=at, tries=0, joined=False))
        ring = state.rings[publisher.ring]
        place = order[publisher.tries]
        slot = ring.slots[place]
        locks = self.protocol.publish[0] == "lock"
        spared = (place == publisher.newest and self.protocol.spares_newest) or (
            self.protocol.spares_loans and publisher.writes(publisher.ring, place)
        )
        # The publisher's own lock, 1, does not prevent this: the locks of one descriptor do not conflict.
        if spared or (locks and (slot.writer == 2 or slot.readers)):
            return "cannot lock a slot", state._replace(publisher=publisher._replace(tries=publisher.tries + 1))
        if self._is_newer(ring, publisher):
            return "takes a newer frame's slot", state._replace(publisher=publisher._replace(at="newer"))
        if locks:
            state = self._with_slot(state, publisher.ring, place, slot._replace(writer=1))
        claimed = publisher._replace(at="publish", slot=place, tries=int(locks), joined=False)
        if self.protocol.numbers_claims:
            claimed = claimed._replace(seq=publisher.top + 1, top=publisher.top + 1)
        return "write-locks a slot" if locks else "takes a slot", state._replace(publisher=claimed)

    def _is_newer(self, ring: Ring, publisher: Publisher) -> bool:
        """Return whether the first pass is about to take a slot with a newer frame than one that was not tried yet."""
        order, tries = publisher.order, publisher.tries
        return tries < len(order) and any(
            0 < ring.slots[other].seq < ring.slots[order[tries]].seq
            for other in order[tries + 1 :]
            if other != publisher.newest and not publisher.writes(publisher.ring, other)
        )

    def _publish(self, state: State) -> Steps:
        protocol, publisher = self.protocol, state.publisher
        number, place = publisher.ring, publisher.slot
        ring = state.rings[number]
        slot = ring.slots[place]
        step = protocol.publish[publisher.tries]
        after, next_publisher = state, publisher._replace(tries=publisher.tries + 1)
        sequence = publisher.seq or publisher.top + 1
        yield from self._leave_open(state)
        if step == "zero":
            after, name = self._with_slot(state, number, place, slot._replace(seq=0)), "seq = 0"
        elif step == "first":
            after, name = self._with_slot(state, number, place, slot._replace(first=MINE)), "writes the first half"
        elif step == "second":
            after, name = self._with_slot(state, number, place, slot._replace(second=MINE)), "writes the second half"
        elif step == "header":
            written = slot._replace(header=MINE, header_seq=sequence)
            after, name = self._with_slot(state, number, place, written), "writes the header"
        elif step == "seq":
            # A subscriber may have seen this sequence with another frame.
            if sequence <= state.highest:
                next_publisher = publisher._replace(at="reused")
            after = self._with_slot(state, number, place, slot._replace(seq=sequence))
            after, name = after._replace(highest=max(sequence, state.highest)), "seq = s"
        elif step == "unlock":
            after, name = self._with_slot(state, number, place, slot._replace(writer=0)), "unlocks"
        elif step == "tail":
            after = self._with_ring(state, number, ring._replace(tail_seq=sequence, tail_slot=place))
            name = "tail = s, slot"
        else:
            after, name = self._woken(state, number), "event += 1, wakes"
        if next_publisher.at == "publish" and next_publisher.tries == len(protocol.publish):
            order = self._moved_last(publisher.order, place) if protocol.orders_all else publisher.order
            top = max(sequence, publisher.top)
            next_publisher = self._rested(next_publisher)._replace(newest=place, order=order, top=top, told=True)
        yield name, after._replace(publisher=next_publisher)

    def _leave_open(self, state: State) -> Steps:
        """Yield the steps that set the loan aside or abandon it. Losing a loan has the same effect as abandoning it."""
        publisher, order = state.publisher, self.protocol.publish
        # With a single loan, setting it aside changes nothing: no other step of the publisher can come in between.
        if self.max_loans > 1 and order[publisher.tries] == "second":
            # No process sees the content of a locked slot, so half-written pixels represent every state.
            loans = tuple(sorted((*publisher.loans, Loan(publisher.slot, publisher.tries, publisher.seq))))
            yield "sets the loan aside", state._replace(publisher=self._rested(publisher)._replace(loans=loans))
        if self._may_abandon(order, publisher.tries):
            slot = state.rings[publisher.ring].slots[publisher.slot]
            unlocked = self._with_slot(state, publisher.ring, publisher.slot, slot._replace(writer=0))
            yield "abandons the slot", unlocked._replace(publisher=self._rested(publisher))

    @staticmethod
    def _may_abandon(order: tuple[str, ...], done: int) -> bool:
        """Return whether an exception may end the publication here: in the pixels, or due to the metadata."""
        return order[done] == "second" or (order[done] == "header" and "seq" not in order[:done])

    @staticmethod
    def _rested(publisher: Publisher) -> Publisher:
        return publisher._replace(at="rest", slot=NONE, tries=0, seq=0)

    @staticmethod
    def _woken(state: State, ring: int) -> State:
        return state._replace(
            subscribers=tuple(
                subscriber._replace(woken=True)
                if subscriber.ring == ring and subscriber.at in ("search", "lease", "drop", "sleep")
                else subscriber
                for subscriber in state.subscribers
            )
        )

    # Death: a dead process takes no further step, and the kernel releases its locks a little later, file by file.

    @staticmethod
    def _is_dying(state: State) -> bool:
        return state.publisher_lock == 2 or any(
            ring.live == 2 or any(slot.writer == 2 for slot in ring.slots) for ring in state.rings
        )

    def _publisher_dead(self, state: State) -> State:
        return state._replace(
            rings=tuple(
                ring._replace(
                    live=ring.live * 2,
                    slots=tuple(slot._replace(writer=slot.writer * 2) for slot in ring.slots),
                )
                for ring in state.rings
            ),
            publisher_lock=2,
            publisher=Publisher(),
            deaths=state.deaths + (self.publisher_deaths is not None),
        )

    def _kernel(self, state: State) -> Steps:
        held = any(ring.live == 2 for ring in state.rings)
        # If the publisher's lock were released before LIVE, the next publisher would create a new file.
        if state.publisher_lock == 2 and (self.new_files or not held):
            yield "releases the dead publisher's lock", state._replace(publisher_lock=0)
        for number, ring in enumerate(state.rings):
            if ring.live == 2 or any(slot.writer == 2 for slot in ring.slots):
                freed = tuple(
                    slot._replace(writer=0) if slot.writer == 2 and self.protocol.unlocks_when_dead else slot
                    for slot in ring.slots
                )
                if ring.live == 2 or freed != ring.slots:
                    after = self._with_ring(state, number, ring._replace(live=ring.live % 2, slots=freed))
                    yield "frees the dead publisher's ring", after
        for reader, subscriber in enumerate(state.subscribers):
            if subscriber.at == "dying":
                yield (
                    f"releases the locks of subscriber {reader}",
                    self._with_subscriber(self._left(state, reader), reader, Subscriber()),
                )

    # A subscriber: framebus/bus/subscriber.py, framebus/ring/admission.py, framebus/ring/subscriber_ring.py.

    def _subscriber(self, state: State, reader: int) -> Steps:
        subscriber = state.subscribers[reader]
        at = subscriber.at
        if at == "dying":
            return
        if self.subscriber_dies and subscriber.ring >= 0:
            dead = subscriber._replace(at="dying", slot=NONE, seq=0, frame=NONE, done=0, woken=False, last=-1)
            yield "dies", self._with_subscriber(state, reader, dead)
        yield from self._views(state, reader)
        if at == "out":
            if state.path >= 0 and state.rings[state.path].live:
                opened = subscriber._replace(at="flock", ring=state.path)
                yield "opens the file, whose publisher lives", self._with_subscriber(state, reader, opened)
        elif at in ("flock", "seat", "take", "leave"):
            yield from self._join(state, reader)
        else:
            yield from self._receive(state, reader)

    def _receive(self, state: State, reader: int) -> Steps:
        subscriber = state.subscribers[reader]
        at = subscriber.at
        if at == "rest":
            if self._leases(subscriber) < self.max_leases:
                first = self.protocol.search[0]
                if first == "event":
                    reading = subscriber._replace(at="search", woken=False)
                    yield "reads event", self._with_subscriber(state, reader, reading)
                else:
                    yield from self._search(state, reader)
        elif at == "search":
            yield from self._search(state, reader)
        elif at == "lease":
            yield self._lease(state, reader)
        elif at == "drop":
            unlocked = self._unlocked(state, reader, subscriber.slot)
            yield "unlocks: not that frame", self._retry(unlocked, reader)
        elif at == "late event":
            slept = subscriber._replace(at="sleep", woken=False)
            yield "reads event", self._with_subscriber(state, reader, slept)
        elif at == "sleep":
            if subscriber.woken:
                at = "rest" if self.protocol.searches_when_woken else "sleep"
                woken = subscriber._replace(at=at, woken=False)
                yield "wakes", self._with_subscriber(state, reader, woken)
            yield from self._tick(state, reader)

    def _leases(self, subscriber: Subscriber) -> int:
        counted = self.protocol.release.index("return")
        return sum(lease.ended <= counted for lease in subscriber.leases)

    def _views(self, state: State, reader: int) -> Steps:
        """Yield the ends of views, which may happen at any time and in any thread."""
        subscriber = state.subscribers[reader]
        for number, lease in enumerate(subscriber.leases):
            step = self.protocol.release[lease.ended]
            after = self._unlocked(state, reader, lease.slot) if step == "unlock" else state
            ended = lease.ended + 1
            left = () if ended == len(self.protocol.release) else (lease._replace(ended=ended),)
            leases = (*subscriber.leases[:number], *left, *subscriber.leases[number + 1 :])
            what = "the last view goes: unlocks" if step == "unlock" else "counts the lease as returned"
            yield what, self._with_subscriber(after, reader, subscriber._replace(leases=leases))

    def _join(self, state: State, reader: int) -> Steps:
        subscriber = state.subscribers[reader]
        ring = state.rings[subscriber.ring]
        if subscriber.at == "flock":
            if not self.protocol.admission or ring.flock == NONE:
                if self.protocol.admission:
                    state = self._with_ring(state, subscriber.ring, ring._replace(flock=reader))
                yield "takes the flock", self._with_subscriber(state, reader, subscriber._replace(at="seat"))
        elif subscriber.at == "seat":
            free = next((seat for seat, holders in enumerate(ring.seats) if not holders), NONE)
            if free < 0:
                out = subscriber._replace(at="out", ring=NONE)
                yield "finds no seat", self._with_subscriber(self._left(state, reader), reader, out)
            else:
                seated = subscriber._replace(at="take", seq=0, done=free)
                yield "sees a free seat", self._with_subscriber(state, reader, seated)
        elif subscriber.at == "take":
            seats = list(ring.seats)
            seats[subscriber.done] |= 1 << reader
            mine = sum(holders >> reader & 1 for holders in seats)
            seated = subscriber._replace(at="leave" if mine == self.max_leases else "seat", done=0)
            after = self._with_ring(state, subscriber.ring, ring._replace(seats=tuple(seats)))
            publisher = after.publisher
            # A new subscriber may lease a slot that the pass has already tried, so this claim may find none.
            if publisher.at == "claim" and publisher.ring == subscriber.ring:
                after = after._replace(publisher=publisher._replace(joined=True))
            yield "takes the seat", self._with_subscriber(after, reader, seated)
        else:
            flock = NONE if ring.flock == reader else ring.flock
            after = self._with_ring(state, subscriber.ring, ring._replace(flock=flock))
            if state.path == subscriber.ring:
                last = min(subscriber.last, ring.base)
                rested = subscriber._replace(at="rest", last=last)
                yield "releases the flock; the path names the file", self._with_subscriber(after, reader, rested)
            else:
                out = subscriber._replace(at="out", ring=NONE)
                yield "the path names another file", self._with_subscriber(self._left(after, reader), reader, out)

    def _search(self, state: State, reader: int) -> Steps:
        """Yield the frames that a subscriber may find: that of ``tail``, or any later one in ``seq``.

        The mode ``every`` takes the lowest of the later ones. Any of them is a superset of its behaviour.
        """
        subscriber = state.subscribers[reader]
        ring = state.rings[subscriber.ring]
        seen = {(ring.tail_seq, ring.tail_slot)}
        if subscriber.last >= 0:
            # Only the mode "every" reads these, and only after its first frame.
            seen |= {(slot.seq, place) for place, slot in enumerate(ring.slots)}
        later = [(seq, place) for seq, place in seen if seq > max(subscriber.last, 0)]
        for seq, place in later:
            found = subscriber._replace(at="lease", slot=place, seq=seq, done=0, frame=NONE)
            yield "sees a frame", self._with_subscriber(state, reader, found)
        if not later:
            at = "sleep" if self.protocol.search[0] == "event" else "late event"
            yield "sees nothing new", self._with_subscriber(state, reader, subscriber._replace(at=at))

    def _lease(self, state: State, reader: int) -> tuple[str, State]:
        protocol, subscriber = self.protocol, state.subscribers[reader]
        slot = state.rings[subscriber.ring].slots[subscriber.slot]
        step = protocol.lease[subscriber.done]
        after, going = state, subscriber._replace(done=subscriber.done + 1)
        if step == "lock":
            name = "read-locks the slot"
            if slot.writer:
                return "cannot lock the slot", self._retry(state, reader)
            locked = slot._replace(readers=slot.readers | 1 << reader)
            after = self._with_slot(state, subscriber.ring, subscriber.slot, locked)
        elif step == "check":
            name = "seq is what it came for"
            if slot.seq != subscriber.seq:
                return "seq has changed", self._passed_over(state, reader)
        elif step == "header":
            name = "the header is that frame's"
            if slot.header_seq != subscriber.seq:
                # The frame counts as seen, because a subscriber that retried it would never get past it.
                rejected = self._with_subscriber(state, reader, subscriber._replace(last=subscriber.seq))
                return "the header is another frame's", self._passed_over(rejected, reader)
            going = going._replace(frame=slot.header)
        else:  # a step of a mutant, which unlocks while the view lives
            name = "unlocks"
            after = self._unlocked(state, reader, subscriber.slot)
        if going.done == len(protocol.lease):
            # Without the step "header", the mutant reads the header too, but does not compare its sequence.
            frame = going.frame if "header" in protocol.lease else slot.header
            leases = (*subscriber.leases, Lease(subscriber.slot, frame))
            going = subscriber._replace(
                at="rest", leases=leases, last=subscriber.seq, slot=NONE, seq=0, frame=NONE, done=0, woken=False
            )
            name += ": has a view"
        return name, self._with_subscriber(after, reader, going)

    def _passed_over(self, state: State, reader: int) -> State:
        subscriber = state.subscribers[reader]
        holds = state.rings[subscriber.ring].slots[subscriber.slot].readers >> reader & 1
        if holds and self.protocol.unlocks_after_check:
            return self._with_subscriber(state, reader, subscriber._replace(at="drop", done=0, frame=NONE))
        return self._retry(state, reader)

    def _retry(self, state: State, reader: int) -> State:
        """Search again, any number of times. The real subscriber sleeps for a tick after eight attempts."""
        searching = state.subscribers[reader]._replace(at="search", slot=NONE, seq=0, frame=NONE, done=0)
        return self._with_subscriber(state, reader, searching)

    def _tick(self, state: State, reader: int) -> Steps:
        subscriber = state.subscribers[reader]
        if subscriber.ring == state.path or not self.protocol.checks_path:
            if subscriber.ring == state.path:
                rested = subscriber._replace(at="rest", woken=False)
                yield "wakes up by itself", self._with_subscriber(state, reader, rested)
        elif not subscriber.leases:
            out = subscriber._replace(at="out", ring=NONE, woken=False)
            yield "sees another file at the path", self._with_subscriber(self._left(state, reader), reader, out)

    def _left(self, state: State, reader: int) -> State:
        """Return the state after the kernel has released the locks of a subscriber's descriptor."""
        number = state.subscribers[reader].ring
        ring = state.rings[number]
        freed = ring._replace(
            slots=tuple(slot._replace(readers=slot.readers & ~(1 << reader)) for slot in ring.slots),
            seats=tuple(holders & ~(1 << reader) for holders in ring.seats),
            flock=NONE if ring.flock == reader else ring.flock,
        )
        return self._with_ring(state, number, freed)

    def _unlocked(self, state: State, reader: int, place: int) -> State:
        number = state.subscribers[reader].ring
        slot = state.rings[number].slots[place]
        return self._with_slot(state, number, place, slot._replace(readers=slot.readers & ~(1 << reader)))

    @staticmethod
    def _with_slot(state: State, number: int, place: int, slot: Slot) -> State:
        ring = state.rings[number]
        slots = (*ring.slots[:place], slot, *ring.slots[place + 1 :])
        return state._replace(rings=(*state.rings[:number], ring._replace(slots=slots), *state.rings[number + 1 :]))

    @staticmethod
    def _with_ring(state: State, number: int, ring: Ring) -> State:
        return state._replace(rings=(*state.rings[:number], ring, *state.rings[number + 1 :]))

    @staticmethod
    def _with_subscriber(state: State, reader: int, subscriber: Subscriber) -> State:
        subscribers = (*state.subscribers[:reader], subscriber, *state.subscribers[reader + 1 :])
        return state._replace(subscribers=subscribers)
