"""What the relay costs, and how far it is from its floor: ``python -m bench.relay [--quick]``.

By size of frames, encoding, policy and number of planted detectors, which answer at once. Beside it, in turns: the floor,
which encodes, puts and publishes in one loop; and, for the frames as they are, RabbitMQ and a Redis stream with the frames
in their messages, and the ring alone. The storage is a folder. Results are saved in .bench/relay/.

The relay's throughput is that with as many frames on their way as it writes at a time. A latency is that of frames that
come one at a time: from the capture until a consumer has the reference, and until a reader has the result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from rich.console import Console
from rich.table import Table

from bench.detect import panorama
from bench.harness import PeerFailed, Session
from bench.peers import Peer, Pixels, Setting, all_peers
from bench.peers.places import temporary_folder
from bench.peers.rabbitmq_server import PEERS as RABBITMQ
from bench.relay_parts import ROOT, Child, bare, configured, cpu_s, detect, relay_configuration, running_relay
from bench.results import machine
from bench.worker import Round
from framebus import FrameFormat, Publisher
from services.common.broker import Names, connect, open_channel
from services.common.config import LogSection
from services.common.logs import set_up_logs
from services.common.reference import FrameReference
from services.common.results import ResultReader
from services.common.status import read_statuses
from services.common.storage import ObjectDamaged, ObjectMissing, Storage
from services.simulator.config import SimulatorSection
from services.simulator.scene import scene

FOLDER: Final = ROOT / ".bench" / "relay"
SIZES_PX: Final = {"10 MB": (688, 4896), "1 MB": (216, 1536), "0.1 MB": (68, 480)}
"""Height and width of the panorama, as the simulator's cameras make it, and of smaller ones."""
POLICIES: Final = ("live", "work")
TRANSPORTS: Final = ("rabbitmq", "redis-stream", "framebus-futex")
SLOTS: Final = 16
ARRIVAL_TIMEOUT_S: Final = 60.0
WANTED_OVERHEAD: Final = 0.15


@dataclass(frozen=True)
class Form:
    """How much is measured."""

    sizes: Sequence[str] = tuple(SIZES_PX)
    encodings: Sequence[str] = ("jpeg", "lz4", "zstd", "raw")
    detectors: Sequence[int] = (0, 1, 2)
    rounds: int = 3
    frames: Mapping[str, int] = field(default_factory=lambda: {"10 MB": 10, "1 MB": 30, "0.1 MB": 50})
    paced: int = 6
    """Frames of a round that come one at a time."""
    window: int = 4
    """Frames that are on their way at a time."""
    transports: Sequence[str] = TRANSPORTS


QUICK: Final = Form(
    sizes=("1 MB",), encodings=("jpeg", "raw"), detectors=(0, 1), rounds=2, frames={"1 MB": 10}, paced=3
)


class Arrivals:
    """When references and results came, by sequence. Owned by one event loop."""

    def __init__(self) -> None:
        self.references: dict[int, FrameReference] = {}
        self.reference_ns: dict[int, int] = {}
        self.result_ns: dict[int, int] = {}
        self._changed = asyncio.Event()

    def refer(self, delivered: AbstractIncomingMessage) -> None:
        """A reference has come."""
        at_ns = time.monotonic_ns()
        reference = FrameReference.from_json(delivered.body)
        self.references[reference.sequence] = reference
        self.reference_ns[reference.sequence] = at_ns
        self._changed.set()

    def result(self, reference: Any, _detections: Any) -> None:
        """A result has come."""
        self.result_ns[reference.sequence] = time.monotonic_ns()
        self._changed.set()

    async def wait(self, seen: Mapping[int, int], sequences: Sequence[int], most_missing: int) -> None:
        """Wait until no more than so many of the sequences are missing.

        Raises:
            TimeoutError: They did not come.
        """
        async with asyncio.timeout(ARRIVAL_TIMEOUT_S):
            while sum(one not in seen for one in sequences) > most_missing:
                self._changed.clear()
                await self._changed.wait()


