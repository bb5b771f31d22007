"""The candidates of the relay's benchmark, relays and the bare loop, each with a ring and a consumer of references."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from bench.peers import Pixels
from bench.peers.places import wait_until
from bench.relay_parts import configured, cpu_s, relay_configuration, running_relay
from framebus import FrameFormat, Publisher
from services.common.broker_messages import open_channel
from services.common.broker_names import Names
from services.common.reference import FrameReference
from services.common.results import ResultReader
from services.common.status import read_statuses
from services.common.storage import ObjectDamaged, ObjectMissing, Storage

SIZES_PX: Final = {"10 MB": (688, 4896), "1 MB": (216, 1536), "0.1 MB": (68, 480)}
"""Height and width of the panorama of the simulator's cameras, and of smaller ones."""
POLICIES: Final = ("live", "work")
TRANSPORTS: Final = ("rabbitmq", "redis-stream", "framebus-futex")
SLOTS: Final = 16
ARRIVAL_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Form:
    """The extent of a run."""

    sizes: Sequence[str] = tuple(SIZES_PX)
    encodings: Sequence[str] = ("jpeg", "lz4", "zstd", "raw")
    detectors: Sequence[int] = (0, 1, 2)
    rounds: int = 8
    """Rounds of the bare loop, of the relay without detectors, and of the other transports."""
    detector_rounds: int = 3
    """Those of them in which the relay has detectors too."""
    frames: Mapping[str, int] = field(default_factory=lambda: {"10 MB": 10, "1 MB": 30, "0.1 MB": 50})
    paced: int = 6
    """Frames of a round that are sent one at a time."""
    window: int = 4
    """Frames that are on their way at a time."""
    transports: Sequence[str] = TRANSPORTS


class Arrivals:
    """When references and results arrived, by sequence. Used in one event loop only."""

    def __init__(self) -> None:
        self.references: dict[int, FrameReference] = {}
        self.reference_ns: dict[int, int] = {}
        self.result_ns: dict[int, int] = {}
        self._changed = asyncio.Event()

    def refer(self, delivered: AbstractIncomingMessage) -> None:
        """Record a reference."""
        at_ns = time.monotonic_ns()
        reference = FrameReference.from_json(delivered.body)
        self.references[reference.sequence] = reference
        self.reference_ns[reference.sequence] = at_ns
        self._changed.set()

    def result(self, reference: Any, _detections: Any) -> None:
        """Record a result."""
        self.result_ns[reference.sequence] = time.monotonic_ns()
        self._changed.set()

    async def wait(self, seen: Mapping[int, int], sequences: Sequence[int], most_missing: int) -> None:
        """Wait until at most ``most_missing`` of the sequences are missing.

        Raises:
            TimeoutError: More are still missing after :data:`ARRIVAL_TIMEOUT_S`.
        """
        async with asyncio.timeout(ARRIVAL_TIMEOUT_S):
            while sum(one not in seen for one in sequences) > most_missing:
                self._changed.clear()
                await self._changed.wait()


