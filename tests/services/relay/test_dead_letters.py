"""``framebus-relay dead-letters`` with a real broker: each command, and each failure in one sentence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import numpy as np
import pytest
import yaml
from structlog.testing import capture_logs

from framebus import FrameFormat, Publisher
from services.common.broker import connect
from services.common.broker_messages import publish
from services.common.broker_names import Names
from services.common.detections import Detections
from services.common.recording import RecordedFrame
from services.common.reference import FrameReference
from services.relay.config import RelayConfiguration
from services.relay.entry import SERVICE
from tests.rabbitmq import RabbitMq
from tests.services.detector.pictures import campus_path
from tests.services.relay.parts import (
    configuration,
    objects_in,
    open_publisher,
    publish_frames,
    reading_results,
    running_detector,
    running_relay,
)
from tests.support import free_ports, wait_until

pytestmark = pytest.mark.slow

FAULT = "the lens cap is on"


class Relay:
    """``framebus-relay`` with a configuration in a file."""

    def __init__(self, configured: RelayConfiguration, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.configured = configured
        self._capsys = capsys
        self.config = folder / "framebus.yaml"
        sections = configured.model_dump(mode="json", include={"stream", "broker", "storage", "relay"})
        self.config.write_text(yaml.safe_dump(sections))

    def dead_letters(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit status, output and errors of ``dead-letters``."""
        self._capsys.readouterr()
        with capture_logs():  # a relay that runs in a thread logs at the same time
            status = SERVICE.main(["dead-letters", "--config", str(self.config), *arguments])
        output, complaints = self._capsys.readouterr()
        return status, output, complaints

    def listed(self) -> list[dict[str, Any]]:
        """Return the listed dead letters."""
        status, output, complaints = self.dead_letters("list", "--json")
        assert (status, complaints) == (0, "")
        return [json.loads(line) for line in output.splitlines()]

    def send(self, *bodies: bytes) -> None:
        """Add messages to the dead letters."""

        async def sending() -> None:
            async with await connect(self.configured.broker) as connection:
                channel = await connection.channel()
                exchange = await channel.get_exchange(Names(self.configured.stream.name).dead)
                for body in bodies:
                    await publish(exchange, aio_pika.Message(body))

        asyncio.run(sending())


def failing(_frame: RecordedFrame) -> Detections:
    raise ValueError(FAULT)


def work_policy(rabbitmq: RabbitMq, stream: str, folder: Path, **relay: Any) -> RelayConfiguration:
    return configuration(
        stream, rabbitmq.url, folder / "objects", policy="work", spool=folder / "spool", attempts=2, **relay
    )


Letters = Callable[..., AbstractContextManager[Relay]]