class Candidate:
    """A relay that runs, with a ring of its own and a consumer of its references."""

    def __init__(self, document: dict[str, Any], pid: int, publisher: Publisher, pixels: Pixels) -> None:
        self.document = document
        self.arrivals = Arrivals()
        self._pid, self._publisher, self._pixels = pid, publisher, pixels
        self._channel: AbstractChannel | None = None
        self._storage = Storage(relay_configuration(document).storage)
        self._names = Names(document["stream"]["name"])

    async def open(self, connection: AbstractConnection) -> asyncio.Task[None]:
        """Consume references and results; returns the task that reads results."""
        self._channel = await open_channel(connection)
        queue = await self._channel.declare_queue(exclusive=True)
        await queue.bind(self._names.frames)

        async def take(delivered: AbstractIncomingMessage) -> None:
            self.arrivals.refer(delivered)

        await queue.consume(take, no_ack=True)
        reader = ResultReader(self._names.stream, self._storage, self.arrivals.result)
        return asyncio.create_task(reader.read(connection))

    def publish(self) -> tuple[int, int]:
        """Publish a frame; its sequence, and when it was captured."""
        with self._publisher.loan() as loan:
            loan.pixels[:] = self._pixels
            loan.pixels[0, 0, 0] = len(self.arrivals.references) % 256
            captured_ns = time.monotonic_ns()
        assert loan.sequence is not None
        return loan.sequence, captured_ns

    async def turn(self, form: Form, frames: int, detectors: int) -> dict[str, Any]:
        """A round: frames in a row, then frames one at a time."""
        arrivals = self.arrivals
        seen = arrivals.result_ns if detectors else arrivals.reference_ns
        sent: list[int] = []
        for _ in range(2):  # they are not measured
            sent.append(self.publish()[0])
            await arrivals.wait(seen, sent, 0)
        begun_s, cpu_begun_s, before = time.perf_counter(), cpu_s(self._pid), len(sent)
        for _ in range(frames):
            sent.append(self.publish()[0])
            await arrivals.wait(seen, sent, form.window - 1)
        await arrivals.wait(seen, sent, 0)
        seconds, taken_s = time.perf_counter() - begun_s, cpu_s(self._pid) - cpu_begun_s
        captured_ns: dict[int, int] = {}
        for _ in range(form.paced):
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
        """Fetch and verify the objects that no detector has taken; then remove them, and their references."""
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
        await queue.purge()
        await self._storage.delete([self.arrivals.references[sequence].address for sequence in sent])
        return counts

    def counts(self) -> dict[str, int]:
        """What the relay has counted."""
        counts: dict[str, int] = read_statuses(self._names.stream)["relay"]["details"]["counts"]
        return counts


def _median_ms(at_ns: Mapping[int, int], captured_ns: Mapping[int, int]) -> float:
    return statistics.median((at_ns[one] - begun_ns) / 1e6 for one, begun_ns in captured_ns.items())


@asynccontextmanager
async def relays(
    broker: str, folder: Path, pixels: Pixels, encoding: str, connection: AbstractConnection
) -> AsyncIterator[dict[str, Candidate]]:
    """A relay of each policy."""
    async with AsyncExitStack() as stack:
        candidates = {}
        for policy in POLICIES:
            stream = f"bench-{secrets.token_hex(4)}"
            height, width = pixels.shape[:2]
            publisher = stack.enter_context(Publisher(stream, FrameFormat(height, width), slots=SLOTS))
            document = configured(stream, broker, folder, policy, encoding)
            pid = await asyncio.to_thread(stack.enter_context, running_relay(document, folder))
            candidates[policy] = Candidate(document, pid, publisher, pixels)
            reading = await candidates[policy].open(connection)
            stack.push_async_callback(_cancel, reading)
        yield candidates


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def measure(form: Form, console: Console) -> list[dict[str, Any]]:
    """All rounds of all that is compared."""
    cells: list[dict[str, Any]] = []
    whole = picture()
    children: list[Child] = []
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        port = await asyncio.to_thread(
            stack.enter_context, RABBITMQ[0].prepare(Setting(f"bench-{secrets.token_hex(4)}", (1, 1, 1), 0))
        )
        broker = f"amqp://127.0.0.1:{port}"
        for arguments in ((bare,), *((detect, f"bench{number}") for number in range(max(form.detectors)))):
            child = Child(*arguments)
            stack.callback(child.close)
            children.append(child)
        for size in form.sizes:
            height, width = SIZES_PX[size]
            pixels = np.ascontiguousarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            np.save(folder / "pixels.npy", pixels)
            for encoding in form.encodings:
                console.print(f"{size}, {encoding}")
                cells += await _scenario(form, size, pixels, encoding, broker, folder, children)
            console.print(f"{size}, other transports")
            cells += await asyncio.to_thread(_transports, form, size, pixels.shape)
    return cells


async def _scenario(
    form: Form, size: str, pixels: Pixels, encoding: str, broker: str, folder: Path, children: Sequence[Child]
) -> list[dict[str, Any]]:
    loop_child, *detectors = children
    common = {"size": size, "encoding": encoding}
    cells: dict[tuple[str, int | None], dict[str, Any]] = {
        (policy, number): {
            **common,
            "name": "bare" if number is None else "relay",
            "policy": policy,
            "detectors": number or 0,
            "rounds": [],
        }
        for policy in POLICIES
        for number in (None, *form.detectors)
    }
    connection = await connect(relay_configuration(configured("bench", broker, folder, "live", encoding)).broker)
    async with connection, relays(broker, folder, pixels, encoding, connection) as candidates:
        for number in range(form.rounds):
            for (policy, count), cell in sorted(cells.items(), key=str, reverse=bool(number % 2)):
                candidate = candidates[policy]
                if count is None:
                    command = (candidate.document, str(folder / "pixels.npy"), form.frames[size])
                    cell["rounds"].append(await asyncio.to_thread(loop_child.ask, command))
                    continue
                for child in detectors[:count]:
                    await asyncio.to_thread(child.ask, candidate.document)
                cell["rounds"].append(await candidate.turn(form, form.frames[size], count))
                for child in detectors[:count]:
                    await asyncio.to_thread(child.ask, None)
        for (policy, count), cell in cells.items():
            if count is not None:
                cell["counts"] = candidates[policy].counts()
    return list(cells.values())


