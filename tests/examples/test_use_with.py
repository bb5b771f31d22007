"""The pieces of docs/use-with.md: each is run, and prints what the page says."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.examples.pieces import PAGE, PIECES, PROGRAMS, STREAMS, WITH_TORCH, Piece, check_piece, in_a_notebook
from tests.examples.terminals import Desk, terminal_commands
from tests.support import ROOT, lacks

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
SLOW_HEADINGS: Final = ("PyAV", "torch", "DataLoader", "onnxruntime", "multiprocessing")
"""Whose pieces load big libraries, or start several processes."""


def need(heading: str) -> None:
    """Skip, or in CI fail, where the library of the heading is not installed."""
    module = NEEDED.get(heading)
    if module is None or importlib.util.find_spec(module) is not None:
        return
    if heading in WITH_TORCH:
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
    check_piece(piece, camera, tmp_path)


def test_the_cells_of_the_notebook(camera: Desk, tmp_path: Path) -> None:
    need("Notebooks")
    cells = [one for one in PIECES if one.heading == "Notebooks"]
    opening, receiving, emptying = (camera.rename(one.program, *STREAMS) for one in cells)
    # The first cell is run twice, and views are shown until the subscriber has no lease left.
    view = "subscriber.receive().pixels"
    too_many = "from framebus import TooManyLeases\ntry: subscriber.receive()\nexcept TooManyLeases: print('too many')"
    shown = in_a_notebook(camera, [opening, opening, receiving, view, view, too_many, emptying, receiving], tmp_path)
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
