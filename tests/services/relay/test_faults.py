"""Faults between hosts: bad messages and objects, dead detectors, a broker and a storage that stop and return."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aio_pika
import numpy as np
import pytest

from framebus import FrameFormat, Publisher
from services.common.broker import BROKER_ERRORS, connect, why
from services.common.broker_names import FRAME, Names
from services.common.dead_letter import reason_of
from services.common.detections import Detections
from services.common.frame_codec import encode
from services.common.recording import RecordedFrame
from services.common.reference import FrameReference, frame_address
from services.common.service import ServiceError
from services.relay.config import RelayConfiguration
from services.relay.service import main
from services.relay.topology import declare
from tests.rabbitmq import RabbitMq
from tests.s3 import SECRET_KEY, S3Server
from tests.services.relay.parts import (
    configuration,
    objects_in,
    open_publisher,
    pixels_of,
    planted,
    publish_frames,
    reading_results,
    running_detector,
    running_relay,
)
from tests.support import Program, wait_until

pytestmark = pytest.mark.slow


def frame_in(objects: Path, stream: str, sequence: int = 1, **changed: Any) -> FrameReference:
    """Put a frame into the storage's folder; return its reference, with changes."""
    data = bytes(encode(pixels_of(), "png"))
    sha256 = hashlib.sha256(data).hexdigest()
    captured_wall_ns = time.time_ns()
    reference = FrameReference(
        address=frame_address(stream, 7, sequence, captured_wall_ns, encoding="png", sha256=sha256),
        size_bytes=len(data),
        sha256=sha256,
        stream=stream,
        epoch=7,
        sequence=sequence,
        captured_ns=time.monotonic_ns(),
        captured_wall_ns=captured_wall_ns,
        format="png",
        shape=pixels_of().shape,
        dtype="|u1",
        pixel_format="bgr",
        attempts=3,
    )
    path = objects / reference.address
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return dataclasses.replace(reference, **changed)


def send(configured: RelayConfiguration, *bodies: bytes, kind: str | None = FRAME) -> None:
    """Publish messages to the detectors."""

    async def publish_all() -> None:
        async with await connect(configured.broker) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(Names(configured.stream.name).frames)
            for body in bodies:
                await exchange.publish(aio_pika.Message(body, type=kind), "")

    asyncio.run(publish_all())


def letters_of(configured: RelayConfiguration) -> list[str]:
    """Return the reasons of all dead letters, and leave them in the queue."""

    async def read() -> list[str]:
        async with await connect(configured.broker) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(Names(configured.stream.name).dead)
            found = []
            while (letter := await queue.get(fail=False)) is not None:
                found.append(reason_of(letter))
            return found

    return asyncio.run(read())


def changed_json(reference: FrameReference, **fields: Any) -> bytes:
    return json.dumps(json.loads(reference.to_json()) | fields).encode()


BAD_MESSAGES: dict[str, tuple[Callable[[FrameReference], bytes], str]] = {
    "not JSON": (lambda _: b"\xff\x00", "not JSON"),
    "not an object": (lambda _: b"[1, 2]", "not a reference"),
    "somebody else's": (lambda _: b'{"order": 5}', "not a reference"),
    "of an unknown version": (lambda frame: changed_json(frame, version=99), "version 99"),
    "of a result": (lambda frame: changed_json(frame, kind="results"), "kind 'results'"),
    "of another stream": (lambda frame: changed_json(frame, stream="other"), "stream other"),
    "to the folder above": (lambda frame: changed_json(frame, address="frames/../../etc/passwd"), "nothing is fetched"),
    "to an absolute path": (lambda frame: changed_json(frame, address="/etc/passwd"), "nothing is fetched"),
    "to a URL": (lambda frame: changed_json(frame, address="http://169.254.169.254/latest"), "nothing is fetched"),
    "to the results": (lambda frame: changed_json(frame, address="results/x/1/1/m/a"), "nothing is fetched"),
    "endlessly large": (lambda frame: changed_json(frame, size_bytes=1 << 40), "at most"),
    "of a negative sequence": (lambda frame: changed_json(frame, sequence=-1), "sequence"),
    "of a shape that is none": (lambda frame: changed_json(frame, shape=[0, 3]), "shape"),
    "of a giant frame": (lambda frame: changed_json(frame, shape=[1 << 20, 1 << 20, 3]), "at most"),
    "to no object": (lambda frame: changed_json(frame, address=frame.address + "x"), "no such object"),
    "to an altered object": (lambda frame: changed_json(frame, sha256="0" * 64), "SHA-256"),
    "to a longer object": (lambda frame: changed_json(frame, size_bytes=frame.size_bytes - 1), "bytes"),
    "to an object of another shape": (lambda frame: changed_json(frame, shape=[10, 10, 3]), "shape"),
    "to an object of another format": (lambda frame: changed_json(frame, format="zstd"), "zstd"),
}


