"""The service in a process of its own: it turns real frames into detections, and ends cleanly in every state."""

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
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from framebus import FrameFormat, NoFreeSlot, Publisher, Subscriber, companion_path, companion_paths, remove_leftovers
from services.common.detections import Detections, DetectionSubscriber
from services.common.status import read_status
from tests.services.detector.models.graphs import colours
from tests.services.detector.models.test_classifier import bundle
from tests.support import PATIENCE_S, ROOT, complaints, wait_until

pytestmark = pytest.mark.slow

STOP_S = 10.0


class Camera:
    """Publishes one picture repeatedly, and remembers the capture times that it gave."""

    def __init__(self, stream: str, picture: npt.NDArray[np.uint8]) -> None:
        self.captured_ns: dict[int, int] = {}
        self._stream = stream
        self._picture = picture
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish)

    def _publish(self) -> None:
        height, width, channels = self._picture.shape
        with Publisher(self._stream, FrameFormat(height=height, width=width, channels=channels), slots=6) as publisher:
            while not self._stop.wait(0.05):
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


@pytest.fixture
def start(stream: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def launch(**values: object) -> subprocess.Popen[str]:
        settings = {"instance": "detector", "max_rate_fps": "null", "stale_after_s": 60} | values
        environment = {
            **os.environ,
            "FRAMEBUS_STREAM__NAME": stream,
            **{f"FRAMEBUS_DETECTOR__{key.upper()}": str(value) for key, value in settings.items()},
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "services.detector"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str]) -> str:
    """Stop the service and return its log."""
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=STOP_S)
    assert process.returncode == 0, log
    assert complaints(log) == []
    return log


@pytest.fixture
def listener(stream: str) -> Iterator[DetectionSubscriber]:
    subscriber = DetectionSubscriber(stream)
    yield subscriber
    subscriber.close()


def heard(
    listener: DetectionSubscriber, process: subprocess.Popen[str], wanted: Callable[[Detections], bool] = bool
) -> Detections:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, process.communicate()[1]
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


def ready(stream: str, process: subprocess.Popen[str], instance: str = "detector") -> None:
    path = companion_path(stream, f"detections.{instance}.sock")
    wait_until(lambda: path.exists() or process.poll() is not None, "the detector serves")
    assert process.poll() is None, process.communicate()[1]


def own_files(stream: str) -> list[str]:
    """Return the detector's own files in /dev/shm; the others belong to the publisher."""
    return [
        path.name
        for path in companion_paths(stream, "*")
        if any(kind in path.name for kind in (".detections.", ".status.", ".sub."))
    ]


Start = Callable[..., subprocess.Popen[str]]


def test_people_are_reported_with_the_frame_and_the_names_of_the_stream(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    with Camera(stream, place) as camera:
        process = start()
        first = heard(listener, process, knows_every_tile)
        second = heard(listener, process)
        with (
            Subscriber(stream, name="test", attach_timeout_s=PATIENCE_S) as subscriber,
            subscriber.receive(PATIENCE_S) as frame,
        ):
            epoch = frame.epoch
        document = read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)
        stop(process)
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
    assert own_files(stream) == []


def test_the_detector_waits_for_the_stream_and_can_be_stopped_while_it_waits(stream: str, start: Start) -> None:
    process = start()
    ready(stream, process)
    assert not read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)["healthy"]
    stop(process)
    assert companion_paths(stream, "*") == []


