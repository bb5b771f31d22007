"""``framebus-relay results``: prints the results of all detectors, one line of JSON each, without duplicates."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import threading
from pathlib import Path

from services.common.broker import keep_connected
from services.common.broker_names import Names
from services.common.config import LogSection, load
from services.common.detections import Detections, to_map
from services.common.logs import set_up_logs
from services.common.reference import ResultReference
from services.common.results import ResultReader
from services.common.storage import Storage
from services.relay.config import RelayConfiguration


def main(arguments: list[str]) -> int:
    """Print results until interrupted, or until ``--count`` results have been printed."""
    parser = argparse.ArgumentParser(prog="framebus-relay results", description=__doc__)
    parser.add_argument("--config", type=Path, help="the YAML file of all services; without it, the defaults apply")
    parser.add_argument(
        "--queue",
        metavar="NAME",
        help="keep results in a queue of this name while this command does not run; commands that name the same queue "
        "share its results",
    )
    parser.add_argument("--count", type=int, help="end after this many results")
    options = parser.parse_args(arguments)
    if options.count is not None and options.count < 1:
        parser.error("--count must be at least 1")
    configuration = load(RelayConfiguration, options.config)
    set_up_logs("relay", LogSection(level="warning"))  # to standard error, separate from the output
    stop = threading.Event()
    # In another thread: the main thread, which runs the handler, may hold the event's lock.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop.set).start())
    left = options.count

    async def deliver(_reference: ResultReference, detections: Detections) -> None:
        nonlocal left
        if stop.is_set():
            await asyncio.Event().wait()  # block until cancelled: unacknowledged messages stay in the queue
        try:
            print(json.dumps(to_map(detections)), flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # avoid an error when the interpreter flushes at exit
            stop.set()
        if left is not None:
            left -= 1
            if left <= 0:
                stop.set()

    stream = configuration.stream.name
    queue = f"{Names(stream).results}.{options.queue}" if options.queue else None
    reader = ResultReader(stream, Storage(configuration.storage), deliver, queue=queue)
    asyncio.run(keep_connected(configuration.broker, reader.read, stop))
    return 0
