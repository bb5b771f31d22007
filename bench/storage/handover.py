"""Compares the ring with a shared volume, a broker and Redis: the benchmark of hand-overs, with fewer peers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from bench.harness import Candidate, Scenario, run_scenario, start_process
from bench.peers import all_peers
from bench.results import scenario_results
from bench.storage.figures import FigureTable
from bench.storage.form import Form

NAME: Final = "handover"
PEERS: Final = (
    "framebus-zmq", "framebus-futex", "tmpfs-file", "volume-file", "redis-pubsub", "redis-stream", "rabbitmq",
    "floor-futex",
)  # fmt: skip
FIGURES: Final = {
    "p50_us": "p50, us",
    "p99_us": "p99, us",
    "sender_cpu_us": "sender's CPU, us",
    "receiver_cpu_us": "receiver's CPU, us",
    "delivered": "delivered",
}


def measure(form: Form, place: Path) -> list[FigureTable]:
    """Return the table of hand-overs of 10 MB at 25 frames a second."""
    del place
    found = FigureTable(
        "Frames of 10 MB at 25 fps, one receiver",
        "framebus, zmq, the default",
        text="A named volume and a bind mount are the same folder of the host's disk to both sides.",
    )
    peers = {name: peer for name, peer in all_peers().items() if name in PEERS}
    for name in PEERS:
        if (missing := peers[name].missing()) is not None:
            found.row(peers[name].title).note = missing
            del peers[name]
        else:
            found.row(peers[name].title)
    scenario = Scenario(
        "storage, 25 fps", tuple(Candidate(name) for name in PEERS if name in peers), 25, form.hand_over_rounds,
        form.hand_over_frames, warm_up=3,
    )  # fmt: skip
    outcomes = run_scenario(scenario, peers, {"processes": start_process}, lambda line: print(line, file=sys.stderr))
    for one in scenario_results(scenario, outcomes, "")["candidates"].values():
        row = found.row(peers[one["peer"]].title)
        row.note = " ".join(str(one["failure"]).split())[-200:]
        for round_ in one["rounds"]:
            row.add({head: round_[key] for key, head in FIGURES.items() if key in round_})
    return [found]
