"""Runs the pieces of docs/use-with.md; the interpreter may be that of another environment."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import av
import numpy as np
from onnx import TensorProto, helper, save

from tests.examples.terminals import BLOCK, Desk
from tests.support import ROOT

PAGE: Final = ROOT / "docs/use-with.md"
STREAMS: Final = ("camera", "video")
NOT_PROGRAMS: Final = ("Notebooks", "pytest")
"""Headings whose pieces are cells, or tests."""
WITH_TORCH: Final = ("torch", "DataLoader")
"""Headings whose pieces need torch, which the tests' environment does not promise."""
RUNS_CELLS: Final = """
import contextlib, io, json, os, sys
os.environ["IPYTHONDIR"] = os.getcwd()  # and not the user's own history
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
    """A program of the page, and the output that the page shows, if any."""

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
PROGRAMS: Final = [one for one in PIECES if one.heading not in NOT_PROGRAMS]


def run(desk: Desk, arguments: list[str], folder: Path, given: str = "") -> str:
    """Run the desk's interpreter, and return what it printed; it must print no error."""
    done = subprocess.run(
        [*desk.python, *arguments],
        cwd=folder,
        env=desk.environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def check_piece(piece: Piece, desk: Desk, folder: Path) -> None:
    """Run a piece with a live stream that the desk calls camera, and check that it prints what the page says."""
    prepare(piece.heading, folder)
    (folder / "piece.py").write_text(desk.rename(piece.program, *STREAMS))
    assert run(desk, ["piece.py"], folder) == piece.printed


def in_a_notebook(desk: Desk, cells: list[str], folder: Path) -> list[str]:
    """Run cells one after another in one shell of IPython, and return what each shows."""
    shown = [json.loads(line) for line in run(desk, ["-c", RUNS_CELLS], folder, json.dumps(cells)).splitlines()]
    return [re.sub(r"^Out\[\d+\]: ", "", one) for one in shown]


def check_notebook(desk: Desk, folder: Path) -> None:
    """Run the cells of the notebook, and the cells that the page warns of."""
    cells = [one for one in PIECES if one.heading == "Notebooks"]
    opening, receiving, emptying = (desk.rename(one.program, *STREAMS) for one in cells)
    # The first cell is run twice, and views are shown until the subscriber has no lease left.
    view = "subscriber.receive().pixels"
    too_many = "from framebus import TooManyLeases\ntry: subscriber.receive()\nexcept TooManyLeases: print('too many')"
    shown = in_a_notebook(desk, [opening, opening, receiving, view, view, too_many, emptying, receiving], folder)
    assert shown[0] == shown[1] == ""
    assert shown[2] == cells[1].printed
    assert shown[5] == "too many\n"
    assert cells[2].printed is not None
    assert shown[6].endswith(cells[2].printed)
    assert shown[7] == cells[1].printed


def check_fixture(desk: Desk, folder: Path) -> None:
    """Run the page's test with the fixture, and a test that fails."""
    (piece,) = (one for one in PIECES if one.heading == "pytest")
    failing = piece.program.replace("test_brightness", "test_failure").replace("== 7", "== 8")
    (folder / "test_right.py").write_text(piece.program)
    (folder / "test_wrong.py").write_text(failing)
    done = subprocess.run(
        [*desk.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."],
        cwd=folder,
        env={**desk.environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "FAILED test_wrong.py::test_failure - assert" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def prepare(heading: str, folder: Path) -> None:
    """Create the files that the pieces of a heading read."""
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
