"""The tutorial, step by step: its programs, its commands, and their output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples import tutorial
from tests.examples.terminals import NewDesk
from tests.support import ROOT


@pytest.mark.slow
def test_every_step_of_the_tutorial_works(new_desk: NewDesk, tmp_path: Path) -> None:
    tutorial.run(new_desk(folder=tmp_path))


def test_the_tutorials_last_command_is_a_target_of_the_makefile() -> None:
    last = tutorial.COMMAND_BLOCKS[-1]
    assert last == ["make demo"]
    assert "\ndemo: install ##" in (ROOT / "Makefile").read_text()


def test_the_tutorials_first_commands_install_extras_of_pyproject() -> None:
    assert tutorial.COMMAND_BLOCKS[0][-1] == "pip install '.[snapshot]'"
    assert "\nsnapshot = [" in (ROOT / "pyproject.toml").read_text()
