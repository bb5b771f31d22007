"""The service turns real frames into detections, and ends cleanly in every state.

It runs in a thread of the test, because a process takes seconds to start, except where the test is about its process:
its signals, nice value, death and output.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from framebus import FrameFormat, NoFreeSlot, Publisher, Subscriber, companion_path, companion_paths, remove_leftovers
from services.common.detections import Detections, DetectionSubscriber
from services.common.service import EXIT_USAGE, ServiceError, UnusableSetting
from services.common.status import read_status
from services.detector import service
from services.detector.config import DetectorConfiguration
from services.detector.entry import SERVICE
from tests.services.detector.models.graphs import colours
from tests.services.detector.models.test_classifier import bundle
from tests.support import PATIENCE_S, ROOT, complaints, wait_until

pytestmark = pytest.mark.slow

STOP_S = 10.0


class Camera:
    """Publishes one picture repeatedly, every ``period_s``, and remembers the capture times that it gave."""

    def __init__(self, stream: str, picture: npt.NDArray[np.uint8], *, period_s: float = 0.05, frames: int = 0) -> None:
        """Publish ``frames`` pictures; 0 for no limit. The stream remains open afterwards."""
        self._period_s, self._frames = period_s, frames
        self.captured_ns: dict[int, int] = {}
        self._stream = stream
        self._picture = picture
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish)

    def _publish(self) -> None:
        height, width, channels = self._picture.shape
        with Publisher(self._stream, FrameFormat(height=height, width=width, channels=channels), slots=6) as publisher:
            while not self._stop.wait(self._period_s):
                if self._frames and len(self.captured_ns) == self._frames:
                    continue
                with contextlib.suppress(NoFreeSlot):
                    captured_ns = time.monotonic_ns() - 1_000_000
                    with publisher.loan() as loan:
                        loan.pixels[...] = self._picture
                        loan.captured_ns = captured_ns
                    assert loan.sequence is not None
                    self.captured_ns[loan.sequence] = captured_ns

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()


def settings_of(stream: str, **values: object) -> dict[str, str]:
    """Return the environment variables of a detector that processes as many frames as it can."""
    settings = {"instance": "detector", "max_rate_fps": "null", "stale_after_s": 60} | values
    return {
        "FRAMEBUS_STREAM__NAME": stream,
        **{f"FRAMEBUS_DETECTOR__{key.upper()}": str(value) for key, value in settings.items()},
    }


def configured(stream: str, **values: object) -> DetectorConfiguration:
    return SERVICE.load(None, settings_of(stream, **values))


class Detector(Protocol):
    """A detector that runs."""

    def check(self) -> None:
        """Raise an error if it has ended."""


class InProcess:
    """A detector in a process."""

    def __init__(self, stream: str, **values: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.detector"],
            cwd=ROOT,
            env={**os.environ, **settings_of(stream, **values)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def check(self) -> None:
        assert self.process.poll() is None, self.process.communicate()[1]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=STOP_S)
        assert self.process.returncode == 0, log
        assert complaints(log) == []

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


class InThread:
    """A detector in a thread."""

    def __init__(self, stream: str, **values: object) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._running = self._pool.submit(service.main, configured(stream, **values), self._stop)

    def check(self) -> None:
        assert not self._running.done(), self._running.exception()

    def stop(self) -> None:
        self._stop.set()
        self._pool.shutdown()
        self._running.result()


Kind = TypeVar("Kind", InProcess, InThread)


def starts(kind: Callable[..., Kind], end: Callable[[Kind], None]) -> Iterator[Callable[..., Kind]]:
    """Yield a function that starts a detector of this kind, and end all that it has started."""
    started: list[Kind] = []

    def launch(**values: object) -> Kind:
        started.append(kind(**values))
        return started[-1]

    yield launch
    for detector in started:
        end(detector)


@pytest.fixture
def start_process(stream: str) -> Iterator[Callable[..., InProcess]]:
    """Starts the service in a process; what still runs at the end of the test is killed."""
    yield from starts(partial(InProcess, stream), InProcess.kill)


@pytest.fixture
def start(stream: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., InThread]]:
    """Starts the service in a thread; what still runs at the end of the test is stopped."""
    monkeypatch.setattr(service, "SLICE_S", 0.02)  # so that a stop takes no quarter of a second
    yield from starts(partial(InThread, stream), InThread.stop)


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    """What the detectors in threads log."""
    with capture_logs() as events:
        yield events


def told(log: list[EventDict], event: str) -> list[EventDict]:
    """Return the events of this name."""
    return [one for one in log if one["event"] == event]


@pytest.fixture
def listener(stream: str) -> Iterator[DetectionSubscriber]:
    subscriber = DetectionSubscriber(stream)
    yield subscriber
    subscriber.close()


def heard(listener: DetectionSubscriber, detector: Detector, wanted: Callable[[Detections], bool] = bool) -> Detections:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        detector.check()
        listener.look_for_detectors()
        for detections in listener.receive(0.1):
            if wanted(detections):
                return detections
    raise AssertionError("the wanted detections never came")


def knows_every_tile(detections: Detections) -> bool:
    """Return whether the detector has processed every tile by now."""
    return bool(detections.tiles) and all(tile.age_ms is not None for tile in detections.tiles)


def settled() -> Callable[[Detections], bool]:
    """Return a condition: every tile has been processed, and the tracks have been the same for a second."""
    tracks: set[int] = set()
    since_ns = 0

    def is_settled(detections: Detections) -> bool:
        nonlocal tracks, since_ns
        if (now := {one.track_id for one in detections.objects}) != tracks or not knows_every_tile(detections):
            tracks, since_ns = now, detections.detected_ns
        return detections.detected_ns - since_ns > 10**9

    return is_settled


def ready(stream: str, detector: Detector, instance: str = "detector") -> None:
    path = companion_path(stream, f"detections.{instance}.sock")

    def serves() -> bool:
        detector.check()
        return path.exists()

    wait_until(serves, "the detector serves")


def own_files(stream: str) -> list[str]:
    """Return the detector's own files in /dev/shm; the others belong to the publisher."""
    return [
        path.name
        for path in companion_paths(stream, "*")
        if any(kind in path.name for kind in (".detections.", ".status.", ".sub."))
    ]


