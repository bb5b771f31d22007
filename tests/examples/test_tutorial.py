"""What the tutorial names; test_packaging.py works through all its steps with the wheel."""

from __future__ import annotations

from tests.examples import tutorial
from tests.support import ROOT


def test_the_tutorials_last_command_is_a_target_of_the_makefile() -> None:
    last = tutorial.COMMAND_BLOCKS[-1]
    assert last == ["make demo"]
    assert "\ndemo: install ##" in (ROOT / "Makefile").read_text()


def test_the_tutorials_first_commands_install_extras_of_pyproject() -> None:
    assert tutorial.COMMAND_BLOCKS[0][-1] == "pip install '.[snapshot]'"
    assert "\nsnapshot = [" in (ROOT / "pyproject.toml").read_text()
