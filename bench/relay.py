"""Measures what the relay costs, and how far it is from its floor: ``python -m bench.relay [--quick]``.

The relay is measured by frame size, encoding, policy and number of planted detectors, which answer at once. In turns
with it run the floor, a loop that takes the same frames from a ring, encodes and stores them and publishes the same
references, and, for frames that are not encoded, RabbitMQ and a Redis stream with the frames in their messages, and the
ring alone. The storage is a folder. Results are saved in .bench/relay/.

The throughput of the relay is measured with as many frames on their way as it writes at a time; with detectors, it is
that of their results. A latency is that of single frames: from the capture until a consumer has the reference, and
until a reader has the result. CPU time is that of the sending process, the relay or the loop, for each frame.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import random
import secrets
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.detect import panorama
from bench.harness import PeerFailed, Session
from bench.peers import Config, Peer, Pixels, all_peers
from bench.peers.places import temporary_folder
from bench.peers.rabbitmq_server import PEERS as RABBITMQ
from bench.relay_parts import ROOT, Child, bare, configured, detect, relay_configuration
from bench.relay_turns import POLICIES, SIZES_PX, Form, candidates
from bench.results import Ratio, machine
from bench.worker import Round
from services.common.broker import connect
from services.common.config import LogSection
from services.common.logs import set_up_logs
from services.simulator.config import SimulatorSection
from services.simulator.scene import scene

FOLDER: Final = ROOT / ".bench" / "relay"
QUICK: Final = Form(
    sizes=("1 MB",),
    encodings=("jpeg", "raw"),
    detectors=(0, 1),
    rounds=6,
    detector_rounds=2,
    frames={"1 MB": 10},
    paced=3,
)


async def measure(form: Form, console: Console) -> list[dict[str, Any]]:
    """Run all rounds of everything that is compared."""
    cells: list[dict[str, Any]] = []
    whole = picture()
    children: list[Child] = []
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        port = await asyncio.to_thread(
            stack.enter_context, RABBITMQ[0].prepare(Config(f"bench-{secrets.token_hex(4)}", (1, 1, 1), 0))
        )
        broker = f"amqp://127.0.0.1:{port}"
        # Start the children once: their imports must not be a part of any round.
        children += [Child(bare), *(Child(detect, f"bench{number}") for number in range(max(form.detectors)))]
        for child in children:
            stack.callback(child.close)
        for size in form.sizes:
            height, width = SIZES_PX[size]
            # The same picture in each size, so that only the size differs.
            pixels = np.ascontiguousarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            for encoding in form.encodings:
                console.print(f"{size}, {encoding}")
                cells += await _scenario(form, size, pixels, encoding, (broker, folder), children)
            console.print(f"{size}, other transports")
            cells += await asyncio.to_thread(_transports, form, size, pixels.shape)
    return cells


async def _scenario(  # noqa: PLR0917
    form: Form, size: str, pixels: Pixels, encoding: str, place: tuple[str, Path], children: Sequence[Child]
) -> list[dict[str, Any]]:
    (broker, folder), (loop_child, *detectors) = place, children
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
    async with connection, candidates(broker, folder, pixels, encoding, connection, loop_child.pid) as found:
        for number in range(form.rounds):
            # In another order each time, so that no candidate always follows the same other one.
            for (policy, count), cell in random.sample(list(cells.items()), len(cells)):
                if count and number >= form.detector_rounds:
                    continue
                candidate = found[cell["name"], policy]
                workers = [loop_child] if count is None else detectors[:count]
                for child in workers:
                    await asyncio.to_thread(child.ask, candidate.document)
                round_ = await candidate.turn(form, form.frames[size], count or 0)
                answers = [await asyncio.to_thread(child.ask, None) for child in workers]
                cell["rounds"].append(round_ if count is not None else {**round_, "stages_ms": answers[0]})
        for (policy, count), cell in cells.items():
            if count is not None:
                cell["counts"] = found["relay", policy].counts()
    return list(cells.values())


def _transports(form: Form, size: str, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Measure other ways to send frames that are not encoded: at full speed, then one each 40 ms."""
    cells: list[dict[str, Any]] = []
    peers: dict[str, Peer] = {name: peer for name, peer in all_peers().items() if name in form.transports}
    with ExitStack() as stack:
        sessions: list[tuple[dict[str, Any], Session]] = []
        for name, peer in peers.items():
            cell: dict[str, Any] = {
                "name": name,
                "size": size,
                "encoding": "raw",
                "policy": "",
                "detectors": 0,
                "rounds": [],
            }
            cells.append(cell)
            config = Config(f"bench-{secrets.token_hex(4)}", shape, 1, pinned=False)
            try:
                sessions.append((cell, Session(stack, peer, config)))
            except (PeerFailed, OSError, ImportError) as error:
                cell["failure"] = str(error)
        runs = itertools.count(1)
        for _ in range(form.rounds):
            for cell, session in sessions:
                with contextlib.suppress(PeerFailed):
                    fast = session.run_round(Round(next(runs), form.frames[size], 2, 0.0))
                    paced = session.run_round(Round(next(runs), 10, 2, 0.04))
                    latencies_ns = paced.received[0].latencies_ns
                    cell["rounds"].append(
                        {
                            "sent": form.frames[size],
                            "references": len(fast.received[0].latencies_ns),
                            # The sender's rate: if the receiver is slower, peers that keep the newest drop frames.
                            "fps": (form.frames[size] - 1) / max(fast.sent.seconds, 1e-6),
                            "cpu_ms": paced.sent.cpu_ns / paced.sent.frames / 1e6,
                            "reference_ms": statistics.median(latencies_ns) / 1e6 if latencies_ns else float("nan"),
                            "object_bytes": int(np.prod(shape)),
                        }
                    )
    return cells