def test_a_message_that_cannot_be_processed_becomes_a_dead_letter(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path
) -> None:
    objects = tmp_path / "objects"
    configured = configuration(stream, rabbitmq.url, objects, policy="work", spool=tmp_path / "spool", attempts=3)
    with (
        running_relay(configured) as status,
        reading_results(configured) as results,
        running_detector(configured) as worker,
    ):
        bad = [make(frame_in(objects, stream, number)) for number, (make, _) in enumerate(BAD_MESSAGES.values(), 1)]
        wait_until(lambda: not worker.reason, "the detector is connected")
        send(configured, *bad)
        send(configured, b"of another type", kind="order.created")
        send(configured, frame_in(objects, stream, 100).to_json())
        wait_until(lambda: len(results) == 1, "the good frame's result")
        wait_until(lambda: worker.dead == len(bad) + 1, "all others are dead letters")
        reasons = letters_of(configured)
        wait_until(lambda: status()["stages"]["settle"]["frames"] >= 1, "settled")
    assert len(reasons) == len(bad) + 1
    for name, (_, part) in BAD_MESSAGES.items():
        assert any(part in reason for reason in reasons), f"{name}: {reasons}"
    assert not objects_in(objects, "etc")


def test_a_frame_on_which_the_model_fails_is_retried_and_then_given_up(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path
) -> None:
    configured = configuration(
        stream, rabbitmq.url, tmp_path / "objects", policy="work", spool=tmp_path / "spool", attempts=3
    )
    tried: list[int] = []

    def look(frame: RecordedFrame) -> Detections:
        tried.append(frame.sequence)
        if frame.sequence == 3:
            raise RuntimeError("planted failure")
        return planted(frame, stream, "one")

    with (
        open_publisher(stream) as publisher,
        running_relay(configured) as status,
        reading_results(configured) as results,
        running_detector(configured, look=look),
    ):
        publish_frames(publisher, 6, 0.02)
        wait_until(lambda: status()["details"]["counts"].get("dead letters") == 1, "a dead letter", detail=status)
        wait_until(lambda: len(results) == 5, "the other results")
        assert letters_of(configured) == ["the detector one fails: RuntimeError: planted failure"]
    assert tried.count(3) == 3
    # Its frame stays, to reproduce the failure.
    assert [address.split("/")[3].split("-")[0] for address in objects_in(tmp_path / "objects", "frames")] == ["3"]


@pytest.mark.long
def test_a_frame_that_kills_its_detectors_is_given_up_by_the_broker(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path, start_program: Callable[..., Program]
) -> None:
    configured = configuration(
        stream, rabbitmq.url, tmp_path / "objects", policy="work", spool=tmp_path / "spool", attempts=2
    )
    path = tmp_path / "configuration.json"
    path.write_text(configured.model_dump_json(exclude={"source"}))
    with open_publisher(stream) as publisher, running_relay(configured) as status:
        publish_frames(publisher, 1)
        wait_until(lambda: status()["details"]["counts"].get("published"), "published", detail=status)

        def killed_while_it_works() -> bool:
            detector = start_program("planted_detector", str(path), "victim", "60")
            assert detector.read() == "runs"
            time.sleep(1)
            detector.process.kill()
            return bool(status()["details"]["counts"].get("dead letters"))

        wait_until(killed_while_it_works, "a dead letter", detail=status)
        (reason,) = letters_of(configured)
    assert "died or was killed each time" in reason


def test_a_detector_that_dies_leaves_its_frames_to_the_others(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path, start_program: Callable[..., Program]
) -> None:
    configured = configuration(stream, rabbitmq.url, tmp_path / "objects", policy="work", spool=tmp_path / "spool")
    path = tmp_path / "configuration.json"
    path.write_text(configured.model_dump_json(exclude={"source"}))
    with (
        open_publisher(stream) as publisher,
        running_relay(configured) as status,
        reading_results(configured) as results,
    ):
        victim = start_program("planted_detector", str(path), "victim", "60")
        assert victim.read() == "runs"
        publish_frames(publisher, 3, 0.05)
        wait_until(lambda: status()["details"]["counts"].get("published") == 3, "published", detail=status)
        time.sleep(0.5)
        victim.process.kill()
        with running_detector(configured, instance="heir"):
            wait_until(lambda: len(results) == 3, "all results")
    assert {detections.instance for _, detections in results} == {"heir"}


