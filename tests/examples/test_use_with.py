"""The pieces of docs/use-with.md run, and print what the page says."""

from __future__ import annotations

import importlib.util
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.examples.pieces import PAGE, PIECES, PROGRAMS, WITH_TORCH, Piece, check_fixture, check_notebook, check_piece
from tests.examples.terminals import Desk, terminal_commands
from tests.support import ROOT, lacks

pytestmark = pytest.mark.slow

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


def need(heading: str) -> None:
    """Skip the test, or in CI fail it, if the library of the heading is not installed."""
    module = NEEDED.get(heading)
    if module is None or importlib.util.find_spec(module) is not None:
        return
    if heading in WITH_TORCH:
        pytest.skip(f"no {module} here: pip install {module}")
    lacks(f"no {module} here: pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def camera() -> Iterator[Desk]:
    """Return a desk with a live stream, the page's camera. The publisher continues, whatever the pieces do."""
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


@pytest.mark.parametrize("piece", [pytest.param(one, id=f"{one.heading}-{one.number}") for one in PROGRAMS])
def test_a_piece_prints_what_the_page_says(piece: Piece, camera: Desk, tmp_path: Path) -> None:
    need(piece.heading)
    check_piece(piece, camera, tmp_path)


def test_the_cells_of_the_notebook_show_what_the_page_says(camera: Desk, tmp_path: Path) -> None:
    need("Notebooks")
    check_notebook(camera, tmp_path)


def test_the_fixture_for_pytest_passes_and_fails_as_the_page_says(desk: Desk, tmp_path: Path) -> None:
    check_fixture(desk, tmp_path)