Start = Callable[..., InThread]
StartProcess = Callable[..., InProcess]


def test_people_are_reported_with_the_frame_and_the_names_of_the_stream(
    stream: str, start_process: StartProcess, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    with Camera(stream, place) as camera:
        detector = start_process(nice=7)
        first = heard(listener, detector, knows_every_tile)
        second = heard(listener, detector)
        with (
            Subscriber(stream, name="test", attach_timeout_s=PATIENCE_S) as subscriber,
            subscriber.receive(PATIENCE_S) as frame,
        ):
            epoch = frame.epoch
        document = read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)
        threads = [int(path.name) for path in Path(f"/proc/{detector.process.pid}/task").iterdir()]
        nice = [os.getpriority(os.PRIO_PROCESS, thread) - os.getpriority(os.PRIO_PROCESS, 0) for thread in threads]
        detector.stop()
    for found in (first, second):
        assert (found.stream, found.instance, found.epoch) == (stream, "detector", epoch)
        assert found.captured_ns == camera.captured_ns[found.sequence]
        assert found.detected_ns > found.captured_ns
        assert (found.frame_height_px, found.frame_width_px) == (688, 1152)
        people = [one for one in found.objects if one.label == "person"]
        assert len(people) >= 5
        assert [one.score for one in found.objects] == sorted((one.score for one in found.objects), reverse=True)
    assert second.sequence > first.sequence
    assert {one.track_id for one in first.objects} == {one.track_id for one in second.objects} != {0}
    assert document["healthy"]
    assert document["stages"]["detect"]["frames"] >= 2
    assert document["stages"]["detect"]["latency_p50_ms"] > 0
    assert document["details"]["model"] == "nanodet-g-480"
    assert document["details"]["format"] == "nanodet-decoded"
    assert document["details"]["provider"] == "CPUExecutionProvider"
    assert document["details"]["rejected_boxes"] == 0
    assert document["details"]["tiles"] == 2
    assert document["details"]["objects"] >= 5
    assert document["details"]["tile_ms"] > 0
    assert 7 in nice, "the detection thread"
    assert 0 in nice, "the thread that answers with the status"
    assert own_files(stream) == []


