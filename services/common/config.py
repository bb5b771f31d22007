"""One YAML file for all services, validated as a whole before any service starts.

Each service declares a model with the sections that it reads. :func:`load` validates the file against it and reports
all faults at once, each with the line of the file or the environment variable that it comes from.

The environment overrides the file: ``FRAMEBUS_STREAMER__PORT=9000`` sets ``streamer.port``. A value is parsed as YAML,
so that lists and numbers keep their types. A value for a text field is taken verbatim, so that a password of digits
stays text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from services.common.masking import mask_text

ENVIRONMENT_PREFIX = "FRAMEBUS_"
ENTRY_POINT_GROUP = "framebus.services"
"""Entry point group in which installed distributions declare their services."""
SHARED_SECTIONS = ("stream", "log", "broker", "storage")
"""Sections that several services share. Each service adds one section, under its own name."""
_SERVICE_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class ConfigurationError(ValueError):
    """The configuration is invalid. The message has one line for each fault."""


class Section(BaseModel):
    """Base of every section. Unknown keys are faults, and values are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")


STREAM_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$"


class StreamSection(Section):
    """The stream that the services share."""

    name: str = Field("panorama", pattern=STREAM_NAME)
    """Name of the stream, also in the names of its files in /dev/shm."""
    slots: int = Field(16, ge=3, le=255)
    """Slots of the ring: two more than all subscribers together hold at a time."""
    keep_ring: bool = False
    """Keep the ring in /dev/shm when its publisher stops, so that the next one resumes in the same memory. For
    containers, whose /dev/shm is removed with them."""
    publisher_uid: int | None = Field(None, ge=0)
    """User id of the publisher that detector and streamer accept; unset, they accept any publisher of the stream."""


class LogSection(Section):
    """How the services log, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe event that is logged."""
    format: Literal["json", "text"] = "json"
    """One JSON object per line, or text for people."""


class CommonConfiguration(BaseModel):
    """What every service reads; a service adds its own section."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stream: StreamSection = StreamSection()
    log: LogSection = LogSection()
    source: Path | None = None
    """The file that the configuration was read from; not a section."""


_RESERVED = (*SHARED_SECTIONS, "source")

C = TypeVar("C", bound=CommonConfiguration)


@cache
def declared_services() -> Mapping[str, EntryPoint]:
    """Return the entry points of the installed services, by name, without importing any of them.

    Raises:
        ConfigurationError: No service is installed, two services have the same name, or a name is not a valid name
            of a section.
    """
    declared: dict[str, EntryPoint] = {}
    faults = []
    # Sorted, so that the messages do not depend on the order in which distributions are found.
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: (entry.name, entry.value)):
        if not _SERVICE_NAME.fullmatch(entry.name) or entry.name in _RESERVED:
            faults.append(
                f"{origin_of(entry)} cannot be used: a service's name is lower-case letters, digits and single "
                f"underscores, and none of {', '.join(_RESERVED)}"
            )
        elif entry.name in declared:
            faults.append(
                f"{origin_of(entry)} has the name of {origin_of(declared[entry.name])}: uninstall one of them"
            )
        else:
            declared[entry.name] = entry
    if not declared and not faults:
        faults.append("no service is installed: install framebus-services, by whose entry points services are found")
    if faults:
        raise ConfigurationError("\n".join(map(in_one_line, faults)))
    return declared


def origin_of(entry: EntryPoint) -> str:
    """Describe an entry point and the distribution that declares it, for a message."""
    distribution = "an unnamed distribution" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
    return f"the service {entry.name!r} of {distribution} ({entry.value})"


def section_names() -> tuple[str, ...]:
    """Return the names of all sections that the file may have. A service validates the sections that it reads.

    Raises:
        ConfigurationError: As :func:`declared_services`.
    """
    return (*SHARED_SECTIONS, *declared_services())


def load(configuration_type: type[C], path: Path | None, environment: Mapping[str, str] = os.environ) -> C:
    """Read and validate the configuration.

    Args:
        configuration_type: The model with the sections to validate. Other known sections of the file are ignored.
        path: The YAML file. If it is ``None``, use the defaults and the environment alone.
        environment: Source of overrides.

    Raises:
        ConfigurationError: The file is missing, is not a YAML mapping, or has faults, each of which the message
            locates; or the installed services are invalid, as described at :func:`declared_services`.
    """
    sections = section_names()
    content, lines = _read(path) if path is not None else ({}, {})
    overridden = _override(content, environment, configuration_type)
    faults = [
        f"{_place((name,), path, lines, overridden)}: no such section; there are {', '.join(sections)}"
        for name in content
        if name not in sections
    ]
    # A section whose lines are all commented out reads as null.
    wanted = {
        name: {} if value is None else value
        for name, value in content.items()
        if name in configuration_type.model_fields and name in sections
    }
    try:
        configuration = configuration_type.model_validate({**wanted, "source": path})
    except ValidationError as error:
        found = error.errors(include_url=False)
        places = [tuple(fault["loc"]) for fault in found]
        for fault, keys in zip(found, places, strict=True):
            # Pydantic counts only valid items, so each invalid one could also make a list too short.
            if fault["type"] == "too_short" and any(keys == place[: len(keys)] != place for place in places):
                continue
            name = mask_text(".".join(map(str, keys)))  # a key may be a URL that is in the wrong place
            faults.append(f"{_place(keys, path, lines, overridden)}: {name}: {message_of(fault)}")
        raise ConfigurationError("\n".join(map(in_one_line, faults))) from None
    if faults:
        raise ConfigurationError("\n".join(map(in_one_line, faults)))
    return configuration


def in_one_line(fault: str) -> str:
    """Return a message with unprintable characters, such as line breaks, escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in fault)


