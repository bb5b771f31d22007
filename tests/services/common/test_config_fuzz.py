"""An arbitrary file and environment give a valid configuration or a list of all faults, and never another error."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from services.common.config import CommonConfiguration, ConfigurationError, load, section_names
from services.detector.config import DetectorConfiguration
from services.simulator.config import SimulatorConfiguration
from services.stitcher.config import StitcherConfiguration
from services.streamer.config import StreamerConfiguration
from services.supervisor.entry import SERVICE as SUPERVISOR

pytestmark = pytest.mark.slow

SECTIONS = section_names()
WHOLE = SUPERVISOR.whole_configuration()
TYPES: tuple[type[CommonConfiguration], ...] = (
    StitcherConfiguration,
    DetectorConfiguration,
    StreamerConfiguration,
    SimulatorConfiguration,
    WHOLE,
)


def fields_of(model: type[BaseModel]) -> set[str]:
    """Return the names of the model's fields, and of the fields of the models in it."""
    names = set(model.model_fields)
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= fields_of(field.annotation)
    return names


FIELDS = sorted(fields_of(WHOLE) | {"url"})
names = st.sampled_from(FIELDS) | st.text(max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=8)
    | st.dates()
    | st.datetimes()
    | st.sampled_from(["rtsp://[", "http://host:port/", "${X}", "info", "cam0", "1e999", "0x", "~"])
)
keys = names | st.none() | st.booleans() | st.integers() | st.floats() | st.dates()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
documents = st.dictionaries(st.sampled_from(SECTIONS) | names, values | st.dictionaries(names, values), max_size=5)
variables = st.builds("FRAMEBUS_{}__{}".format, st.sampled_from(SECTIONS).map(str.upper), names.map(str.upper))
texts = st.text(max_size=30) | values.map(repr)
environments = st.dictionaries(variables | st.text(max_size=12).map("FRAMEBUS_{}".format), texts, max_size=4)
types = st.sampled_from(TYPES)


@contextlib.contextmanager
def file_of(content: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


def shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def check(configuration_type: type[CommonConfiguration], path: Path | None, environment: dict[str, str]) -> list[str]:
    """Load the configuration; return the faults, each a line that begins with its place."""
    try:
        configuration = load(configuration_type, path, environment)
    except ConfigurationError as error:
        faults = str(error).splitlines()
        assert faults
        places = (f"{path}:", "configuration:", *(f"{shown(variable)}:" for variable in environment))
        for fault in faults:
            assert fault.startswith(places), fault
            assert fault == shown(fault)
        return faults
    assert isinstance(configuration, configuration_type)
    assert configuration_type.model_validate(configuration.model_dump()) == configuration
    return []


@settings(max_examples=40)
@given(types, documents, environments)
def test_a_document_of_known_words_is_valid_or_every_fault_is_named(
    kind: type[CommonConfiguration], document: Any, environment: Any
) -> None:
    with file_of(yaml.safe_dump(document, allow_unicode=True).encode()) as path:
        check(kind, path, environment)


@given(types, st.text(max_size=200).map(str.encode) | st.binary(max_size=200))
@example(StitcherConfiguration, b"stitcher: &a {cameras: [*a]}")
@example(StitcherConfiguration, b"stitcher: &a\n  x: *a\n")
@example(DetectorConfiguration, b"detector: {? [a] : b}")
@example(DetectorConfiguration, b"detector: {? {a: b} : c}")
@example(DetectorConfiguration, b"<<: 5")
@example(DetectorConfiguration, b"detector: {<<: [1]}")
@example(DetectorConfiguration, b"detector: {tile_px: 0x}")
@example(DetectorConfiguration, b"detector: {tile_px: 1:99:99999999999}")
@example(DetectorConfiguration, b"detector: !!int x")
@example(DetectorConfiguration, b"detector: {tile_px: !!int ''}")
@example(DetectorConfiguration, b"detector: {tile_px: !!float x}")
@example(DetectorConfiguration, b"detector: {tile_px: !!bool x}")
@example(DetectorConfiguration, b"detector: {tile_px: !!timestamp x}")
@example(DetectorConfiguration, b"detector: {labels: !!binary x}")
@example(DetectorConfiguration, b"detector: {labels: !!set {a, b}}")
@example(DetectorConfiguration, b"detector: {labels: !!omap [a: 1]}")
@example(DetectorConfiguration, b"detector: {tile_px: " + b"9" * 5000 + b"}")
@example(DetectorConfiguration, b"a: {}\n---\nb: {}\n")
@example(DetectorConfiguration, b"detector: {a: " * 300)
@example(DetectorConfiguration, b"detector: " + b"[" * 300 + b"]" * 300)
@example(DetectorConfiguration, b"\xff\xfe" + "detector: {}".encode("utf-16-le"))
@example(DetectorConfiguration, b"%YAML 9.9\n---\ndetector: {}\n")
@example(StreamerConfiguration, b"source: 5\nstreamer: {host: 5}\n")
@example(StreamerConfiguration, b"5: {}\nstreamer: {}\n")
def test_arbitrary_bytes_are_valid_or_every_fault_is_named(kind: type[CommonConfiguration], content: bytes) -> None:
    with file_of(content) as path:
        check(kind, path, {})


@settings(max_examples=40)
@given(types, environments)
@example(DetectorConfiguration, {"FRAMEBUS_DETECTOR__TILE_PX": "[" * 1000})
@example(DetectorConfiguration, {"FRAMEBUS_DETECTOR__TILE_PX": "9" * 5000})
@example(DetectorConfiguration, {"FRAMEBUS_DETECTOR__TILE_PX": "&a [*a]"})
@example(DetectorConfiguration, {"FRAMEBUS_DETECTOR__TILE_PX": "!!timestamp x"})
@example(DetectorConfiguration, {"FRAMEBUS_DETECTOR__TILE_PX": "{? [a] : b}"})
@example(DetectorConfiguration, {"FRAMEBUS_DETECTOR__LABELS": "!!python/name:os.system"})
@example(DetectorConfiguration, {"FRAMEBUS_DETECTOR__LABELS": "a\nb: \x01"})
def test_an_arbitrary_environment_is_valid_or_every_fault_is_named(
    kind: type[CommonConfiguration], environment: dict[str, str]
) -> None:
    check(kind, None, environment)


FAULTS = {
    "stream.slots": 2,
    "log.level": "loud",
    "stitcher.width_px": 65,
    "stitcher.feather_px": -2,
    "detector.tile_px": 10,
    "detector.nice": 40,
    "streamer.port": "high",
    "simulator.seed": -1,
    "supervisor.restarts": -1,
    "supervisor.no_such_thing": 1,
    "detector.labels": [],
}


@given(st.sets(st.sampled_from(sorted(FAULTS))), st.sets(st.sampled_from(sorted(FAULTS))))
def test_every_fault_is_named(in_file: set[str], in_environment: set[str]) -> None:
    document: dict[str, dict[str, Any]] = {}
    for place in in_file - in_environment:
        section, _, field = place.partition(".")
        document.setdefault(section, {})[field] = FAULTS[place]
    variables = {place: f"FRAMEBUS_{place.replace('.', '__').upper()}" for place in in_environment}
    with file_of(yaml.safe_dump(document).encode()) as path:
        faults = check(WHOLE, path, {variables[place]: str(FAULTS[place]) for place in in_environment})
    assert len(faults) == len(in_file | in_environment)
    for place in in_file | in_environment:
        (fault,) = (fault for fault in faults if f": {place}: " in fault)
        assert fault.startswith(variables.get(place, f"{path}:"))
