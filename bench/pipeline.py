"""Measures the whole pipeline on five simulated cameras: a picture's age at each stage, and the CPU of each service.

A subscriber in this process and a viewer of the page in another receive the output; the viewer decodes nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from bench.harness import PeerFailed
from bench.peers.places import free_ports, server, temporary_folder, wait_until
from bench.results import now
from framebus import FramebusError, Subscriber
from services.streamer.messages import split_frame_message

ROOT: Final = Path(__file__).resolve().parent.parent
CAMERAS: Final = 5
START_TIMEOUT_S: Final = 300.0
"""So long because the cameras' clips may have to be rendered first."""
WARM_UP_S: Final = 5.0
FRAME_TIMEOUT_S: Final = 5.0
HAND_OVER: Final = "published to a subscriber's array"
AT_THE_PAGE: Final = "captured to the picture at the page"


@dataclass(frozen=True)
class Panorama:
    """A frame of the stream as a subscriber received it; times are CLOCK_MONOTONIC."""

    sequence: int
    skipped: int
    captured_ns: int
    published_ns: int
    received_ns: int


@dataclass
class Watched:
    """What the page received."""

    pictures: dict[int, int] = field(default_factory=dict)
    """When each picture arrived, CLOCK_MONOTONIC in ns, by the sequence of its panorama."""
    boxes: dict[int, float] = field(default_factory=dict)
    """The age of a panorama in ms when its boxes were sent, by its sequence."""


async def _watch(url: str, seconds: float) -> Watched:
    import aiohttp

    watched = Watched()
    end_s = time.monotonic() + seconds
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws") as page:
        async for message in page:
            now_ns = time.monotonic_ns()
            if now_ns / 1e9 > end_s:
                break
            if message.type is aiohttp.WSMsgType.BINARY:
                head, _ = split_frame_message(message.data)
                watched.pictures[head["sequence"]] = now_ns
                # The page acknowledges each picture, as the browser does, so that the streamer sends the next one.
                await page.send_json({"ack": head["sequence"]})
            elif message.type is aiohttp.WSMsgType.TEXT:
                told = json.loads(message.data)
                if told["type"] == "detections":
                    watched.boxes[told["sequence"]] = told["age_ms"]
    return watched


def _view(connection: Connection[Any, Any], url: str, seconds: float) -> None:
    connection.send(asyncio.run(_watch(url, seconds)))


def simulated(stream: str, first_port: int) -> dict[str, str]:
    """Return an environment with simulated cameras for the services, on :data:`CAMERAS` ports from ``first_port``."""
    cameras = [{"name": f"cam{i}", "url": f"http://127.0.0.1:{first_port + i}/cam{i}.ts"} for i in range(CAMERAS)]
    return {
        "FRAMEBUS_STREAM__NAME": stream,
        "FRAMEBUS_SIMULATOR__FIRST_PORT": str(first_port),
        "FRAMEBUS_STITCHER__CAMERAS": json.dumps(cameras),
    }


