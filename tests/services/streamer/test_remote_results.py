"""The streamer with a real relay and broker: results of other hosts and of this one."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from framebus import NoFreeSlot, Publisher
from services.common.detections import Detection, DetectionPublisher, Detections
from services.common.recording import RecordedFrame
from services.common.status import read_statuses
from services.relay.config import RelayConfiguration
from tests.rabbitmq import RabbitMq
from tests.services.relay.parts import configuration, open_publisher, planted, running_detector, running_relay
from tests.services.streamer.support import StreamerProcess
from tests.support import PATIENCE_S, free_ports, wait_until

pytestmark = pytest.mark.long

NOTICE = "results of detectors on other hosts do not arrive"


def sections(configured: RelayConfiguration) -> dict[str, dict[str, object]]:
    """Return the sections of the relay's configuration that the streamer needs."""
    return {"broker": {"url": configured.broker.url}, "storage": {"url": configured.storage.url}}


@contextmanager
def publishing(stream: str) -> Iterator[Publisher]:
    """Publish 20 frames a second from a thread, with detections as from a detector on this host."""
    stop = threading.Event()

    def run(publisher: Publisher) -> None:
        detector = DetectionPublisher(stream, "here")
        found = Detection("car", 0.9, 1.0, 2.0, 3.0, 4.0)
        try:
            while not stop.wait(0.05):
                try:
                    with publisher.loan() as loan:
                        loan.pixels[:] = 1
                except NoFreeSlot:
                    continue
                epoch, now_ns = publisher.statistics.epoch, time.monotonic_ns()
                sequence = loan.sequence or 0
                detector.publish(
                    Detections(stream, "here", epoch, sequence, loan.captured_ns, now_ns, 48, 64, (found,))
                )
        finally:
            detector.close()

    with open_publisher(stream) as publisher:
        thread = threading.Thread(target=run, args=(publisher,))
        thread.start()
        try:
            yield publisher
        finally:
            stop.set()
            thread.join()


@asynccontextmanager
async def messages(url: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Yield the texts that the page's WebSocket receives."""

    async def read(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[dict[str, Any]]:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                yield json.loads(message.data)

    async with (
        asyncio.timeout(PATIENCE_S),
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}ws") as socket,
    ):
        yield read(socket)


async def until(url: str, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Read texts until the condition holds."""
    seen: list[dict[str, Any]] = []
    async with messages(url) as read:
        async for message in read:
            seen.append(message)
            if enough(seen):
                return seen
    raise AssertionError(seen[-3:])


def boxes_of(seen: list[dict[str, Any]], instance: str) -> list[dict[str, Any]]:
    return [message for message in seen if message["type"] == "detections" and message["instance"] == instance]


def results_of(stream: str) -> dict[str, Any]:
    """Return what the streamer's status contains about the results."""
    return dict(read_statuses(stream).get("streamer", {}).get("details", {}).get("results", {}))


def healthy(stream: str) -> dict[str, Any]:
    """Return the streamer's status if it is healthy, else None."""
    told = read_statuses(stream).get("streamer", {})
    return told if told.get("healthy") else {}


def test_the_page_gets_boxes_of_this_host_and_of_a_group_of_others(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path
) -> None:
    configured = configuration(stream, rabbitmq.url, tmp_path / "objects", max_age_s=30)

    def slowly(frame: RecordedFrame) -> Detections:
        if frame.sequence % 3 == 0:
            time.sleep(0.15)  # so that the other detector of the group is faster with a newer frame
        return planted(frame, stream, "two")

    with (
        publishing(stream),
        running_relay(configured),
        StreamerProcess(stream, tmp_path / "log", sections=sections(configured), detections="both") as streamer,
        running_detector(configured, instance="one"),
        running_detector(configured, instance="two", look=slowly),
    ):
        url = streamer.url
        wait_until(lambda: results_of(stream).get("connected"), "the broker is connected")
        seen = asyncio.run(
            until(
                url,
                lambda seen: (
                    all(len(boxes_of(seen, name)) >= 15 for name in ("here", "detector"))
                    and len(seen[-1].get("detectors", [])) == 2
                ),
            )
        )
        wait_until(lambda: results_of(stream)["late"], "a detector is slower than the other")
        told = read_statuses(stream)["streamer"]
    assert {message["instance"] for message in seen if message["type"] == "detections"} == {"here", "detector"}
    for message in boxes_of(seen, "detector"):
        assert [(found["label"], found["x"]) for found in message["objects"]] == [("person", message["sequence"])]
    for name in ("here", "detector"):
        sequences = [message["sequence"] for message in boxes_of(seen, name)]
        assert sequences == sorted(set(sequences))
    assert {one["instance"] for one in seen[-1]["detectors"]} == {"here", "detector"}
    assert seen[-1]["notices"] == []
    assert told["stages"]["results"]["frames"] >= 15
    assert {name: told["details"]["results"][name] for name in ("connected", "reason", "foreign", "rejected")} == {
        "connected": True,
        "reason": "",
        "foreign": 0,
        "rejected": 0,
    }


def test_results_arrive_when_the_broker_starts_and_again_after_it_was_killed(stream: str, tmp_path: Path) -> None:
    with RabbitMq(tmp_path / "rabbitmq") as rabbitmq:
        rabbitmq.kill()
        configured = configuration(stream, rabbitmq.url, tmp_path / "objects", max_age_s=30)
        with (
            publishing(stream),
            StreamerProcess(
                stream, tmp_path / "log", sections=sections(configured), detections="broker", stale_after_s=60
            ) as streamer,
        ):
            url = streamer.url
            asyncio.run(until(url, lambda seen: any(NOTICE in str(one.get("notices")) for one in seen)))
            told = wait_until(lambda: healthy(stream), "the pictures are there")
            assert "no connection to the broker" in told["details"]["results"]["reason"]
            assert "detections" not in told["stages"]
            assert len(streamer.events("broker not connected")) == 1
            rabbitmq.start()
            with running_relay(configured), running_detector(configured):
                for again in (True, False):
                    seen = asyncio.run(
                        until(url, lambda seen: len(boxes_of(seen, "detector")) >= 3 and seen[-1].get("notices") == [])
                    )
                    assert boxes_of(seen, "here") == []
                    if again:
                        rabbitmq.kill()
                        wait_until(lambda: results_of(stream)["reason"], "the loss is told")
                        rabbitmq.start()


def test_an_unreachable_storage_is_reported_and_the_pictures_continue(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path
) -> None:
    configured = configuration(stream, rabbitmq.url, tmp_path / "objects", max_age_s=30)
    away = {
        **sections(configured),
        "storage": {
            "url": "s3://frames",
            "endpoint": f"http://127.0.0.1:{free_ports(1)}",
            "access_key_id": "any",
            "secret_key_file": str(tmp_path / "secret"),
            "timeout_s": 1,
        },
    }
    (tmp_path / "secret").write_text("any")
    with (
        publishing(stream),
        running_relay(configured),
        StreamerProcess(stream, tmp_path / "log", sections=away, detections="broker") as streamer,
        running_detector(configured),
    ):
        seen = asyncio.run(
            until(
                streamer.url,
                lambda seen: any(f"{NOTICE}: the storage cannot be read" in one.get("notices", []) for one in seen),
            )
        )
        told = wait_until(lambda: healthy(stream), "the pictures are there")
        assert told["stages"]["receive"]["fps"] > 0
        assert "is not read" in told["details"]["results"]["reason"]
        assert len(streamer.events("results not read")) == 1
    assert boxes_of(seen, "detector") == []