class Candidate:
    """A process that publishes the frames of a ring of its own, and a consumer of its references.

    Args:
        document: Its configuration.
        pid: Its PID.
        publisher: Publishes the frames.
        pixels: Content of the frames.
        is_relay: Whether it is a relay; the bare loop has no results.
    """

    def __init__(
        self, document: dict[str, Any], pid: int, publisher: Publisher, pixels: Pixels, *, is_relay: bool
    ) -> None:
        self.document = document
        self.arrivals = Arrivals()
        self._pid, self._publisher, self._pixels, self._is_relay = pid, publisher, pixels, is_relay
        self._channel: AbstractChannel | None = None
        self._storage = Storage(relay_configuration(document).storage)
        self._names = Names(document["stream"]["name"])

    async def open(self, connection: AbstractConnection) -> asyncio.Task[None] | None:
        """Consume references and results; return the task that reads results."""
        self._channel = await open_channel(connection)
        queue = await self._channel.declare_queue(exclusive=True)
        await queue.bind(await self._channel.declare_exchange(self._names.frames, "fanout", durable=True))

        async def take(delivered: AbstractIncomingMessage) -> None:
            self.arrivals.refer(delivered)

        await queue.consume(take, no_ack=True)
        if not self._is_relay:
            return None
        reader = ResultReader(self._names.stream, self._storage, self.arrivals.result)
        return asyncio.create_task(reader.read(connection))

    def publish(self) -> tuple[int, int]:
        """Publish a frame; return its sequence and its capture time."""
        with self._publisher.loan() as loan:
            loan.pixels[:] = self._pixels
            # Change a pixel, so that no two frames are equal.
            loan.pixels[0, 0, 0] = len(self.arrivals.references) % 256
            captured_ns = time.monotonic_ns()
        assert loan.sequence is not None
        return loan.sequence, captured_ns

    async def turn(self, form: Form, frames: int, detectors: int) -> dict[str, Any]:
        """Run a round: frames at full speed, then frames one at a time."""
        arrivals = self.arrivals
        seen = arrivals.result_ns if detectors else arrivals.reference_ns
        sent: list[int] = []
        for _ in range(2):  # these are not measured
            sent.append(self.publish()[0])
            await arrivals.wait(seen, sent, 0)
        begun_s, cpu_begun_s, before = time.perf_counter(), cpu_s(self._pid), len(sent)
        for _ in range(frames):
            sent.append(self.publish()[0])
            # Keep as many frames on their way as the relay writes at a time.
            await arrivals.wait(seen, sent, form.window - 1)
        await arrivals.wait(seen, sent, 0)
        seconds, taken_s = time.perf_counter() - begun_s, cpu_s(self._pid) - cpu_begun_s
        captured_ns: dict[int, int] = {}
        for _ in range(form.paced):
            # A pause, so that each frame finds an idle relay.
            await asyncio.sleep(0.02)
            sequence, captured_ns[sequence] = self.publish()
            sent.append(sequence)
            await arrivals.wait(seen, sent, 0)
        round_ = {
            "sent": len(sent),
            "references": sum(one in arrivals.references for one in sent),
            "results": sum(one in arrivals.result_ns for one in sent),
            "fps": (len(sent) - form.paced - before) / seconds,
            "cpu_ms": taken_s / frames * 1e3,
            "reference_ms": _median_ms(arrivals.reference_ns, captured_ns),
            "object_bytes": arrivals.references[sent[-1]].size_bytes,
        }
        if detectors:
            return {**round_, "result_ms": _median_ms(arrivals.result_ns, captured_ns)}
        return {**round_, **await self._verify(sent)}

    async def _verify(self, sent: Sequence[int]) -> dict[str, int]:
        """Fetch and verify the objects that no detector has consumed; then remove them and their references."""
        counts = {"verified": 0, "damaged": 0, "removed": 0}
        for sequence in sent:
            reference = self.arrivals.references[sequence]
            try:
                await self._storage.fetch(reference)
                counts["verified"] += 1
            except ObjectMissing:
                counts["removed"] += 1
            except ObjectDamaged:
                counts["damaged"] += 1
        assert self._channel is not None
        queue = await self._channel.get_queue(self._names.group("detector"))
        # Without a detector, references would stay in the queue and count in the next round.
        await queue.purge()
        await self._storage.delete([self.arrivals.references[sequence].address for sequence in sent])
        return counts

    def counts(self) -> dict[str, int]:
        """Return the relay's counters, once it has recorded all frames that it has published.

        Raises:
            TimeoutError: It has not published all that it has accepted.
        """

        def read() -> dict[str, int]:
            counts: dict[str, int] = read_statuses(self._names.stream)["relay"]["details"]["counts"]
            return counts

        # It records them together, some time after their confirmation.
        wait_until(lambda: read()["accepted"] == read()["published"], "the relay's ledger")
        return read()


def _median_ms(at_ns: Mapping[int, int], captured_ns: Mapping[int, int]) -> float:
    return statistics.median((at_ns[one] - begun_ns) / 1e6 for one, begun_ns in captured_ns.items())


@asynccontextmanager
async def candidates(  # noqa: PLR0917
    broker: str, folder: Path, pixels: Pixels, encoding: str, connection: AbstractConnection, bare_pid: int
) -> AsyncIterator[dict[tuple[str, str], Candidate]]:
    """Run a relay for each policy. Yields the relays, and the bare loop that runs already, by name and policy."""
    found: dict[tuple[str, str], Candidate] = {}
    height, width = pixels.shape[:2]
    async with AsyncExitStack() as stack:
        for name, policy in itertools.product(("bare", "relay"), POLICIES):
            stream = f"bench-{secrets.token_hex(4)}"
            publisher = stack.enter_context(Publisher(stream, FrameFormat(height, width), slots=SLOTS))
            document = configured(stream, broker, folder, policy, encoding)
            is_relay = name == "relay"
            pid = bare_pid
            if is_relay:
                pid = await asyncio.to_thread(stack.enter_context, running_relay(document, folder))
            candidate = Candidate(document, pid, publisher, pixels, is_relay=is_relay)
            if (reading := await candidate.open(connection)) is not None:
                stack.push_async_callback(_cancel, reading)
            found[name, policy] = candidate
        yield found


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
