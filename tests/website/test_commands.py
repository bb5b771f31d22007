"""The reference of the commands has every command, and every option that a command's help shows."""

from __future__ import annotations

import argparse
import re
import tomllib

import pytest

from tests.support import ROOT
from website import commands


@pytest.fixture(scope="module")
def page() -> str:
    return commands.page()


def section(page: str, name: str) -> str:
    """Return what the page says of a command."""
    return re.split(rf"^##+ `{re.escape(name)}`$", page, flags=re.MULTILINE)[1].partition("\n#")[0]


def test_every_installed_command_has_a_section(page: str) -> None:
    scripts = [
        name
        for file in ("pyproject.toml", "services/pyproject.toml")
        for name in tomllib.loads((ROOT / file).read_text())["project"]["scripts"]
    ]
    assert len(scripts) > 5
    for name in scripts:
        assert "usage" not in section(page, name), "the code block names the command alone"
        assert f"\n{name} [" in section(page, name)


def test_every_option_and_command_of_the_help_is_in_the_reference(page: str) -> None:
    named = {command.name for command in commands.commands()}
    assert {"framebus top", "framebus-stitcher probe", "framebus-relay dead-letters replay"} <= named
    for command in commands.commands():
        text = section(page, command.name)
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", command.parser.format_help())) - {"--help"}
        assert {option for option in options if f"{option}" not in re.findall(r"--[a-z-]+", text)} == set(), (
            command.name
        )
        for action in command.options:
            assert f"`{commands.names_of(action)}`\n: " in text


def test_each_argument_and_option_says_what_it_is_for(page: str) -> None:
    silent = [
        f"{command.name}: {commands.names_of(action)}"
        for command in commands.commands()
        for action in command.options
        if not action.help
    ]
    assert silent == []
    assert "`--interval S`\n: seconds between two measurements; default `1`" in page


def test_a_command_without_a_parser_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_scripts", lambda: iter([("bake", lambda _arguments: 0)]))
    with pytest.raises(TypeError, match="parses no arguments"):
        commands.commands()


def test_arguments_and_options_are_shown_as_in_the_help() -> None:
    parser = argparse.ArgumentParser()
    assert commands.names_of(parser.add_argument("file")) == "file"
    assert commands.names_of(parser.add_argument("-n", "--number", type=int)) == "-n NUMBER, --number NUMBER"
    assert commands.names_of(parser.add_argument("--way", choices=("a", "b"))) == "--way {a,b}"
    assert commands.names_of(parser.add_argument("--all", action="store_true")) == "--all"