def _transports(form: Form, size: str, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """The frames as they are, by other ways: flat out, then each 40 ms."""
    cells: list[dict[str, Any]] = []
    peers: dict[str, Peer] = {name: peer for name, peer in all_peers().items() if name in form.transports}
    with ExitStack() as stack:
        sessions: list[tuple[dict[str, Any], Session]] = []
        for name, peer in peers.items():
            cell = {"name": name, "size": size, "encoding": "raw", "policy": "", "detectors": 0, "rounds": []}
            cells.append(cell)
            setting = Setting(f"bench-{secrets.token_hex(4)}", shape, 1, pinned=False)
            try:
                sessions.append((cell, Session(stack, peer, setting)))
            except (PeerFailed, OSError, ImportError) as error:
                cell["failure"] = str(error)
        runs = itertools.count(1)
        for _ in range(form.rounds):
            for cell, session in sessions:
                with contextlib.suppress(PeerFailed):
                    fast = session.turn(Round(next(runs), form.frames[size], 2, 0.0))
                    paced = session.turn(Round(next(runs), 10, 2, 0.04))
                    latencies_ns = paced.received[0].latencies_ns
                    cell["rounds"].append(
                        {
                            "sent": form.frames[size],
                            "references": len(fast.received[0].latencies_ns),
                            # Of the sender: those that keep the newest frame drop others when the receiver is slower.
                            "fps": (form.frames[size] - 1) / max(fast.sent.seconds, 1e-6),
                            "cpu_ms": paced.sent.cpu_ns / paced.sent.frames / 1e6,
                            "reference_ms": statistics.median(latencies_ns) / 1e6 if latencies_ns else float("nan"),
                            "object_bytes": int(np.prod(shape)),
                        }
                    )
    return cells


def picture() -> Pixels:
    """The simulator's panorama."""
    section = SimulatorSection()
    pixels, _, _ = panorama(section, scene(section), 0, 0.5)
    return np.ascontiguousarray(pixels, np.uint8)


def median(cell: Mapping[str, Any], figure: str) -> float:
    """The median of the rounds of a figure; NaN without one."""
    values = [round_[figure] for round_ in cell["rounds"] if round_.get(figure) is not None]
    return statistics.median(values) if values else float("nan")


def overhead(cell: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], figure: str) -> float:
    """By which part a relay's figure is above that of the bare loop; NaN for other cells."""
    same = ("size", "encoding", "policy")
    floors = [one for one in cells if one["name"] == "bare" and all(one[key] == cell[key] for key in same)]
    if cell["name"] != "relay" or not floors:
        return float("nan")
    here, floor = median(cell, figure), median(floors[0], figure)
    return floor / here - 1 if figure == "fps" else here / floor - 1


HEAD: Final = ("size", "encoding", "what", "detectors", "fps", "CPU-ms", "ref. ms", "result ms", "+CPU", "+time")


def rows(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of the table."""
    return [
        (
            cell["size"],
            cell["encoding"],
            f"{cell['name']} {cell['policy']}".strip(),
            str(cell["detectors"]) if cell["name"] == "relay" else "",
            _number(median(cell, "fps"), ".0f"),
            _number(median(cell, "cpu_ms"), ".2f"),
            _number(median(cell, "reference_ms"), ".1f"),
            _number(median(cell, "result_ms"), ".1f"),
            _number(overhead(cell, cells, "cpu_ms"), "+.0%"),
            # With detectors the time is theirs too.
            _number(overhead(cell, cells, "fps") if cell["detectors"] == 0 else float("nan"), "+.0%"),
        )
        for cell in cells
    ]


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)


def main() -> None:
    """Measure, print a table, and save it."""
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 MB, JPEG and raw, in less than a minute")
    parser.add_argument("--output", type=Path, help="where the results are saved as JSON")
    options = parser.parse_args()
    set_up_logs("bench", LogSection(level="error"))
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    cv2.setNumThreads(1)
    console = Console(width=max(100, Console().width))
    if (missing := RABBITMQ[0].missing()) is not None:
        parser.exit(1, f"{missing}\n")
    begun_s, started = time.monotonic(), datetime.now(UTC)
    before = machine()
    cells = asyncio.run(measure(QUICK if options.quick else Form(), console))
    results = {
        "started": started.isoformat(timespec="seconds"),
        "seconds": time.monotonic() - begun_s,
        "machine": before,
        "cells": cells,
    }
    path = options.output or FOLDER / f"{started:%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1))
    table = Table(*HEAD)
    for row in rows(cells):
        table.add_row(*row)
    console.print(table)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
