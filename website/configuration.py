"""The reference of the configuration, from its models: a page of all keys, and a JSON Schema."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from services.common.config import ENVIRONMENT_PREFIX
from services.common.service import find_service

_ROLE: Final = re.compile(r":\w+:`(?:~?[\w.]*\.)?([\w]+)`")
_WORDS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "pattern": "matches `{}`",
}
_KINDS: Final = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the configuration."""

    path: str
    """Where it is, such as ``stitcher.cameras[].url``."""
    kind: str
    """What values it takes, in words."""
    default: str | None
    """Its default as JSON; None where a value must be given."""
    description: str
    """What it means, as Markdown."""

    @property
    def variable(self) -> str | None:
        """The environment variable that sets it; None for keys below those of a section."""
        section, _, name = self.path.partition(".")
        in_reach = name and "." not in name and "[" not in name
        return f"{ENVIRONMENT_PREFIX}{section}__{name}".upper() if in_reach else None


def whole_model() -> type[BaseModel]:
    """Return the model of the whole file: the shared sections, and those of all installed services."""
    return find_service("supervisor").whole_configuration()


def schema(model: type[BaseModel] | None = None) -> dict[str, Any]:
    """Return the JSON Schema of the file, for editors and other programs."""
    model = whole_model() if model is None else model
    found = model.model_json_schema()
    found["properties"].pop("source", None)  # where the file was; not a section of it
    descriptions = _descriptions(model)
    for name, definition in [*found["$defs"].items(), (model.__name__, found)]:
        definition["description"] = definition.get("description", "").strip()
        for key, value in definition.get("properties", {}).items():
            if key in descriptions.get(name, {}):
                value["description"] = descriptions[name][key]
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "The configuration of framebus' services"
    found["description"] = "One YAML file for all services; config/framebus.yaml is an example."
    return found


def all_keys(document: Mapping[str, Any] | None = None) -> list[Key]:
    """Return all keys, in the order of the models; keys of lists' items have ``[]`` in their path."""
    document = schema() if document is None else document
    return [
        key
        for name, value in document["properties"].items()
        for key in _keys_of_section(name, _resolved(value, document), document)
    ]


def sections(document: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the sections of the file and what each is for, nested ones included, as Markdown."""
    document = schema() if document is None else document
    found: dict[str, str] = {}

    def visit(path: str, definition: Mapping[str, Any]) -> None:
        found[path] = definition.get("description", "")
        for name, value in definition["properties"].items():
            below = _section_below(value, document)
            if below is not None:
                visit(f"{path}.{name}{below[1]}", below[0])

    for name, value in document["properties"].items():
        visit(name, _resolved(value, document))
    return found


def page() -> str:
    """Return the reference as Markdown: a section with a list of keys for each section of the file."""
    document = schema()
    by_section: dict[str, list[Key]] = {name: [] for name in sections(document)}
    for key in all_keys(document):
        by_section[key.path.rpartition(".")[0]].append(key)
    lines = ["[configuration.schema.json](configuration.schema.json) is the schema of this version.", ""]
    for name, description in sections(document).items():
        depth = 2 + ("." in name)
        lines += [f"({anchor(name, 'section')})=", f"{'#' * depth} `{name}`", "", to_markdown(description), ""]
        for key in by_section[name]:
            lines += [f"({anchor(key.path)})=", *_entry(key), ""]
    return "\n".join(lines)


def anchor(path: str, kind: str = "key") -> str:
    """Return the anchor of a key or section on the page."""
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")


def _entry(key: Key) -> Iterator[str]:
    yield f"`{key.path}`"
    default = "required" if key.default is None else f"default `{key.default}`"
    variable = f" · `{key.variable}`" if key.variable else ""
    yield f": {key.kind} · {default}{variable}"
    yield ""
    yield f"  {key.description}"


def _keys_of_section(path: str, definition: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[Key]:
    required = definition.get("required", ())
    for name, value in definition["properties"].items():
        below = _section_below(value, document)
        default = None if name in required else _default(value)
        yield Key(f"{path}.{name}", _kind(value, document), default, to_markdown(value.get("description", "")))
        if below is not None:
            yield from _keys_of_section(f"{path}.{name}{below[1]}", below[0], document)


def _default(value: Mapping[str, Any]) -> str:
    return json.dumps(value["default"], ensure_ascii=False) if "default" in value else "depends on the host"


def _section_below(value: Mapping[str, Any], document: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """Return the section that a key holds, and ``[]`` if it holds a list of them."""
    for one in value.get("anyOf", [value]):
        form = _resolved(one, document)
        if "properties" in form:
            return form, ""
        items = form.get("items")
        if isinstance(items, Mapping) and "properties" in (item := _resolved(items, document)):
            return item, "[]"
    return None


def _resolved(value: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    name = value.get("$ref", "").rpartition("/")[2]
    return {**document["$defs"][name], **value} if name else value


def _kind(value: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Say in words what values a key takes."""
    if "anyOf" in value:
        kinds = [_kind(one, document) for one in value["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    form = _resolved(value, document)
    if "enum" in form or "const" in form:
        return " or ".join(f"`{choice}`" for choice in form.get("enum", [form.get("const")]))
    if "properties" in form:
        return "section"
    if form.get("type") == "array":
        items: Mapping[str, Any] = form.get("items") or next(iter(form.get("prefixItems", [])), {})
        kind = f"list of {_plural(_kind(items, document))}"
    else:
        kind = "path" if form.get("format") == "path" else _KINDS.get(form.get("type", ""), "value")
    limits = [words.format(form[name]) for name, words in _WORDS.items() if name in form]
    return ", ".join([kind, *limits])


def _plural(kind: str) -> str:
    first, comma, rest = kind.partition(", ")
    plurals = {"text": "texts", "section": "sections", "integer": "integers", "number": "numbers", "path": "paths"}
    return plurals.get(first, first) + (f" (each {rest})" if comma else "")


def to_markdown(text: str) -> str:
    """Return a docstring's text, which is reStructuredText, as Markdown in one paragraph."""
    return " ".join(_ROLE.sub(r"`\1`", text).replace("``", "`").split())


def _descriptions(model: type[BaseModel]) -> dict[str, dict[str, str]]:
    """Return the texts below the fields of a model, and of all models that it holds, by the models' names."""
    found: dict[str, dict[str, str]] = {}

    def visit(kind: type[BaseModel]) -> None:
        if kind.__name__ in found:
            return
        found[kind.__name__] = {}
        for base in reversed(kind.__mro__):
            if isinstance(base, type) and issubclass(base, BaseModel) and base is not BaseModel:
                found[kind.__name__] |= _texts_of_fields(base)
        for field in kind.model_fields.values():
            for below in _models_in(field.annotation):
                visit(below)

    visit(model)
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _texts_of_fields(kind: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):
        return {}  # a model that was made at run time, of the sections of others
    statements = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, text in itertools.pairwise(statements):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = inspect.cleandoc(text.value.value)
    return found