@pytest.mark.long
def test_a_broker_that_starts_late_and_is_killed_loses_no_frame(stream: str, tmp_path: Path) -> None:
    broker = RabbitMq(tmp_path / "rabbitmq")
    configured = configuration(
        stream, broker.url, tmp_path / "objects", policy="work", spool=tmp_path / "spool", stale_after_s=0.5
    )
    with (
        open_publisher(stream) as publisher,
        running_relay(configured) as status,
        running_detector(configured) as worker,
    ):
        publish_frames(publisher, 5, 0.02)
        wait_until(lambda: "broker" in status()["reason"], "the status names the broker", detail=status)
        assert not status()["healthy"]
        assert "broker" in worker.reason
        with broker:
            with reading_results(configured, "kept") as results:
                wait_until(lambda: len(results) == 5, "the results of what the spool kept", detail=status)
                wait_until(lambda: status()["details"]["spooled"] == 0, "the spool is empty")
                broker.kill()
                publish_frames(publisher, 5, 0.02)
                wait_until(lambda: status()["details"]["spooled"] == 5, "the spool takes what cannot leave")
                broker.start()
                wait_until(lambda: len(results) == 10, "all results", detail=status)
            wait_until(
                lambda: not status()["details"]["spooled"] and not status()["details"]["unsettled"],
                "all is settled",
                detail=status,
            )
            counts = status()["details"]["counts"]
    assert counts["accepted"] == counts["analysed"] == 10


