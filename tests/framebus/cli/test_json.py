"""The JSON output of the command conforms to docs/cli.schema.json."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from framebus import FrameFormat, Publisher, Subscriber
from tests.framebus.mounts import alone, answer
from tests.people import Person
from tests.support import ROOT, SHM, publish

SCHEMA = json.loads((ROOT / "docs" / "cli.schema.json").read_text())
PAGE = (ROOT / "docs" / "cli.md").read_text()
STRANGER = 12003


def check(command: str, content: Any) -> None:
    schema = {**SCHEMA, "anyOf": [{"$ref": f"#/$defs/{command}"}]}
    jsonschema.Draft202012Validator(schema).validate(content)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def run_everything(stream: str) -> None:
    with Publisher(stream, FrameFormat(4, 6)) as publisher, Subscriber(stream, name="watcher") as subscriber:
        for frames in range(2):
            for arguments in (
                ["list"],
                ["inspect", stream],
                ["top", "--once", "--interval", "0.01"],
                ["doctor"],
                ["gc", "--dry-run"],
            ):
                _, content = answer(*arguments)
                check(arguments[0], content)
            if not frames:
                publish(publisher)
                subscriber.receive(5).release()


def test_every_command_prints_what_the_schema_says(stream: str) -> None:
    run_everything(stream)
    check("size", answer("size", "--height", "40", "--width", "60")[1])


def leave_things() -> None:
    for arguments in (["list"], ["top", "--once", "--interval", "0.01"], ["doctor"], ["gc", "--dry-run"]):
        check(arguments[0], answer(*arguments)[1])
    with Publisher("live", FrameFormat(4, 6)) as publisher:
        publish(publisher)
        Publisher("kept", FrameFormat(4, 6), keep_ring=True).close()
        (ring := SHM / "framebus.damaged.ring").write_bytes(b"garbage")
        ring.chmod(0o644)
        for user in (0, STRANGER):
            for arguments in (
                ["list"],
                ["top", "--once", "--interval", "0.01"],
                ["doctor"],
                ["gc", "--dry-run"],
                ["gc"],
            ):
                _, content = Person(user, answer, *arguments, group=user).result()
                assert content
                check(arguments[0], content)


@pytest.mark.root
def test_leftovers_and_closed_streams_are_in_the_schema_too() -> None:
    alone(leave_things)


def test_the_frame_has_named_fields(stream: str) -> None:
    with Publisher(stream, FrameFormat(4, 6, dtype="uint16")) as publisher:
        publish(publisher)
        (row,) = (row for row in answer("list")[1] if row["name"] == stream)
        inspected = answer("inspect", stream)[1]
    for frame in (row["frame"], inspected["frame"]):
        assert (frame["height"], frame["width"], frame["channels"], frame["shape"]) == (4, 6, 3, [4, 6, 3])
        assert (frame["dtype"], frame["pixel_format"], frame["sequence"]) == ("<u2", "bgr", 1)
        assert frame["epoch"] == inspected["epoch"]


@pytest.mark.parametrize("name", ["stream", "unreadable", "frame", "record", "size", "doctor", "gc", "top"])
def test_the_page_names_every_field(name: str) -> None:
    entry = SCHEMA["$defs"][name]
    schemas = entry.get("items", {}).get("anyOf", [entry.get("items", entry)])
    for schema in schemas:
        missing = [field for field in schema["properties"] if f"`{field}`" not in PAGE]
        assert missing == []