def test_a_publisher_that_starts_later_is_found(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    process = start()
    ready(stream, process)
    with Camera(stream, place):
        heard(listener, process)
        stop(process)


def test_a_publisher_that_restarts_is_followed(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    process = start()
    with Camera(stream, place):
        first = heard(listener, process)
    with Camera(stream, place[:600, :900]):
        second = heard(listener, process, lambda found: found.epoch != first.epoch)
        assert (second.frame_height_px, second.frame_width_px) == (600, 900)
        assert len(second.objects) > 0
        stop(process)


def test_a_publisher_that_returns_late_is_followed(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    """It returns later than the detector waits on the old ring, which the detector must have released by then."""
    process = start()
    with Camera(stream, place):
        first = heard(listener, process)
    wait_until(lambda: not any(".sub." in name for name in own_files(stream)), "the detector has left the ring")
    with Camera(stream, place):
        heard(listener, process, lambda found: found.epoch != first.epoch)
        log = stop(process)
    assert log.count("attached") == 2


def test_the_detector_can_be_stopped_while_the_publisher_is_gone(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    process = start()
    with Camera(stream, place):
        heard(listener, process)
    time.sleep(0.3)
    stop(process)
    assert own_files(stream) == []


def test_frames_that_are_not_colour_pictures_are_rejected(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    process = start(instance="night")
    ready(stream, process, "night")
    status = companion_path(stream, "status.detector-night.sock")
    with Camera(stream, place[:, :, :1]):
        wait_until(lambda: read_status(status, PATIENCE_S)["details"]["refused"] > 2, "frames are refused")
    with Camera(stream, place):
        assert heard(listener, process).instance == "night"
        log = stop(process)
    assert log.count("frame refused") == 1


def test_the_detector_is_nice_and_keeps_to_its_rate(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    process = start(nice=7, max_rate_fps=2, track_memory_s=0)
    with Camera(stream, place):
        found = [heard(listener, process) for _ in range(3)]
        threads = [int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()]
        nice = [os.getpriority(os.PRIO_PROCESS, thread) - os.getpriority(os.PRIO_PROCESS, 0) for thread in threads]
        assert 7 in nice
        assert 0 in nice
        stop(process)
    assert {one.track_id for frame in found for one in frame.objects} == {0}
    # Frames come about ten times as fast as that.
    assert found[-1].sequence - found[0].sequence > 4


def test_a_killed_detector_can_be_replaced(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    """Its files in /dev/shm do not hinder the next detector, and listeners receive the next detector's messages."""
    with Camera(stream, place):
        killed = start()
        heard(listener, killed)
        killed.kill()
        killed.wait()
        last_ns = time.monotonic_ns()
        process = start()
        heard(listener, process, lambda found: found.detected_ns > last_ns)
        assert read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)["healthy"]
        stop(process)
        remove_leftovers(stream)  # the record of the killed detector as a subscriber


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_objects_keep_their_numbers_when_the_detector_restarts(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8], end: signal.Signals
) -> None:
    with Camera(stream, place):
        first = start(track_memory_s=60)
        # A killed detector may have saved a track that it had not published yet.
        before = heard(listener, first, settled())
        first.send_signal(end)
        first.wait()
        second = start(track_memory_s=60)
        is_settled = settled()
        after = heard(listener, second, lambda found: found.detected_ns > before.detected_ns and is_settled(found))
        stop(second)
        remove_leftovers(stream)  # the record of the killed detector as a subscriber
    assert after.tracker == before.tracker
    assert len(before.objects) >= 5
    assert {one.track_id for one in after.objects} == {one.track_id for one in before.objects}


def test_two_instances_can_serve_one_stream_but_an_instance_runs_only_once(
    stream: str, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    day, night = start(instance="day"), start(instance="night")
    ready(stream, day, "day")
    ready(stream, night, "night")
    again = start(instance="day")
    _, log = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 1
    assert "this service runs already" in log
    assert complaints(log) == []
    with Camera(stream, place):
        heard(listener, day, lambda found: found.instance == "day")
        heard(listener, night, lambda found: found.instance == "night")
        stop(day)
        stop(night)


@pytest.mark.parametrize(("model", "told"), [("nowhere.onnx", "cannot be read"), ("README", "not a usable ONNX file")])
def test_an_unusable_model_is_reported_in_one_sentence(tmp_path: Path, start: Start, model: str, told: str) -> None:
    (tmp_path / "README").write_text("no model")
    process = start(model=tmp_path / model)
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert told in log
    assert complaints(log) == []


def test_a_classifier_adds_a_class_to_each_person(
    stream: str, tmp_path: Path, start: Start, listener: DetectionSubscriber, place: npt.NDArray[np.uint8]
) -> None:
    path = bundle(tmp_path / "b", colours(tmp_path / "c.onnx"), applies_to=["person"], score_threshold=0.1)
    with Camera(stream, place):
        process = start(classifier=path)
        found = heard(
            listener,
            process,
            lambda found: len(found.objects) > 4 and all(one.sub_class for one in found.objects[:5]),
        )
        details = read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)["details"]
        log = stop(process)
    assert {one.sub_class for one in found.objects[:5]} <= {"red", "green", "blue"}
    assert all(0.1 <= (one.sub_score or 0) <= 1 for one in found.objects[:5])
    assert (details["classifier"], details["classifier_fault"], details["rejected_crops"]) == ("colours 1.5", None, 0)
    assert details["crops"] >= 5
    assert "classifier loaded" in log


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"files": {"c.onnx": "0" * 64}}, "is not the file that bundle.yaml describes"),
        ({"applies_to": ["helmet"]}, "applies to helmet, which the detector's model does not know"),
        ({"classes": ["red"]}, "has 3 classes, but 1 names are given"),
        (None, "cannot be read"),
    ],
)
def test_without_a_usable_classifier_detection_continues(  # the fixtures, and two parameters
    stream: str,
    tmp_path: Path,
    start: Start,
    listener: DetectionSubscriber,
    place: npt.NDArray[np.uint8],
    values: dict[str, object] | None,
    told: str,
) -> None:
    path = tmp_path / "nowhere"
    if values is not None:
        path = bundle(tmp_path / "b", colours(tmp_path / "c.onnx"), **values)
    with Camera(stream, place):
        process = start(classifier=path)
        found = heard(listener, process, lambda found: len(found.objects) > 4)
        details = read_status(companion_path(stream, "status.detector.sock"), PATIENCE_S)["details"]
        log = stop(process)
    assert {one.sub_class for one in found.objects} == {None}
    assert told in details["classifier_fault"]
    assert details["classifier"] is None
    assert log.count(told) == 1
    checked = subprocess.run(
        [sys.executable, "-m", "services.detector", "--check"], check=False, cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"FRAMEBUS_DETECTOR__CLASSIFIER": str(path)}, timeout=PATIENCE_S,
    )  # fmt: skip
    assert checked.returncode == 2
    assert told in checked.stdout + checked.stderr