Place = tuple[str | int, ...]
_QUOTED = re.compile(r"(alias|anchor|tag|handle|literal [^:]*|to float):? ['\"].*['\"]")
_KEPT = r"\1"
"""Matches the places where PyYAML quotes the file, and the part to keep: a quoted value may be a password."""
_UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, AttributeError, LookupError, TypeError)
"""Exceptions of PyYAML: its own, and others for ``2026-99-99``, ``!!timestamp x``, ``!!bool x``, ``!!int ''``."""


def _read(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"{path}: cannot be read: {reason}") from None
    try:
        content = yaml.safe_load(text)
        # The loaded values have no lines, so read the nodes too.
        lines: dict[Place, int] = {}
        _collect_lines(yaml.compose(text, Loader=yaml.SafeLoader), (), lines)
    except RecursionError:
        raise ConfigurationError(f"{path}: is not YAML: it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        # Do not use str(error): it quotes the lines around the fault, which may hold a camera's password.
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        place = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)
        raise ConfigurationError(f"{place}: is not YAML: {_QUOTED.sub(_KEPT, reason)}") from None
    except _UNREADABLE as error:
        told = isinstance(error, (yaml.YAMLError, ValueError))
        reason = " ".join(str(error).split()) if told else "a value does not fit its tag, such as !!int"
        raise ConfigurationError(f"{path}: is not YAML: {_QUOTED.sub(_KEPT, reason)}") from None
    if content is None:
        return {}, {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigurationError(f"{path}: a mapping of sections is needed: {', '.join(section_names())}")
    return content, lines


def _collect_lines(node: yaml.Node | None, keys: Place, lines: dict[Place, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*keys, str(key.value))
            lines[place] = key.start_mark.line + 1
            _collect_lines(value, place, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            place = (*keys, index)
            lines[place] = value.start_mark.line + 1
            _collect_lines(value, place, lines)


def _override(
    content: dict[str, Any], environment: Mapping[str, str], configuration_type: type[CommonConfiguration]
) -> dict[Place, str]:
    """Merge the environment's overrides into ``content``. Return the variable that set each place."""
    overridden: dict[Place, str] = {}
    sections = section_names()
    for variable, text in sorted(environment.items()):
        keys = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        # Other variables with the prefix, such as FRAMEBUS_BACKEND, are not settings.
        if not variable.startswith(ENVIRONMENT_PREFIX) or len(keys) != 2 or keys[0] not in sections:
            continue
        name, field = keys
        section = content.get(name)
        if section is None:
            section = content[name] = {}
        if isinstance(section, dict):
            section[field] = text if _is_text(configuration_type, name, field) else _read_value(text)
            overridden[name, field] = variable
    return overridden


def _is_text(configuration_type: type[CommonConfiguration], name: str, field: str) -> bool:
    section = configuration_type.model_fields.get(name)
    if section is None or not (isinstance(section.annotation, type) and issubclass(section.annotation, BaseModel)):
        return False
    found = section.annotation.model_fields.get(field)
    if found is None:
        return False
    # A field that also takes something else than text, such as a number, is parsed as YAML.
    is_union = get_origin(found.annotation) in (Union, UnionType)
    kinds = set(get_args(found.annotation)) - {type(None)} if is_union else {found.annotation}
    return kinds <= {str, SecretStr, Path}


def _read_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except _UNREADABLE:
        return text  # the validation reports it, with the variable's name


def message_of(fault: ErrorDetails) -> str:
    """Return the message of a fault that pydantic has found, without the prefix that it adds to those of validators."""
    return fault["msg"].removeprefix("Value error, ")


def _place(keys: Place, path: Path | None, lines: dict[Place, int], overridden: dict[Place, str]) -> str:
    # A key that is missing has no place of its own, so name the nearest one above it.
    for end in range(len(keys), 0, -1):
        if keys[:end] in overridden:
            return overridden[keys[:end]]
        if keys[:end] in lines:
            return f"{path}:{lines[keys[:end]]}"
    return str(path or "configuration")
