import json
import multiprocessing
import os
import signal
import threading
from contextlib import closing
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from services.common.service import ServiceError
from services.simulator.camera import Camera, lookup
from services.simulator.clip import Clip, View
from services.simulator.config import SimulatorSection
from services.simulator.render import RenderStopped, clips_folder, render
from services.simulator.scene import Drawn, Scene, scene
from tests.services.simulator.clips import SMALL, rendered

pytestmark = pytest.mark.slow


def seen(camera: Camera, stage: Scene, canvas: np.ndarray) -> np.ndarray:
    """Return what the camera sees, computed directly, BGR."""
    return np.asarray(cv2.remap(canvas, *lookup(camera, stage.cylinder), cv2.INTER_LINEAR))


TINY = SimulatorSection(width_px=320, height_px=180, duration_s=1, walkers=3)


@pytest.fixture
def painted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scene of TINY is painted for the first test that renders it. Painting takes longer than rendering it."""
    monkeypatch.setattr("services.simulator.render.Scene", lambda _: scene(TINY))


def test_clips_look_like_the_scene(tmp_path: Path) -> None:
    section = SimulatorSection(walkers=3)
    stage = Scene(section)
    camera = stage.cameras[3]
    with closing(Clip(tmp_path / "cam3.ts", camera, stage, section.quality)) as clip:
        canvas = stage.still.copy()
        raw = []
        for index in range(2):  # a key frame, and one that depends on it
            drawn = stage.compose(index, canvas)
            clip.write(canvas, drawn)
            raw.append(seen(camera, stage, canvas))
            stage.erase(drawn, canvas)
    with av.open(str(tmp_path / "cam3.ts")) as container:
        pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert len(pictures) == len(raw)
    for picture, expected in zip(pictures, raw, strict=True):
        assert cv2.PSNR(picture, expected) > 36


def test_clips_show_the_frames_in_order() -> None:
    stage = scene(SMALL)
    with av.open(str(rendered() / "cam2.ts")) as container:
        pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert len(pictures) == SMALL.frames
    raw = []
    for index in range(20, 30):
        canvas = stage.still.copy()
        stage.compose(index, canvas)
        raw.append(seen(stage.cameras[2], stage, canvas))
    for index, picture in enumerate(pictures[20:30]):
        assert index == int(np.argmax([cv2.PSNR(picture, expected) for expected in raw]))


def test_only_moving_parts_are_computed_again_and_none_is_missed() -> None:
    stage = scene(SMALL)
    view = View(stage.cameras[1], stage)
    canvas = stage.still.copy()
    drawn = stage.compose(17, canvas)
    whole = cv2.cvtColor(seen(stage.cameras[1], stage, canvas), cv2.COLOR_BGR2YUV_I420)
    np.testing.assert_array_equal(view.frame(canvas, drawn), whole)


def test_clips_are_cheap_to_decode_and_to_cut() -> None:
    for number in range(5):
        with av.open(str(rendered() / f"cam{number}.ts")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, str(stream.average_rate)) == (640, 360, "25")
            packets = [packet for packet in container.demux(stream) if packet.size]
        assert [index for index, packet in enumerate(packets) if packet.is_keyframe] == [0, 25]
        assert all(packet.pts == packet.dts for packet in packets), "no B-frames"


def test_the_truth_describes_every_frame() -> None:
    truth = json.loads((rendered() / "truth.json").read_text())
    assert (truth["fps"], truth["frames"], len(truth["frames_objects"])) == (25, 50, 50)
    assert truth["cameras"][1] == {
        "name": "cam1",
        "yaw_deg": -36.0,
        "hfov_deg": 50.0,
        "width_px": 640,
        "height_px": 360,
    }
    stage = scene(SMALL)
    drawn = stage.compose(30, stage.still.copy())
    assert truth["frames_objects"][30] == json.loads(json.dumps(stage.truth(drawn)))


def test_a_finished_render_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = rendered()
    monkeypatch.setattr("services.simulator.render.Scene", None)
    assert render(SMALL) == folder


def test_every_setting_that_changes_the_clips_is_in_the_key(tmp_path: Path) -> None:
    assert (
        clips_folder(SMALL).name == clips_folder(SMALL.model_copy(update={"cache_dir": tmp_path, "first_port": 9})).name
    )
    for change in ({"seed": 8}, {"width_px": 642}, {"duration_s": 3.0}, {"quality": 30}, {"walkers": 2}):
        assert clips_folder(SMALL) != clips_folder(SMALL.model_copy(update=change))


@pytest.mark.long
@pytest.mark.usefixtures("painted_once")
def test_a_failed_render_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = TINY.model_copy(update={"cache_dir": tmp_path})
    write = Clip.write

    def fail(self: Clip, canvas: np.ndarray, drawn: list[Drawn]) -> None:
        if self._next == 7:
            raise RuntimeError("the encoder failed")
        write(self, canvas, drawn)

    with monkeypatch.context() as patch:
        patch.setattr(Clip, "write", fail)
        with pytest.raises(RuntimeError, match="the encoder failed"):
            render(section)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert (render(section) / "truth.json").is_file()


@pytest.mark.usefixtures("painted_once")
def test_a_stopped_render_leaves_no_file(tmp_path: Path) -> None:
    section = TINY.model_copy(update={"cache_dir": tmp_path})
    stop = threading.Event()
    stop.set()
    with pytest.raises(RenderStopped):
        render(section, stop)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def _render_and_die(section: SimulatorSection) -> None:
    write = Clip.write

    def die(self: Clip, canvas: np.ndarray, drawn: list[Drawn]) -> None:
        if self._next == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, canvas, drawn)

    Clip.write = die  # type: ignore[method-assign]
    render(section)


@pytest.mark.long
def test_files_of_a_killed_render_are_not_taken_for_complete(tmp_path: Path) -> None:
    section = TINY.model_copy(update={"cache_dir": tmp_path})
    process = multiprocessing.get_context("spawn").Process(target=_render_and_die, args=(section,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process.close()
    left = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(left) == 1
    assert left[0] != clips_folder(section)
    folder = render(section)
    assert sorted(path.name for path in folder.iterdir()) == [*(f"cam{i}.ts" for i in range(5)), "truth.json"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


@pytest.mark.usefixtures("painted_once")
def test_two_renderers_at_the_same_time_render_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = TINY.model_copy(update={"cache_dir": tmp_path})
    opened = []
    begin = Clip.__init__

    def count(self: Clip, path: Path, *rest: object) -> None:
        opened.append(path.name)
        begin(self, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Clip, "__init__", count)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(render(section))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [clips_folder(section)] * 2
    assert len(opened) == 5


def test_a_cache_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServiceError, match=r"Set simulator\.cache_dir"):
        render(TINY.model_copy(update={"cache_dir": tmp_path / "file" / "cache"}))
