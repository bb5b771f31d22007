"""The compiled steps and those in Python are the same for a caller: names, arguments, docstrings, errors."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from framebus.ring import _ring_py, backend, c_headers
from framebus.ring.frame_header import Description
from framebus.ring.layout import Geometry
from framebus.ring.publisher_ring import PublisherRing
from framebus.ring.subscriber_ring import SubscriberRing
from tests.support import ROOT

TYPES = ("Writer", "Claim", "Reader", "Lease")
FOLDER = ROOT / "framebus/ring"
DESCRIPTION = Description(2, 3, 1, "|u1", "gray").pack()
ONLY_BELOW_3_12 = "framebus.ring._ring_c.Claim.__buffer__\nframebus.ring._ring_c.Lease.__buffer__\n"


@pytest.fixture
def compiled(compiled_steps: None) -> ModuleType:
    """The compiled module."""
    from framebus.ring import _ring_c  # noqa: PLC0415  it may not be there

    return _ring_c


@pytest.mark.parametrize("name", c_headers.HEADERS)
def test_the_header_in_git_is_the_one_that_would_be_generated(name: str) -> None:
    assert (FOLDER / name).read_text() == c_headers.HEADERS[name](), f"run '{c_headers.COMMAND}'"


def test_the_compiled_module_has_the_numbers_of_the_layout(compiled: ModuleType) -> None:
    assert c_headers.numbers() == compiled.LAYOUT, "install framebus again: its compiled part is of another layout"
    assert compiled.LAYOUT["PUBLISHED_NS_WORD"] == compiled.LAYOUT["EPOCH_WORD"] + 4


def public(owner: type) -> set[str]:
    names = {name for name in dir(owner) if not name.startswith("_")}
    return names | set(c_headers.docs(owner)) - {""} if owner.__module__ != "framebus.ring._ring_c" else names


@pytest.mark.parametrize("name", TYPES)
def test_the_twins_have_the_same_public_names(compiled: ModuleType, name: str) -> None:
    assert public(getattr(compiled, name)) == public(getattr(_ring_py, name))


@pytest.mark.parametrize("name", TYPES)
def test_the_twins_have_the_same_docstrings(compiled: ModuleType, name: str) -> None:
    ours, theirs = getattr(_ring_py, name), getattr(compiled, name)
    assert inspect.getdoc(ours) == inspect.getdoc(theirs)
    for member, doc in c_headers.docs(ours).items():
        if member:
            shown = doc.split("\n--\n\n")[-1]
            assert shown
            assert inspect.getdoc(getattr(theirs, member)) == shown
            if callable(getattr(ours, member, None)) and inspect.isfunction(getattr(ours, member)):
                assert inspect.getdoc(getattr(ours, member)) == shown


def shape(function: Callable[..., Any]) -> list[tuple[str, bool]]:
    """Names of the arguments, and whether each may be left out."""
    parameters = inspect.signature(function).parameters.values()
    return [(each.name, each.default is not each.empty) for each in parameters]


def methods() -> list[tuple[str, str]]:
    return [
        (owner, name)
        for owner in TYPES
        for name, function in vars(getattr(_ring_py, owner)).items()
        if inspect.isfunction(function) and not name.startswith("_")
    ]


@pytest.mark.parametrize(("owner", "name"), methods())
def test_the_twins_take_the_same_arguments(compiled: ModuleType, owner: str, name: str) -> None:
    ours, theirs = (getattr(getattr(module, owner), name) for module in (_ring_py, compiled))
    assert shape(ours) == shape(theirs)


@pytest.mark.parametrize("owner", ["Writer", "Reader"])
def test_the_twins_are_made_of_the_same_arguments(compiled: ModuleType, owner: str) -> None:
    assert shape(getattr(_ring_py, owner)) == shape(getattr(compiled, owner))


@pytest.mark.slow
@pytest.mark.long
def test_the_stub_describes_the_compiled_module(compiled: ModuleType, tmp_path: Path) -> None:
    allowed, settings = tmp_path / "allowed", tmp_path / "mypy.ini"
    allowed.write_text(ONLY_BELOW_3_12)  # the buffer protocol has no name before 3.12
    settings.write_text("[mypy]\nstrict = true\nignore_missing_imports = true\n")
    options = ["--allowlist", str(allowed), "--ignore-unused-allowlist", "--mypy-config-file", str(settings)]
    command = [sys.executable, "-m", "mypy.stubtest", "framebus.ring._ring_c", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def types_of(owner: ast.ClassDef) -> dict[str, list[str]]:
    """Types of the arguments and of the result of each public method or property."""
    return {
        each.name: [ast.unparse(part) for part in (*(arg.annotation for arg in each.args.args), each.returns) if part]
        for each in owner.body
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
    }


@pytest.mark.parametrize("owner", TYPES)
def test_the_stub_has_the_types_of_the_twin(owner: str) -> None:
    (twin,) = ast.parse(inspect.getsource(getattr(_ring_py, owner))).body
    stubs = ast.parse((FOLDER / "_ring_c.pyi").read_text()).body
    (stub,) = (each for each in stubs if isinstance(each, ast.ClassDef) and each.name == owner)
    assert isinstance(twin, ast.ClassDef)
    expected, found = types_of(twin), types_of(stub)
    assert expected == {name: found[name] for name in expected}


@pytest.fixture
def publisher(stream: str) -> Any:
    opened = PublisherRing(stream, Geometry.for_frames(4, 6))
    yield opened
    opened.close(unlink=True)


@pytest.mark.usefixtures("each_steps")
def test_all_arguments_may_be_named(stream: str, publisher: PublisherRing) -> None:
    ring, geometry = publisher.segment, publisher.geometry
    sizes = {"slots": geometry.slots, "slot_bytes": geometry.slot_bytes, "first_slot": geometry.first_slot}
    writer = backend.steps.Writer(**sizes, segment=ring, max_loans=1, next_sequence=7, epoch=3)
    writer.watch(arrays=[])
    claim = writer.claim(description=DESCRIPTION)
    assert claim is not None
    assert writer.publish(claim, captured_wall_ns=20, captured_ns=10, message=None, sockets=()) > 0
    segment = SubscriberRing(stream).segment
    earlier = backend.steps.Reader(segment, history=0, every=False, **sizes)
    reader = backend.steps.Reader(segment, **sizes, every=False, history=0)
    reader.resume_from(first_sequence=7, earlier=earlier)
    lease = reader.spin(until_ns=0)
    assert lease is not None
    assert (lease.sequence, lease.header.epoch, lease.header.captured_ns, lease.header.captured_wall_ns) == (
        7,
        3,
        10,
        20,
    )
    assert reader.sleep(timeout_ns=0, event=0) is None
    reader.report_to(record=ring)
    called: list[bool] = []
    writer.close(finish=lambda: called.append(True))
    assert called == [True]


WRONG: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda writer, reader: writer.claim(),
    "two": lambda writer, reader: writer.claim(DESCRIPTION, DESCRIPTION),
    "unknown": lambda writer, reader: writer.claim(description=DESCRIPTION, slots=3),
    "unknown alone": lambda writer, reader: writer.claim(descriptions=DESCRIPTION),
    "twice": lambda writer, reader: writer.claim(DESCRIPTION, description=DESCRIPTION),
    "not bytes": lambda writer, reader: writer.claim("text"),
    "too few to publish": lambda writer, reader: writer.publish(None, 1),
    "too many to publish": lambda writer, reader: writer.publish(None, 1, 2, (), None, None),
    "unknown to publish": lambda writer, reader: writer.publish(None, 1, 2, socket=()),
    "a time that is text": lambda writer, reader: writer.publish(writer.claim(DESCRIPTION), "1", 2),
    "sockets without a message": lambda writer, reader: writer.publish(writer.claim(DESCRIPTION), 1, 2, [None]),
    "nothing to finish": lambda writer, reader: writer.close(),
    "arrays that are not a list": lambda writer, reader: writer.watch(arrays=()),
    "an argument to take": lambda writer, reader: reader.take(1),
    "a name to take": lambda writer, reader: reader.take(until_ns=1),
    "no end to spin": lambda writer, reader: reader.spin(),
    "half a sleep": lambda writer, reader: reader.sleep(event=1),
    "no record": lambda writer, reader: reader.report_to(segment=1),
    "no reader": lambda writer, reader: reader.resume_from(None, 1),
    "an empty writer": lambda writer, reader: type(writer)(),
    "an unknown name for a writer": lambda writer, reader: type(writer)(writer.segment, 4, 4096, 4096, 1, 1, 1, more=1),
    "a name twice for a reader": lambda writer, reader: type(reader)(reader.segment, 4, 4096, 4096, True, 1, slots=4),
}


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_a_type_error(stream: str, publisher: PublisherRing, what: str) -> None:
    with pytest.raises(TypeError):
        WRONG[what](publisher.writer, SubscriberRing(stream).reader)
    assert publisher.writer.next_sequence == 1


@pytest.mark.usefixtures("each_steps")
def test_what_is_not_an_open_claim_or_has_no_room_is_a_value_error(publisher: PublisherRing) -> None:
    writer = publisher.writer
    with pytest.raises(ValueError, match="longer than a slot's header"):
        writer.claim(bytes(1000))
    for claim in (None, object()):
        with pytest.raises(ValueError, match="not an open one of this writer"):
            writer.publish(claim, 1, 2)  # type: ignore[arg-type]
    claim = writer.claim(DESCRIPTION)
    assert claim is not None
    claim.abandon()
    with pytest.raises(ValueError, match="not an open one of this writer"):
        writer.publish(claim, 1, 2)
    claim = writer.claim(DESCRIPTION)
    assert claim is not None
    with pytest.raises(OverflowError):
        writer.publish(claim, 1 << 63, 2)
    assert claim.is_open
    claim.abandon()