@pytest.fixture
def letters(rabbitmq: RabbitMq, stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Letters:
    """Runs a relay, and makes a given number of dead letters by a detector that fails."""

    @contextmanager
    def run(count: int = 1) -> Iterator[Relay]:
        relay = Relay(work_policy(rabbitmq, stream, tmp_path), tmp_path, capsys)
        with open_publisher(stream) as publisher, running_relay(relay.configured) as status:
            with running_detector(relay.configured, instance="broken", look=failing) as worker:
                publish_frames(publisher, count, 0.05)
                wait_until(lambda: worker.dead == count, "the letters are dead", detail=status)
            yield relay

    return run


def test_dead_letters_are_listed_and_shown(letters: Letters) -> None:
    with letters(2) as relay:
        told = relay.listed()
        assert {one["reference"]["sequence"] for one in told} == {1, 2}
        status, output, complaints = relay.dead_letters("list")
        assert (status, complaints) == (0, "")
        reason = f"the detector broken fails: ValueError: {FAULT}"
        assert output.splitlines() == [f"{one['id']}  {reason}  (detector broken, delivered 2)" for one in told]
        status, output, complaints = relay.dead_letters("show", told[1]["id"])
        assert (status, complaints) == (0, "")
        shown = json.loads(output)
        assert shown == told[1]
        assert (shown["reason"], shown["group"]) == (reason, "detector")
        assert shown["traceparent"].split("-")[1] == shown["trace_id"]


def test_a_replayed_letter_gives_a_result_once_the_cause_is_fixed(letters: Letters) -> None:
    with letters(2) as relay:
        first, second = (one["id"] for one in relay.listed())
        with reading_results(relay.configured) as results, running_detector(relay.configured):
            assert relay.dead_letters("replay", second) == (0, "1 replayed\n", "")
            wait_until(lambda: results, "the result")
            assert second.endswith(f"/{results[0][0].sequence}")
            assert [one["id"] for one in relay.listed()] == [first]
            assert relay.dead_letters("replay", "--all") == (0, "1 replayed\n", "")
            wait_until(lambda: len(results) == 2, "the other result")
        assert relay.dead_letters("list") == (0, "there are no dead letters\n", "")


def test_dropping_a_letter_deletes_its_object(letters: Letters, tmp_path: Path) -> None:
    with letters(2) as relay:
        objects = tmp_path / "objects"
        first, second = relay.listed()
        assert relay.dead_letters("drop", first["id"]) == (0, "1 dropped\n", "")
        assert relay.listed() == [second]
        assert objects_in(objects, "frames") == [second["reference"]["address"]]


def test_a_message_that_is_not_a_reference_becomes_a_dead_letter(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relay = Relay(work_policy(rabbitmq, stream, tmp_path), tmp_path, capsys)
    with open_publisher(stream), running_relay(relay.configured):
        wait_until(lambda: not relay.dead_letters("list")[0], "the relay has declared the queue")
        relay.send(b"hello")
        (told,) = relay.listed()
        assert told["body"] == "hello"
        assert told["not_a_reference"]
        status, output, complaints = relay.dead_letters("run", told["id"])
        assert (status, output) == (1, "")
        assert complaints.startswith("framebus-relay dead-letters: there is no frame to run: ")
        assert complaints.count("\n") == 1
        status, output, complaints = relay.dead_letters("replay", told["id"])
        assert (status, output) == (1, "")
        assert "which is of none of relay.groups" in complaints
        assert relay.dead_letters("drop", told["id"]) == (0, "1 dropped\n", "")
        assert relay.listed() == []


def test_the_detector_can_run_on_the_frame_of_a_letter(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relay = Relay(work_policy(rabbitmq, stream, tmp_path, encoding="png"), tmp_path, capsys)
    place = campus_path()
    with Publisher(stream, FrameFormat(*place.shape[:2]), slots=4) as publisher, running_relay(relay.configured):
        with running_detector(relay.configured, look=failing) as worker:
            with publisher.loan() as loan:
                np.copyto(loan.pixels, place)
            wait_until(lambda: worker.dead, "the letter is dead")
        (told,) = relay.listed()
        status, output, complaints = relay.dead_letters("run", told["id"])
        assert (status, complaints) == (0, "")
        found = json.loads(output)
        assert {name: found[name] for name in ("stream", "epoch", "sequence", "captured_ns")} == {
            name: told["reference"][name] for name in ("stream", "epoch", "sequence", "captured_ns")
        }
        people = [one for one in found["objects"] if one["class"] == "person"]
        assert len(people) >= 6
        assert {one["track"] for one in found["objects"]} == {0}

        reference = FrameReference.from_json(json.dumps(told["reference"]).encode())
        (tmp_path / "objects" / reference.address).write_bytes(b"damaged")
        assert_one_sentence(relay.dead_letters("run", told["id"]), f"{reference.address} has 7 bytes")
        (tmp_path / "objects" / reference.address).unlink()
        assert_one_sentence(relay.dead_letters("run", told["id"]), f"{reference.address} is not read: there is no such")
        # The letter stays in the queue, whatever the result was.
        assert relay.listed() == [told]


def assert_one_sentence(done: tuple[int, str, str], told: str) -> None:
    status, output, complaints = done
    assert (status, output) == (1, "")
    assert complaints.startswith(f"framebus-relay dead-letters: {told}")
    assert complaints.count("\n") == 1


def test_a_missing_letter_is_reported_in_one_sentence(letters: Letters) -> None:
    with letters() as relay:
        for command in ("show", "run", "replay", "drop"):
            assert_one_sentence(relay.dead_letters(command, "none/1/2"), "there is no dead letter none/1/2: ")
        assert len(relay.listed()) == 1


def test_an_unreachable_broker_is_reported_in_one_sentence(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relay = Relay(configuration(stream, f"amqp://127.0.0.1:{free_ports(1)}", tmp_path / "objects"), tmp_path, capsys)
    for arguments in (("list",), ("show", "any"), ("replay", "--all")):
        assert_one_sentence(relay.dead_letters(*arguments), "the broker: ")
