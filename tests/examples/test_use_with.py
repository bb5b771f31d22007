"""The pieces of docs/use-with.md: each is run, and prints what the page says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import av
import numpy as np
import pytest
from onnx import TensorProto, helper, save

from tests.examples.terminals import BLOCK, Desk, terminal_commands
from tests.support import ROOT, lacks

PAGE: Final = ROOT / "docs/use-with.md"
STREAMS: Final = ("camera", "video")
NEEDED: Final = {
    "OpenCV": "cv2",
    "PyAV": "av",
    "torch": "torch",
    "DataLoader": "torch",
    "onnxruntime": "onnxruntime",
    "Notebooks": "IPython",
    "uvloop": "uvloop",
    "trio": "trio",
}
"""What the pieces of a heading import beside framebus."""
OPTIONAL: Final = ("torch",)
"""What the tests' environment does not promise."""
SLOW_HEADINGS: Final = ("PyAV", "torch", "DataLoader", "onnxruntime", "multiprocessing")
"""Whose pieces load big libraries, or start several processes."""
RUNS_CELLS: Final = """
import contextlib, io, json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.enable_html_pager = False
for cell in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        done = shell.run_cell(cell, store_history=True)
    done.raise_error()
    print(json.dumps(said.getvalue()), flush=True)
"""


class Piece(NamedTuple):
    """A program of the page, and what the page says it prints, if it does."""

    heading: str
    number: int
    program: str
    printed: str | None


def pieces() -> list[Piece]:
    """Return the page's programs, in their order."""
    found: list[Piece] = []
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        in_section: list[Piece] = []
        for language, content in BLOCK.findall(section):
            if language == "python":
                in_section.append(Piece(heading, len(in_section) + 1, content, None))
            else:
                assert language == "text", f"{heading} has a block that is neither a program nor what one prints"
                in_section[-1] = in_section[-1]._replace(printed=content)
        found += in_section
    return found


PIECES: Final = pieces()
PROGRAMS: Final = [one for one in PIECES if one.heading not in ("Notebooks", "pytest")]


def need(heading: str) -> None:
    """Skip, or in CI fail, where the library of the heading is not installed."""
    module = NEEDED.get(heading)
    if module is None or importlib.util.find_spec(module) is not None:
        return
    if module in OPTIONAL:
        pytest.skip(f"no {module} here: pip install {module}")
    lacks(f"no {module} here: pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def camera() -> Iterator[Desk]:
    """A desk beside a live stream, which the page calls camera; whatever the pieces do, the publisher goes on."""
    desk = Desk(f"test-{secrets.token_hex(6)}")
    try:
        publish, _ = terminal_commands(ROOT / "examples/publish_subscribe/README.md")
        publisher = desk.open(publish, "camera")
        publisher.line()
        yield desk
        publisher.interrupt()
    finally:
        desk.close()


def run(program: list[str], folder: Path, given: str = "") -> str:
    """Run a program, and return what it printed; it must print no error."""
    done = subprocess.run(
        program,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=given,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def prepare(heading: str, folder: Path) -> None:
    """Make the files that the pieces of a heading read."""
    if heading in ("OpenCV", "PyAV"):
        make_clip(folder / "clip.mp4")
    elif heading == "onnxruntime":
        make_model(folder / "model.onnx")


def make_clip(path: Path) -> None:
    """Write a video of twenty pictures."""
    with av.open(path, "w") as container:
        video = container.add_stream("mpeg4", rate=25, width=320, height=240, pix_fmt="yuv420p")
        for number in range(20):
            picture = np.full((240, 320, 3), number * 10, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(video.encode())


def make_model(path: Path) -> None:
    """Write a network that averages a picture."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 720, 1280, 3])
    mean = helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["mean"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "average", [image], [mean], [axes])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def test_the_page_has_a_piece_for_every_heading_and_says_what_most_print() -> None:
    headings = [one.heading for one in PIECES]
    assert set(NEEDED) < set(headings)
    assert {"multiprocessing", "asyncio", "pytest"} < set(headings)
    assert [one.heading for one in PROGRAMS if one.printed is None] == []
    listed = re.findall(r"\[([^\]]+)\]\(#([\w-]+)\)", PAGE.read_text().partition("\n## ")[0])
    assert [name for name, _ in listed] == list(dict.fromkeys(headings))
    assert all(name.lower() == anchor for name, anchor in listed)


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(
            one, id=f"{one.heading}-{one.number}", marks=[pytest.mark.slow] if one.heading in SLOW_HEADINGS else []
        )
        for one in PROGRAMS
    ],
)
def test_a_piece_prints_what_the_page_says(piece: Piece, camera: Desk, tmp_path: Path) -> None:
    need(piece.heading)
    prepare(piece.heading, tmp_path)
    (tmp_path / "piece.py").write_text(camera.rename(piece.program, *STREAMS))
    assert run([sys.executable, "piece.py"], tmp_path) == piece.printed


def in_a_notebook(cells: list[str], folder: Path) -> list[str]:
    """Run cells one after the other in one shell of IPython, and return what each shows."""
    program = [sys.executable, "-c", RUNS_CELLS]
    shown = [json.loads(line) for line in run(program, folder, json.dumps(cells)).splitlines()]
    return [re.sub(r"^Out\[\d+\]: ", "", one) for one in shown]


def test_the_cells_of_the_notebook(camera: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("Notebooks")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = [one for one in PIECES if one.heading == "Notebooks"]
    opening, receiving, emptying = (camera.rename(one.program, *STREAMS) for one in cells)
    # The first cell is run twice, and views are shown until the subscriber has no lease left.
    view = "subscriber.receive().pixels"
    too_many = "from framebus import TooManyLeases\ntry: subscriber.receive()\nexcept TooManyLeases: print('too many')"
    shown = in_a_notebook([opening, opening, receiving, view, view, too_many, emptying, receiving], tmp_path)
    assert shown[0] == shown[1] == ""
    assert shown[2] == cells[1].printed
    assert shown[5] == "too many\n"
    assert (cells[2].printed or "") in shown[6]
    assert shown[7] == cells[1].printed


def test_the_fixture_for_pytest(tmp_path: Path) -> None:
    (piece,) = (one for one in PIECES if one.heading == "pytest")
    failing = piece.program.replace("test_brightness", "test_failure").replace("== 7", "== 8")
    (tmp_path / "test_right.py").write_text(piece.program)
    (tmp_path / "test_wrong.py").write_text(failing)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "FAILED test_wrong.py::test_failure - assert" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
