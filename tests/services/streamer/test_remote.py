"""Results of detectors on other hosts: a group is one detector, in order and once; a missing broker is harmless."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.common.detections import Detection, Detections
from services.common.reference import ResultReference
from services.common.service import UnusableSetting
from services.streamer.check import check
from services.streamer.config import StreamerConfiguration
from services.streamer.order import DetectionOrder
from services.streamer.remote import CLOCKS_AGREE_S, MAX_AGE_S, ResultThread
from tests.support import ROOT, free_ports, wait_until

SECOND_NS = 10**9


def configured(folder: Path, **broker: Any) -> StreamerConfiguration:
    return StreamerConfiguration.model_validate(
        {
            "broker": {"url": "amqp://localhost", **broker},
            "storage": {"url": f"file://{folder}/objects"},
            "streamer": {"detections": "broker", "port": 0},
        }
    )


class Shown:
    """A thread that is not started, and the results that it passes on."""

    def __init__(self, folder: Path) -> None:
        self.detections: list[Detections] = []
        self.thread = ResultThread(
            configured(folder), DetectionOrder(), deliver=self.detections.append, stop=threading.Event()
        )

    def take(
        self,
        captured_ns: int,
        *,
        age_s: float | None = None,
        group: str = "people",
        instance: str = "one",
        objects: tuple[Detection, ...] = (),
    ) -> None:
        """Take a result; ``age_s`` is the frame's by the wall clock, if it is not that by ``captured_ns``."""
        now_ns = time.monotonic_ns()
        age_ns = now_ns - captured_ns if age_s is None else round(age_s * SECOND_NS)
        wall_ns = max(0, time.time_ns() - age_ns)
        reference = ResultReference(
            "results/s/1/1/m/a", 1, "0" * 64, "s", 1, 1, captured_ns, wall_ns, "m", group, instance, "frames/s/1/1.raw"
        )
        detections = Detections("s", instance, 1, 1, captured_ns, now_ns, 64, 512, objects, tracker=hash(instance))
        self.thread.take(reference, detections)

    @property
    def counts(self) -> tuple[int, int, int]:
        told = self.thread.details()
        return told["late"], told["repeated"], told["foreign"]


def test_the_results_of_a_group_are_shown_as_of_one_detector_in_order_and_once(tmp_path: Path) -> None:
    shown = Shown(tmp_path)
    start_ns = time.monotonic_ns() - SECOND_NS
    for offset_ns, instance in ((0, "one"), (20, "two"), (10, "one"), (20, "one"), (30, "two")):
        shown.take(start_ns + offset_ns, instance=instance)
    shown.take(start_ns + 5, group="cars", instance="one")
    assert [(found.instance, found.captured_ns - start_ns) for found in shown.detections] == [
        ("people", 0),
        ("people", 20),
        ("people", 30),
        ("cars", 5),
    ]
    assert shown.counts == (1, 1, 0)
    summary = shown.thread.received.summary()
    assert (summary["frames"], summary["skipped"]) == (4, 2)


def test_each_detector_of_a_group_is_counted_by_its_own_name(tmp_path: Path) -> None:
    shown = Shown(tmp_path)
    start_ns = time.monotonic_ns() - SECOND_NS
    for offset_ns, instance in ((0, "one"), (20, "two"), (10, "one"), (20, "one")):
        shown.take(start_ns + offset_ns, instance=instance)
    shown.take(start_ns, group="<b>")
    shown.take(start_ns + 3600 * SECOND_NS, age_s=0.5)
    workers = shown.thread.details()["workers"]
    # Those that came too late to be shown count: they are work of the detector.
    assert [(one["group"], one["worker"], one["frames"]) for one in workers] == [
        ("people", "one", 3),
        ("people", "two", 1),
    ]
    assert workers[0]["model"] == "m"
    assert workers[0]["latency_p50_ms"] >= 1000


def test_trackers_of_a_group_are_separated_only_if_there_are_tracks(tmp_path: Path) -> None:
    shown = Shown(tmp_path)
    start_ns = time.monotonic_ns() - SECOND_NS
    found = Detection("car", 0.9, 1.0, 2.0, 3.0, 4.0)
    shown.take(start_ns, instance="one", objects=(found,))
    shown.take(start_ns + 1, instance="two", objects=(found,))
    shown.take(start_ns + 2, instance="two", objects=(replace(found, track_id=3),))
    assert [detections.tracker for detections in shown.detections] == [0, 0, hash("two")]


def test_frames_of_another_boot_and_groups_without_a_name_are_dropped_and_counted(tmp_path: Path) -> None:
    shown = Shown(tmp_path)
    now_ns = time.monotonic_ns()
    shown.take(now_ns + 3600 * SECOND_NS, age_s=0.5)
    shown.take((1 << 64) - 1, age_s=0.5)
    shown.take(now_ns - round((MAX_AGE_S + 1) * SECOND_NS))
    shown.take(now_ns - SECOND_NS, age_s=2 * CLOCKS_AGREE_S)
    shown.take(now_ns - SECOND_NS, age_s=-2 * CLOCKS_AGREE_S)
    shown.take(now_ns - SECOND_NS, group="<b>")
    assert shown.detections == []
    assert shown.counts == (0, 0, 6)
    shown.take(now_ns - SECOND_NS)
    assert len(shown.detections) == 1


@pytest.mark.parametrize(
    ("broker", "reason"),
    [
        ({"url": "amqp://127.0.0.1:{port}"}, "no connection to the broker amqp://127.0.0.1:"),
        ({"password_file": "/nowhere/password"}, "the password's file /nowhere/password cannot be read"),
    ],
)
def test_an_unreachable_broker_is_reported_and_the_thread_continues(
    tmp_path: Path, broker: dict[str, str], reason: str
) -> None:
    stop = threading.Event()
    told = {name: value.format(port=free_ports(1)) for name, value in broker.items()}
    thread = ResultThread(configured(tmp_path, **told), DetectionOrder(), deliver=lambda _: None, stop=stop)
    assert (thread.notices(), thread.details()["reason"]) == ([], "")
    thread.start()
    try:
        wait_until(lambda: thread.reason, "it is told why")
        assert reason in thread.reason
        assert thread.details()["connected"] is False
        (notice,) = thread.notices()
        assert notice == "results of detectors on other hosts do not arrive: there is no connection to the broker"
        assert thread.alive
    finally:
        stop.set()
        thread.join()


def test_check_names_what_is_missing(tmp_path: Path) -> None:
    check(configured(tmp_path))
    for missing, example in (("broker", "amqp://HOST"), ("storage", "file:///FOLDER or s3://BUCKET")):
        faulty = configured(tmp_path).model_copy(update={missing: type(getattr(StreamerConfiguration(), missing))()})
        with pytest.raises(UnusableSetting) as caught:
            check(faulty)
        assert str(caught.value) == (
            f"streamer.detections is broker, and no {missing} is named: set {missing}.url to {example}"
        )
    with pytest.raises(UnusableSetting, match=r"^broker: the password's file /nowhere cannot be read"):
        check(configured(tmp_path, password_file="/nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(UnusableSetting, match=r"storage\.url"):
        check(configured(tmp_path / "file"))


@pytest.mark.slow
def test_a_streamer_without_a_broker_imports_no_broker_client() -> None:
    program = (
        "import sys, services.streamer.service, services.streamer.check; "
        "print(sorted({'aio_pika', 'aiormq', 'obstore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
