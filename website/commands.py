"""The reference of the commands, from their parsers."""

from __future__ import annotations

import argparse
import contextlib
import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

ROOT: Final = Path(__file__).parent.parent
_WIDTH: Final = "100"


class _Found(BaseException):
    """Carries the parser of a command out of it, before the command does anything."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or one below it."""

    name: str
    """As it is typed, such as ``framebus top``."""
    parser: argparse.ArgumentParser

    @property
    def options(self) -> list[argparse.Action]:
        """Its arguments and options, without ``--help`` and the commands below it."""
        hidden = (argparse._HelpAction, argparse._SubParsersAction)
        return [action for action in self.parser._actions if not isinstance(action, hidden)]


def commands() -> list[Command]:
    """Return all commands that the two distributions install, and those below them."""
    found: list[Command] = []
    for name, run in _scripts():
        found += _with_those_below(Command(name, _parser_of(run)))
        for below, run_below in getattr(getattr(run, "__self__", None), "commands", {}).items():
            found += _with_those_below(Command(f"{name} {below}", _parser_of(run_below)))
    return found


def names_of(action: argparse.Action) -> str:
    """Return an option's names, with what it takes, or an argument's name."""
    value = action.metavar if isinstance(action.metavar, str) else None
    if action.choices is not None and value is None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return value or action.dest
    takes = "" if action.nargs == 0 else f" {value or action.dest.upper()}"
    return ", ".join(f"{name}{takes}" for name in action.option_strings)


def page() -> str:
    """Return the reference as Markdown: a section for each command."""
    lines: list[str] = []
    for command in commands():
        depth = 2 if " " not in command.name else 3
        lines += [f"{'#' * depth} `{command.name}`", ""]
        lines += [(command.parser.description or "").strip(), ""] if command.parser.description else []
        lines += ["```text", _usage(command), "```", ""]
        for action in command.options:
            lines += [f"`{names_of(action)}`", f": {_help(action)}", ""]
    return "\n".join(lines)


def _usage(command: Command) -> str:
    with patch.dict(os.environ, {"COLUMNS": _WIDTH}):
        return command.parser.format_usage().removeprefix("usage: ").strip()


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    if isinstance(action, argparse._VersionAction):
        return "print the version"
    default = action.default
    told = default is None or default is False or default == argparse.SUPPRESS or str(default) in text
    words = [text, *([] if told else [f"default `{_plain(default)}`"])]
    if action.choices is not None and action.metavar is not None:
        words.append(f"one of {', '.join(map(str, action.choices))}")
    return "; ".join(words)


def _plain(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def _scripts() -> Iterator[tuple[str, Callable[[list[str]], object]]]:
    """Yield the console scripts of the library and of the services, with their functions."""
    for file in ("pyproject.toml", "services/pyproject.toml"):
        scripts = tomllib.loads((ROOT / file).read_text(encoding="utf-8"))["project"]["scripts"]
        for name, entry in scripts.items():
            module, _, attributes = entry.partition(":")
            found: Any = import_module(module)
            for attribute in attributes.split("."):
                found = getattr(found, attribute)
            yield name, found


def _parser_of(run: Callable[[list[str]], object]) -> argparse.ArgumentParser:
    """Call a command and stop it where it parses its arguments."""

    def stop(parser: argparse.ArgumentParser, *_arguments: object, **_settings: object) -> None:
        raise _Found(parser)

    with patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(SystemExit):
        try:
            run([])
        except _Found as found:
            return found.parser
    raise TypeError(f"{run!r} parses no arguments: its options cannot be listed")


def _with_those_below(command: Command) -> Iterator[Command]:
    yield command
    for action in command.parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, parser in action.choices.items():
                parser.description = parser.description or _sentence(helps.get(name) or "")
                yield from _with_those_below(Command(f"{command.name} {name}", parser))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