def picture() -> Pixels:
    """Return the simulator's panorama."""
    section = SimulatorSection()
    pixels, _, _ = panorama(section, scene(section), 0, 0.5)
    return np.ascontiguousarray(pixels, np.uint8)


def median(cell: Mapping[str, Any], figure: str) -> float:
    """Return the median of a figure over the rounds; NaN if no round has it."""
    values = [round_[figure] for round_ in cell["rounds"] if round_.get(figure) is not None]
    return statistics.median(values) if values else float("nan")


def overhead(cell: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], figure: str) -> Ratio | None:
    """Return how many times a relay's figure is that of the bare loop, over their common rounds; None for others."""
    same = ("size", "encoding", "policy")
    floors = [one for one in cells if one["name"] == "bare" and all(one[key] == cell[key] for key in same)]
    if cell["name"] != "relay" or not floors:
        return None
    pairs = list(zip(cell["rounds"], floors[0]["rounds"], strict=False))
    ours, bare_loops = [one[figure] for one, _ in pairs], [one[figure] for _, one in pairs]
    # A higher rate is better, and a lower one of all other figures.
    return Ratio.of(bare_loops, ours) if figure == "fps" else Ratio.of(ours, bare_loops)


HEAD: Final = ("size", "encoding", "what", "detectors", "fps", "CPU-ms", "ref. ms", "result ms", "+CPU", "+time")


def rows(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the table."""
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
            _added(overhead(cell, cells, "cpu_ms")),
            # With detectors, the time includes theirs.
            _added(overhead(cell, cells, "fps") if cell["detectors"] == 0 else None),
        )
        for cell in cells
    ]


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)


def _added(ratio: Ratio | None) -> str:
    """Return what a ratio adds, in percent, with the 95 % interval if it has one."""
    if ratio is None:
        return ""
    mean, low, high = ((one - 1) * 100 for one in ratio)
    return f"{mean:+z.0f}%" if np.isnan(low) else f"{mean:+z.0f}% ({low:+z.0f} to {high:+z.0f})"


def main() -> None:
    """Measure, print a table, and save it."""
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 MB, JPEG and raw, in less than a minute")
    parser.add_argument("--output", type=Path, help="the file in which the results are saved as JSON")
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