@contextmanager
def _services(stream: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run the services on their own stream and ports. Yields the page's URL and the supervisor if the page is live."""
    first = free_ports(CAMERAS + 1)
    url = f"http://127.0.0.1:{first + CAMERAS}"
    environment = {
        **simulated(stream, first),
        "FRAMEBUS_SIMULATOR__CACHE_DIR": str(ROOT / ".cache/simulator"),
        "FRAMEBUS_STREAMER__PORT": str(first + CAMERAS),
        "FRAMEBUS_LOG__LEVEL": "warning",
        "FRAMEBUS_LOG__FORMAT": "text",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    arguments = [sys.executable, "-m", "services.supervisor", "--config", str(ROOT / "config/framebus.yaml")]
    with temporary_folder() as folder, server(arguments, folder / "log", environment) as pid:
        supervisor = psutil.Process(pid)

        def is_live() -> bool:
            if supervisor.status() == psutil.STATUS_ZOMBIE:
                raise TimeoutError("the services have ended")
            try:
                with urllib.request.urlopen(f"{url}/healthz", timeout=1.0) as answer:
                    return int(answer.status) == 200
            except (urllib.error.URLError, OSError):
                return False

        wait_until(is_live, "the page's first picture", START_TIMEOUT_S)
        yield url, supervisor


def _follow(stream: str, seconds: float) -> list[Panorama]:
    seen = []
    with Subscriber(stream, name="bench", wake="futex") as subscriber:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            with subscriber.receive(FRAME_TIMEOUT_S) as frame:
                frame.pixels  # noqa: B018  the time ends when the array exists
                now_ns = time.monotonic_ns()
                seen.append(Panorama(frame.sequence, frame.skipped, frame.captured_ns, frame.published_ns, now_ns))
    return seen


def _cpu_s(supervisor: psutil.Process) -> dict[str, float]:
    """Return the CPU time of each service, including the processes that it has started."""
    taken = {}
    for service in supervisor.children():
        times = [one.cpu_times() for one in (service, *service.children(recursive=True))]
        # The fourth word of the command line is the name of the service.
        taken[service.cmdline()[3]] = sum(time_.user + time_.system for time_ in times)
    return taken


def measure(stream: str, seconds: float) -> dict[str, Any]:
    """Run the pipeline, and measure it for a time.

    Args:
        stream: A name that no other stream has.
        seconds: How long to measure.

    Returns:
        The time of the start, and the result of :func:`summary`, in JSON's types.

    Raises:
        PeerFailed: The pipeline did not start, or the page showed nothing.
    """
    started = now()
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    try:
        with _services(stream) as (url, supervisor):
            # The viewer has a process of its own, because its work would delay the subscriber in this one.
            viewer = context.Process(target=_view, args=(theirs, url, WARM_UP_S + seconds), daemon=True)
            viewer.start()
            theirs.close()
            # The services are measured only once they run steadily.
            time.sleep(WARM_UP_S)
            before, begun_s = _cpu_s(supervisor), time.monotonic()
            panoramas = _follow(stream, seconds)
            after, ended_s = _cpu_s(supervisor), time.monotonic()
            watched = ours.recv()
            viewer.join()
    except EOFError:
        raise PeerFailed("the viewer of the page died") from None
    except (OSError, FramebusError, psutil.Error) as error:
        raise PeerFailed(str(error)) from None
    cores = {name: (after[name] - before.get(name, 0.0)) / (ended_s - begun_s) for name in after}
    return {"started": started, **summary(panoramas, watched, cores)}


def summary(panoramas: Sequence[Panorama], watched: Watched, cores: dict[str, float]) -> dict[str, Any]:
    """Return rates, ages and costs.

    Args:
        panoramas: What the subscriber received, in order.
        watched: What the page received.
        cores: How many cores each service used.

    Raises:
        PeerFailed: The subscriber or the page received next to nothing.
    """
    if len(panoramas) < 2:
        raise PeerFailed("the stitcher published next to nothing")
    seconds = (panoramas[-1].received_ns - panoramas[0].received_ns) / 1e9
    captured = {one.sequence for one in panoramas}
    # The medians of the stages are compared, so take all of them from the same frames.
    shown = [one for one in panoramas if one.sequence in watched.pictures]
    pictures_ms = [(watched.pictures[one.sequence] - one.captured_ns) / 1e6 for one in shown]
    boxes_ms = [age for number, age in watched.boxes.items() if number in captured]
    if not pictures_ms:
        raise PeerFailed("no picture came to the page")
    stages = {
        "captured to published": [(one.published_ns - one.captured_ns) / 1e6 for one in shown],
        HAND_OVER: [(one.received_ns - one.published_ns) / 1e6 for one in shown],
        AT_THE_PAGE: pictures_ms,
        "captured to its boxes sent": boxes_ms,
    }
    stages_ms = {name: np.percentile(ages, (50, 99)).tolist() for name, ages in stages.items() if ages}
    return {
        "seconds": seconds,
        "panoramas_per_s": (len(panoramas) - 1) / seconds,
        # The first frame counts what was published before the subscriber attached.
        "skipped": sum(one.skipped for one in panoramas[1:]),
        "pictures_per_s": len(pictures_ms) / seconds,
        "boxes_per_s": len(boxes_ms) / seconds,
        "stages_ms": stages_ms,
        "hand_over_part": stages_ms[HAND_OVER][0] / stages_ms[AT_THE_PAGE][0],
        "cores": cores,
    }
