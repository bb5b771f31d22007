"""The relay with a real broker and storage: each frame reaches a detector, its result returns, and it is removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rabbitmq import RabbitMq
from tests.services.relay.parts import (
    configuration,
    objects_in,
    open_publisher,
    publish_frames,
    reading_results,
    running_detector,
    running_relay,
)
from tests.support import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("policy", ["live", "work"])
def test_each_frame_gives_one_result(rabbitmq: RabbitMq, stream: str, tmp_path: Path, policy: str) -> None:
    objects = tmp_path / "objects"
    configured = configuration(
        stream, rabbitmq.url, objects, policy=policy, spool=tmp_path / "spool", live_length=100, max_age_s=30
    )
    with (
        open_publisher(stream) as publisher,
        running_relay(configured) as status,
        reading_results(configured) as results,
        running_detector(configured, instance="one"),
        running_detector(configured, instance="two"),
    ):
        publish_frames(publisher, 20, 0.02)
        wait_until(lambda: len(results) == 20, "20 results", detail=status)
        wait_until(
            lambda: not status()["details"]["spooled"] and not status()["details"]["unsettled"],
            "all are settled",
            detail=status,
        )
        wait_until(lambda: not objects_in(objects, "frames"), "the objects are removed")
        told = status()["details"]
    assert sorted(reference.sequence for reference, _ in results) == list(range(1, 21))
    assert {detections.objects[0].x_px for _, detections in results} == set(map(float, range(1, 21)))
    assert told["counts"] == {"accepted": 20, "published": 20, "analysed": 20}
    assert len(objects_in(objects, "results")) == 20
