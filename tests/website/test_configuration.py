"""The reference of the configuration has every key, and each key says what it is for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, Field

from services.common.config import Section, load
from services.streamer.config import StreamerConfiguration
from tests.support import ROOT
from website import configuration

pytestmark = pytest.mark.slow


def keys_of(model: type[BaseModel], path: str) -> Iterator[str]:
    """Yield the paths of a model's fields, and of the models below them."""
    for name, field in model.model_fields.items():
        yield f"{path}.{name}"
        yield from keys_below(field.annotation, f"{path}.{name}", "")


def keys_below(annotation: Any, path: str, brackets: str) -> Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from keys_of(annotation, path + brackets)
    for argument in get_args(annotation):
        yield from keys_below(argument, path, "[]" if getattr(annotation, "__origin__", None) is tuple else brackets)


@pytest.fixture(scope="module")
def expected() -> set[str]:
    whole = configuration.whole_model()
    paths = {key for name, field in whole.model_fields.items() for key in keys_below(field.annotation, name, "")}
    assert {"stream.slots", "stitcher.cameras[].pose.yaw_deg", "streamer.port", "relay.spool"} <= paths
    return paths


def test_every_key_is_in_the_reference(expected: set[str]) -> None:
    page = configuration.page()
    assert {path for path in expected if f"\n`{path}`\n" not in page} == set()
    assert {key.path for key in configuration.all_keys()} == expected


def test_every_key_and_section_says_what_it_is_for() -> None:
    sections = configuration.sections()
    of_sections = {
        key.path for key in configuration.all_keys() if key.kind == "section" or key.kind.startswith("list of sections")
    }
    silent = {key.path for key in configuration.all_keys() if not key.description} - of_sections
    assert silent == set()
    assert {name for name, description in sections.items() if not description} == set()
    assert {path for path in of_sections if not {path, f"{path}[]"} & set(sections)} == set()


class Oven(Section):
    """How it is heated."""

    fuel: str = "wood"
    told: int = Field(3, ge=1)
    """How ``hot`` it is, unlike
    :attr:`Oven.fuel`."""


class Bakery(BaseModel):
    baker: Oven = Oven()


def test_a_key_has_the_text_of_its_docstring() -> None:
    fuel, told = configuration.all_keys(configuration.schema(Bakery))
    assert (fuel.path, fuel.description, fuel.default, fuel.kind) == ("baker.fuel", "", '"wood"', "text")
    assert (told.path, told.default, told.kind) == ("baker.told", "3", "integer, at least 1")
    assert told.description == "How `hot` it is, unlike `fuel`."
    assert told.variable == "FRAMEBUS_BAKER__TOLD"


def test_the_named_variable_sets_the_key() -> None:
    (port,) = (key for key in configuration.all_keys() if key.path == "streamer.port")
    assert port.variable is not None
    assert load(StreamerConfiguration, None, {port.variable: "1234"}).streamer.port == 1234
    nested = [key for key in configuration.all_keys() if key.path.count(".") > 1]
    assert nested
    assert all(key.variable is None for key in nested)


def test_the_schema_accepts_the_example_and_rejects_a_fault_in_it() -> None:
    schema = configuration.schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    example = yaml.safe_load((ROOT / "config/framebus.yaml").read_text())
    validator.validate(example)
    for section, key, value in (("streamer", "prot", 1), ("streamer", "port", 70_000), ("stitcher", "view", "wide")):
        wrong = copy.deepcopy(example)
        wrong[section][key] = value
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)
    (port,) = (key for key in configuration.all_keys(schema) if key.path == "streamer.port")
    assert schema["$defs"]["StreamerSection"]["properties"]["port"]["description"]
    assert port.default == "8080"