def test_a_result_is_published_with_a_newer_frame_than_the_model_saw(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    detector = start(cpu_share="null", max_rate_fps=1000)
    # The model takes longer than the time between two of these frames.
    with Camera(stream, place, period_s=0.01) as camera:
        heard(listener, detector, knows_every_tile)
        found = [heard(listener, detector) for _ in range(5)]
        detector.stop()
    sequences = [one.sequence for one in found]
    assert sequences == sorted(set(sequences))
    for one in found:
        assert one.captured_ns == camera.captured_ns[one.sequence]
        assert all(tile.age_ms is not None and tile.age_ms >= 10 for tile in one.tiles)
        assert all(thing.age_ms >= 10 for thing in one.objects)
        assert len(one.objects) >= 5


@pytest.mark.parametrize("values", [{}, {"mode": "every"}])
def test_without_a_budget_a_result_is_published_with_its_own_frame(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8], values: dict[str, object]
) -> None:
    detector = start(cpu_share="null", **values)
    with Camera(stream, place, period_s=0.01):
        found = [heard(listener, detector) for _ in range(3)]
        detector.stop()
    assert {one.age_ms for frame in found for one in frame.objects} == {0}


def test_the_results_of_the_last_frames_are_published(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    detector = start(cpu_share="null", max_rate_fps=1000)
    # Two frames show the rate, so that a third one seems to be due while the model runs.
    with Camera(stream, place, period_s=0.01, frames=3):
        assert heard(listener, detector, lambda one: one.sequence == 3).objects
        detector.stop()


def test_a_result_does_not_wait_for_a_frame_of_a_slow_stream(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    detector = start(cpu_share="null", max_rate_fps=1000)
    with Camera(stream, place, period_s=1.0):
        found = [heard(listener, detector) for _ in range(3)]
        detector.stop()
    assert all(one.detected_ns - one.captured_ns < 10**9 for one in found)
    assert {thing.age_ms for one in found for thing in one.objects} == {0}


def test_the_detector_waits_for_the_stream_and_can_be_stopped_while_it_waits(stream: str, start: Start) -> None:
    detector = start()
    ready(stream, detector)
    assert not read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)["healthy"]
    detector.stop()
    assert companion_paths(stream, "*") == []


def test_a_publisher_that_starts_later_is_found(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    detector = start()
    ready(stream, detector)
    with Camera(stream, place):
        heard(listener, detector)
        detector.stop()


def test_a_publisher_that_restarts_is_followed(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    detector = start()
    with Camera(stream, place):
        first = heard(listener, detector)
    with Camera(stream, place[:600, :900]):
        second = heard(listener, detector, lambda found: found.epoch != first.epoch)
        assert (second.frame_height_px, second.frame_width_px) == (600, 900)
        assert len(second.objects) > 0
        detector.stop()


def test_a_publisher_that_returns_late_is_followed(
    stream: str,
    start: Start,
    listener: DetectionSubscriber,
    place: npt.NDArray[np.uint8],
    log: list[EventDict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It returns later than the detector waits on the old ring, which the detector must have released by then."""
    monkeypatch.setattr(service, "GONE_AFTER_S", 0.2)
    detector = start()
    with Camera(stream, place):
        first = heard(listener, detector)
    wait_until(lambda: not any(".sub." in name for name in own_files(stream)), "the detector has left the ring")
    with Camera(stream, place):
        heard(listener, detector, lambda found: found.epoch != first.epoch)
        detector.stop()
    assert len(told(log, "attached")) == 2


def test_the_detector_can_be_stopped_while_the_publisher_is_gone(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    detector = start()
    with Camera(stream, place):
        heard(listener, detector)
    time.sleep(0.3)
    detector.stop()
    assert own_files(stream) == []


def test_frames_that_are_not_colour_pictures_are_rejected(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8], log: list[EventDict]
) -> None:
    detector = start(instance="night")
    ready(stream, detector, "night")
    status = companion_path(stream, "status.detector-night.sock")
    with Camera(stream, place[:, :, :1]):
        wait_until(lambda: read_status(status, PATIENCE_S)["details"]["refused"] > 2, "frames are refused")
    with Camera(stream, place):
        assert heard(listener, detector).instance == "night"
        detector.stop()
    assert len(told(log, "frame refused")) == 1


def test_the_detector_keeps_to_its_rate(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    detector = start(max_rate_fps=2, track_memory_s=0)
    with Camera(stream, place):
        found = [heard(listener, detector) for _ in range(3)]
        detector.stop()
    assert {one.track_id for frame in found for one in frame.objects} == {0}
    # Frames come about ten times as fast as that.
    assert found[-1].sequence - found[0].sequence > 4


@pytest.mark.long
def test_objects_keep_their_numbers_when_the_detector_is_killed_or_restarts(
    stream: str, start_process: StartProcess, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    """A killed detector's files in /dev/shm do not hinder the next one, and listeners receive its messages."""

    def settled_after(begin_ns: int, detector: InProcess) -> Detections:
        # A killed detector may have saved a track that it had not published yet.
        is_settled = settled()
        return heard(listener, detector, lambda found: found.detected_ns > begin_ns and is_settled(found))

    with Camera(stream, place):
        detector = start_process(track_memory_s=60)
        before = settled_after(0, detector)
        for end in (InProcess.kill, InProcess.stop):
            end(detector)
            ended_ns = time.monotonic_ns()
            detector = start_process(track_memory_s=60)
            after = settled_after(ended_ns, detector)
            assert after.tracker == before.tracker
            assert len(before.objects) >= 5
            assert {one.track_id for one in after.objects} == {one.track_id for one in before.objects}
            assert read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)["healthy"]
        detector.stop()
        remove_leftovers(stream)  # the record of the killed detector as a subscriber


def test_two_instances_can_serve_one_stream_but_an_instance_runs_only_once(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    day, night = start(instance="day"), start(instance="night")
    ready(stream, day, "day")
    ready(stream, night, "night")
    with pytest.raises(ServiceError, match="this service runs already"):
        service.main(configured(stream, instance="day"), threading.Event())
    with Camera(stream, place):
        heard(listener, day, lambda found: found.instance == "day")
        heard(listener, night, lambda found: found.instance == "night")
        day.stop()
        night.stop()


@pytest.mark.parametrize(
    ("model", "reason"), [("nowhere.onnx", "cannot be read"), ("README", "not a usable ONNX file")]
)
def test_an_unusable_model_is_reported(stream: str, tmp_path: Path, model: str, reason: str) -> None:
    (tmp_path / "README").write_text("no model")
    with pytest.raises(UnusableSetting, match=reason):
        service.main(configured(stream, model=tmp_path / model), threading.Event())


def test_a_classifier_adds_a_class_to_each_person(
    stream: str,
    tmp_path: Path,
    start: Start,
    listener: DetectionSubscriber,
    place: npt.NDArray[np.uint8],
    log: list[EventDict],
) -> None:
    path = bundle(tmp_path / "b", colours(tmp_path / "c.onnx"), applies_to=["person"], score_threshold=0.1)
    with Camera(stream, place):
        detector = start(classifier=path)
        found = heard(
            listener,
            detector,
            lambda found: len(found.objects) > 4 and all(one.sub_class for one in found.objects[:5]),
        )
        details = read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)["details"]
        detector.stop()
    assert {one.sub_class for one in found.objects[:5]} <= {"red", "green", "blue"}
    assert all(0.1 <= (one.sub_score or 0) <= 1 for one in found.objects[:5])
    assert (details["classifier"], details["classifier_fault"], details["rejected_crops"]) == ("colours 1.5", None, 0)
    assert details["crops"] >= 5
    assert len(told(log, "classifier loaded")) == 1


UNUSABLE: dict[str, dict[str, object] | None] = {
    "is not the file that bundle.yaml describes": {"files": {"c.onnx": "0" * 64}},
    "applies to helmet, which the detector's model does not know": {"applies_to": ["helmet"]},
    "has 3 classes, but 1 names are given": {"classes": ["red"]},
    "cannot be read": None,
}


@pytest.mark.parametrize(("reason", "values"), UNUSABLE.items(), ids=UNUSABLE)
def test_an_unusable_classifier_is_a_fault(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reason: str,
    values: dict[str, object] | None,
) -> None:
    path = tmp_path / "nowhere"
    if values is not None:
        path = bundle(tmp_path / "b", colours(tmp_path / "c.onnx"), **values)
    monkeypatch.setenv("FRAMEBUS_DETECTOR__CLASSIFIER", str(path))
    assert SERVICE.main(["--check"]) == EXIT_USAGE
    assert reason in capsys.readouterr().err


def test_without_a_usable_classifier_detection_continues(
    stream: str,
    tmp_path: Path,
    start: Start,
    listener: DetectionSubscriber,
    place: npt.NDArray[np.uint8],
    log: list[EventDict],
) -> None:
    with Camera(stream, place):
        detector = start(classifier=tmp_path / "nowhere")
        found = heard(listener, detector, lambda found: len(found.objects) > 4)
        details = read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)["details"]
        detector.stop()
    assert {one.sub_class for one in found.objects} == {None}
    assert "cannot be read" in details["classifier_fault"]
    assert details["classifier"] is None
    assert ["cannot be read" in one.get("reason", "") for one in log].count(True) == 1


def run_on(recording: Path, stream: str, **values: object) -> None:
    """Process a recording; its detections are printed."""
    service.main(configured(stream, source=recording.as_uri(), **values), threading.Event())


Captured = pytest.CaptureFixture[str]


def printed(capsys: Captured) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.usefixtures("log")
def test_every_tile_of_every_frame_of_a_recording_is_looked_at(
    stream: str, tmp_path: Path, place: npt.NDArray[np.uint8], capsys: Captured
) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), place)
    (tmp_path / "frames.jsonl").write_text(
        "".join(f'{{"sequence": {number * 3}, "epoch": 4, "captured_ns": {number * 10**8}}}\n' for number in range(3))
    )
    run_on(tmp_path, stream, instance="night")
    seen = printed(capsys)
    assert [(one["sequence"], one["epoch"], one["captured_ns"]) for one in seen] == [
        (number * 3, 4, number * 10**8) for number in range(3)
    ]
    assert {(one["version"], one["stream"], one["instance"]) for one in seen} == {(2, stream, "night")}
    assert {tile["age_ms"] for one in seen for tile in one["tiles"]} == {0.0}
    people = [sum(found["class"] == "person" for found in one["objects"]) for one in seen]
    assert min(people) >= 5
    assert len({tuple(sorted(found["track"] for found in one["objects"])) for one in seen}) == 1
    assert own_files(stream) == []


@pytest.mark.usefixtures("log")
def test_each_person_of_a_recording_is_classified_in_each_frame(
    stream: str, tmp_path: Path, place: npt.NDArray[np.uint8], capsys: Captured
) -> None:
    recording = tmp_path / "recording"
    recording.mkdir()
    for number in range(2):
        cv2.imwrite(str(recording / f"{number}.png"), place)
    path = bundle(tmp_path / "b", colours(tmp_path / "c.onnx"), applies_to=["person"], score_threshold=0.1)
    run_on(recording, stream, classifier=path)
    people = [one for frame in printed(capsys) for one in frame["objects"] if one["class"] == "person"]
    assert len(people) >= 10
    assert {one["sub_class"] for one in people} <= {"red", "green", "blue"}


@pytest.mark.usefixtures("log")
def test_an_unreadable_recording_is_reported(stream: str, tmp_path: Path, capsys: Captured) -> None:
    with pytest.raises(UnusableSetting, match=r"does not exist: name a folder with pictures, or a video$"):
        run_on(tmp_path / "nowhere", stream)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(ServiceError, match=r"1\.png is not a picture that can be read"):
        run_on(tmp_path, stream)
    assert printed(capsys) == []
    assert own_files(stream) == []


def test_the_reader_of_the_output_may_end_first(stream: str, tmp_path: Path) -> None:
    for number in range(20):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((64, 64, 3), np.uint8))
    command = f"{sys.executable} -m services.detector | head -n 1"
    environment = {**os.environ, "FRAMEBUS_STREAM__NAME": stream, "FRAMEBUS_DETECTOR__SOURCE": tmp_path.as_uri()}
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (ended.returncode, len(ended.stdout.splitlines()), complaints(ended.stderr)) == (0, 1, [])