def run_on(recording: Path, stream: str, **values: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "FRAMEBUS_STREAM__NAME": stream,
        "FRAMEBUS_DETECTOR__SOURCE": recording.as_uri(),
        **values,
    }
    arguments = [sys.executable, "-m", "services.detector"]
    return subprocess.run(
        arguments, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )


def test_every_tile_of_every_frame_of_a_recording_is_looked_at(
    stream: str, tmp_path: Path, place: npt.NDArray[np.uint8]
) -> None:
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), place)
    (tmp_path / "frames.jsonl").write_text(
        "".join(f'{{"sequence": {number * 3}, "epoch": 4, "captured_ns": {number * 10**8}}}\n' for number in range(5))
    )
    ended = run_on(tmp_path, stream, FRAMEBUS_DETECTOR__INSTANCE="night")
    assert (ended.returncode, complaints(ended.stderr)) == (0, [])
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(one["sequence"], one["epoch"], one["captured_ns"]) for one in told] == [
        (number * 3, 4, number * 10**8) for number in range(5)
    ]
    assert {(one["version"], one["stream"], one["instance"]) for one in told} == {(2, stream, "night")}
    assert {tile["age_ms"] for one in told for tile in one["tiles"]} == {0.0}
    people = [sum(found["class"] == "person" for found in one["objects"]) for one in told]
    assert min(people) >= 5
    assert len({tuple(sorted(found["track"] for found in one["objects"])) for one in told}) == 1
    assert own_files(stream) == []


def test_each_person_of_a_recording_is_classified_in_each_frame(
    stream: str, tmp_path: Path, place: npt.NDArray[np.uint8]
) -> None:
    recording = tmp_path / "recording"
    recording.mkdir()
    for number in range(2):
        cv2.imwrite(str(recording / f"{number}.png"), place)
    path = bundle(tmp_path / "b", colours(tmp_path / "c.onnx"), applies_to=["person"], score_threshold=0.1)
    ended = run_on(recording, stream, FRAMEBUS_DETECTOR__CLASSIFIER=str(path))
    assert (ended.returncode, complaints(ended.stderr)) == (0, [])
    people = [one for line in ended.stdout.splitlines() for one in json.loads(line)["objects"]
              if one["class"] == "person"]  # fmt: skip
    assert len(people) >= 10
    assert {one["sub_class"] for one in people} <= {"red", "green", "blue"}


def test_an_unreadable_recording_is_reported_in_one_sentence(stream: str, tmp_path: Path) -> None:
    ended = run_on(tmp_path / "nowhere", stream, FRAMEBUS_LOG__FORMAT="text")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1].endswith("does not exist: name a folder with pictures, or a video")
    (tmp_path / "1.png").write_bytes(b"no picture")
    ended = run_on(tmp_path, stream, FRAMEBUS_LOG__FORMAT="text")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "1.png is not a picture that can be read" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
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