def test_a_storage_that_starts_late_and_is_killed_loses_no_frame(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_SECRET", SECRET_KEY)
    server = S3Server(tmp_path / "s3")
    configured = configuration(stream, rabbitmq.url, server.section, policy="work", spool=tmp_path / "spool")
    with (
        open_publisher(stream) as publisher,
        running_relay(configured) as status,
        reading_results(configured) as results,
        running_detector(configured),
    ):
        publish_frames(publisher, 3, 0.02)
        wait_until(lambda: status()["details"]["spooled"] == 3, "the spool keeps what cannot be stored", detail=status)
        with server:
            wait_until(lambda: len(results) == 3, "the results", detail=status)
            server.kill()
            publish_frames(publisher, 3, 0.02)
            time.sleep(0.5)
            server.start()
            wait_until(lambda: len(results) == 6, "all results", detail=status)
            kept = tmp_path / "s3/data/frames/site"
            wait_until(lambda: not objects_in(kept, "frames"), "the objects are removed", detail=status)


def test_frames_lost_to_a_full_spool_or_queue_are_counted_exactly(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path
) -> None:
    # Of the spool's megabyte each raw frame takes 36,864 bytes.
    configured = configuration(
        stream,
        rabbitmq.url,
        tmp_path / "objects",
        policy="work",
        encoding="raw",
        spool=tmp_path / "spool",
        spool_bytes=1 << 20,
        queue_length=20,
    )
    with Publisher(stream, FrameFormat(96, 128), slots=16) as publisher, running_relay(configured) as status:
        publish_frames(publisher, 1)
        wait_until(lambda: status()["details"]["counts"].get("published"), "the first is published", detail=status)
        publish_frames(publisher, 79, 0.015)
        wait_until(lambda: "queue" in status()["details"]["waits_for"], "the queue is full", detail=status)
        counts = status()["details"]["counts"]
        assert counts["missed: spool full"] > 0
        with reading_results(configured) as results, running_detector(configured):
            wait_until(lambda: len(results) == counts["accepted"], "what was accepted is worked on", detail=status)
        counts = status()["details"]["counts"]
    missed = sum(number for name, number in counts.items() if name.startswith("missed"))
    assert counts["accepted"] + missed == 80


def test_a_frame_delivered_twice_gives_its_first_result_again(rabbitmq: RabbitMq, stream: str, tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    configured = configuration(stream, rabbitmq.url, objects, policy="work", spool=tmp_path / "spool")
    with (
        running_relay(configured) as status,
        reading_results(configured) as results,
        running_detector(configured) as worker,
    ):
        wait_until(lambda: not status()["details"]["waits_for"] and not worker.reason, "all are connected")
        reference = frame_in(objects, stream)
        send(configured, reference.to_json())
        wait_until(lambda: len(results) == 1, "its result")
        wait_until(lambda: not objects_in(objects, "frames"), "its object is removed after use")
        # What a writer that died, or another one, may leave beside it.
        (result,) = (objects / "results").rglob("planted_1/*")
        (result.parent / ".tmp.2195996a15d34fcd").touch()
        (result.parent / "0123456789abcdef").write_bytes(b"torn")
        send(configured, reference.to_json())
        wait_until(lambda: worker.repeated == 1, "the second reference is settled")
        wait_until(lambda: status()["stages"]["settle"]["frames"] == 2, "and told of")
        assert letters_of(configured) == []
    assert len(results) == 1


def test_a_detector_that_is_told_to_stop_finishes_its_frame(rabbitmq: RabbitMq, stream: str, tmp_path: Path) -> None:
    configured = configuration(stream, rabbitmq.url, tmp_path / "objects", policy="work", spool=tmp_path / "spool")
    begun = threading.Event()

    def look(frame: RecordedFrame) -> Detections:
        begun.set()
        time.sleep(0.5)
        return planted(frame, stream, "one")

    with (
        open_publisher(stream) as publisher,
        running_relay(configured) as status,
        reading_results(configured) as results,
    ):
        with running_detector(configured, look=look, prefetch=1):
            publish_frames(publisher, 5, 0.02)
            assert begun.wait(20)
        wait_until(lambda: results, "its result", detail=status)
        with running_detector(configured, instance="heir"):
            wait_until(lambda: len(results) == 5, "the other results", detail=status)
    assert [detections.instance for _, detections in results].count("one") == 1


def test_a_frame_that_is_removed_from_the_spool_is_counted(rabbitmq: RabbitMq, stream: str, tmp_path: Path) -> None:
    server = S3Server(tmp_path / "s3")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("S3_SECRET", SECRET_KEY)
        configured = configuration(stream, rabbitmq.url, server.section, policy="work", spool=tmp_path / "spool")
        with open_publisher(stream) as publisher, running_relay(configured) as status:
            publish_frames(publisher, 8, 0.02)
            wait_until(lambda: status()["details"]["spooled"] == 8, "the spool keeps what cannot be stored")
            (removed,) = (tmp_path / "spool" / "frames").glob("*-8")
            removed.unlink()
            with server:
                wait_until(lambda: status()["details"]["counts"].get("published") == 7, "the others", detail=status)
                wait_until(lambda: not status()["details"]["spooled"], "the spool is empty", detail=status)
            assert status()["details"]["counts"]["dropped: lost from the spool"] == 1


def test_a_second_relay_of_a_stream_is_refused(rabbitmq: RabbitMq, stream: str, tmp_path: Path) -> None:
    first = configuration(stream, rabbitmq.url, tmp_path / "objects", policy="work", spool=tmp_path / "one")
    second = configuration(stream, rabbitmq.url, tmp_path / "objects", policy="work", spool=tmp_path / "two")
    with running_relay(first) as status, ThreadPoolExecutor(1) as pool:
        wait_until(lambda: not status()["details"]["waits_for"], "the relay is connected", detail=status)
        stop = threading.Event()
        ends = pool.submit(main, second, stop)
        # On one host by its status socket; on another, which sees another /dev/shm, by the broker.
        with pytest.raises(ServiceError, match="runs already"):
            ends.result()

        async def declare_all() -> None:
            async with await connect(second.broker) as connection:
                await declare(connection, await connection.channel(), Names(stream), second.relay)

        with pytest.raises(BROKER_ERRORS) as refused:
            asyncio.run(declare_all())
        assert "another relay" in why(refused.value)


def test_a_deleted_queue_is_declared_again(rabbitmq: RabbitMq, stream: str, tmp_path: Path) -> None:
    configured = configuration(stream, rabbitmq.url, tmp_path / "objects", policy="work", spool=tmp_path / "spool")

    async def delete() -> None:
        async with await connect(configured.broker) as connection:
            channel = await connection.channel()
            await channel.queue_delete(Names(stream).group("detector"))

    with (
        open_publisher(stream) as publisher,
        running_relay(configured) as status,
        reading_results(configured) as results,
    ):
        wait_until(lambda: not status()["details"]["waits_for"], "the relay is connected", detail=status)
        asyncio.run(delete())
        publish_frames(publisher, 3, 0.02)
        with running_detector(configured):
            wait_until(lambda: len(results) == 3, "all results", detail=status)


def test_a_killed_relay_continues_where_it_stopped(rabbitmq: RabbitMq, stream: str, tmp_path: Path) -> None:
    configured = configuration(stream, rabbitmq.url, tmp_path / "objects", policy="work", spool=tmp_path / "spool")
    path = tmp_path / "configuration.json"
    path.write_text(configured.model_dump_json(exclude={"source"}))
    with open_publisher(stream, slots=8) as publisher:
        for _ in range(2):
            relay = subprocess.Popen(
                [sys.executable, "-m", "services.relay", "--config", str(path)], stderr=subprocess.DEVNULL
            )
            before = publisher.statistics.sequence
            wait_until(lambda: len(publisher_subscribers(stream)) > 0, "the relay is attached")
            publish_frames(publisher, 20, 0.03)
            assert publisher.statistics.sequence == before + 20
            relay.kill()
            relay.wait()
            # More frames than the ring has slots: some are overwritten before the next relay reads them.
            publish_frames(publisher, 10)
        with (
            reading_results(configured) as results,
            running_detector(configured),
            running_relay(configured) as status,
        ):
            publish_frames(publisher, 1)
            wait_until(lambda: status()["stages"]["take"]["frames"] > 0, "frames are taken")
            wait_until(
                lambda: not status()["details"]["spooled"] and not status()["details"]["unsettled"],
                "all is settled",
                detail=status,
            )
            details = status()["details"]
            wait_until(lambda: len(results) == details["counts"]["accepted"], "all results", detail=status)
        published = publisher.statistics.sequence
    seen = {reference.sequence for reference, _ in results}
    missed = {number for _, first, last, _ in details["missed"] for number in range(first, last + 1)}
    assert len(results) == len(seen)
    assert seen | missed == set(range(1, published + 1))
    assert not seen & missed
    assert missed


def publisher_subscribers(stream: str) -> list[Path]:
    """Return the records of a stream's subscribers."""
    return [path for path in Path("/dev/shm").glob(f"framebus.{stream}.sub.*") if not path.name.endswith(".new")]


def test_the_live_policy_gives_no_old_result_and_counts_dropped_frames(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path
) -> None:
    max_age_s = 0.6
    configured = configuration(
        stream, rabbitmq.url, tmp_path / "objects", policy="live", live_length=4, max_age_s=max_age_s
    )

    def look(frame: RecordedFrame) -> Detections:
        time.sleep(0.16)  # a quarter of what 25 frames a second need
        return planted(frame, stream, "slow")

    with (
        open_publisher(stream) as publisher,
        running_relay(configured) as status,
        running_detector(configured, look=look) as worker,
        reading_results(configured) as results,
    ):
        wait_until(lambda: not status()["details"]["waits_for"] and not worker.reason, "all are connected")
        publish_frames(publisher, 50, 0.04)
        wait_until(
            lambda: not status()["details"]["spooled"] and not status()["details"]["unsettled"],
            "all is settled",
            detail=status,
        )
        counts = status()["details"]["counts"]
        ages_s = [(detections.detected_ns - reference.captured_ns) * 1e-9 for reference, detections in results]
        wait_until(lambda: not objects_in(tmp_path / "objects", "frames"), "the objects are removed")
    dropped = sum(number for name, number in counts.items() if name.startswith("dropped"))
    missed = sum(number for name, number in counts.items() if name.startswith("missed"))
    assert counts["analysed"] + dropped + missed == 50
    assert dropped > 20
    assert len(results) == counts["analysed"]
    assert max(ages_s) <= max_age_s


def test_frames_of_any_type_can_be_sent_raw(rabbitmq: RabbitMq, stream: str, tmp_path: Path) -> None:
    for policy in ("live", "work"):
        name = f"{stream}{policy}"
        configured = configuration(
            name, rabbitmq.url, tmp_path / policy, policy=policy, encoding="raw", spool=tmp_path / "s", max_age_s=20
        )
        seen: list[np.ndarray[Any, Any]] = []

        def look(frame: RecordedFrame, name: str = name, seen: list[Any] = seen) -> Detections:
            seen.append(frame.pixels.copy())
            return planted(frame, name, "one")

        with (
            Publisher(name, FrameFormat(4, 5, None, "float32", "depth")) as publisher,
            running_relay(configured) as status,
            running_detector(configured, look=look),
        ):
            with publisher.loan() as loan:
                loan.pixels[:] = np.arange(20, dtype=np.float32).reshape(4, 5) / 3
            wait_until(seen.copy, "the frame", detail=status)
        assert np.array_equal(seen[0], np.arange(20, dtype=np.float32).reshape(4, 5) / 3)
        assert seen[0].dtype == np.float32
