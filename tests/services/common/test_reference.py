"""References survive a round trip, and any other message from a broker raises only BadReference."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.common.geometry import PanoramaGeometry
from services.common.reference import (
    FORMATS,
    FRAMES,
    MAX_OBJECT_BYTES,
    MAX_REFERENCE_BYTES,
    RESULTS,
    BadReference,
    FrameReference,
    ResultReference,
    check_address,
    frame_address,
    pixels_bytes,
    result_prefix,
    slice_start_s,
    trace_id,
)

BIGGEST = (1 << 64) - 1
GEOMETRY = PanoramaGeometry(700.0, -1.5, -0.4, 1920, 440).to_metadata()
FRAME = FrameReference(
    address="frames/roof/7/42-0f3a.jpeg",
    size_bytes=1234,
    sha256="0123456789abcdef" * 4,
    stream="roof",
    epoch=7,
    sequence=42,
    captured_ns=5,
    captured_wall_ns=6,
    format="jpeg",
    shape=(440, 1920, 3),
    dtype="|u1",
    pixel_format="bgr",
    geometry=GEOMETRY,
    deadline_wall_ns=9,
    attempts=5,
)
RESULT = ResultReference(
    address="results/roof/7/42/planted_1/0f3a",
    size_bytes=1234,
    sha256="0123456789abcdef" * 4,
    stream="roof",
    epoch=7,
    sequence=42,
    captured_ns=5,
    captured_wall_ns=6,
    model="planted 1",
    group="detector",
    instance="one",
    frame_address=FRAME.address,
)
NUMBERS = ("size_bytes", "epoch", "sequence", "captured_ns", "captured_wall_ns")

u64 = st.integers(0, BIGGEST)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), BIGGEST, BIGGEST + 1, 1 << 63])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["../x", "frames/../x", "u3", "|u1", "f99", "\ud800", "\x00"]),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def changed(reference: FrameReference | ResultReference, **fields: Any) -> bytes:
    return json.dumps(json.loads(reference.to_json()) | fields).encode()


def without(reference: FrameReference | ResultReference, field: str) -> bytes:
    return json.dumps(
        {name: value for name, value in json.loads(reference.to_json()).items() if name != field}
    ).encode()


@pytest.mark.parametrize("reference", [FRAME, RESULT], ids=["frame", "result"])
def test_a_reference_survives_a_round_trip(reference: FrameReference | ResultReference) -> None:
    body = reference.to_json()
    assert type(reference).from_json(body) == reference
    assert len(body) < MAX_REFERENCE_BYTES


@given(
    u64, u64, u64, u64, st.integers(0, MAX_OBJECT_BYTES), st.none() | u64, u64, st.sampled_from(FORMATS),
    st.lists(st.integers(1, BIGGEST), min_size=1, max_size=8), st.text(max_size=32), st.booleans(),
)  # fmt: skip
def test_every_frame_that_can_be_written_can_be_read(
    epoch: int, sequence: int, captured_ns: int, captured_wall_ns: int, size_bytes: int, deadline_wall_ns: int | None,
    attempts: int, encoding: str, shape: list[int], pixel_format: str, geometry: bool,
) -> None:  # fmt: skip
    reference = dataclasses.replace(
        FRAME,
        address=frame_address("roof", epoch, sequence, 10**18, encoding=encoding, sha256=FRAME.sha256),
        epoch=epoch,
        sequence=sequence,
        captured_ns=captured_ns,
        captured_wall_ns=captured_wall_ns,
        size_bytes=size_bytes,
        deadline_wall_ns=deadline_wall_ns,
        attempts=attempts,
        format=encoding,
        shape=tuple(shape),
        pixel_format=pixel_format,
        geometry=GEOMETRY if geometry else None,
    )
    assert FrameReference.from_json(reference.to_json()) == reference


def test_a_newer_field_is_ignored() -> None:
    assert FrameReference.from_json(changed(FRAME, colour_space="BT.709")) == FRAME
    assert ResultReference.from_json(changed(RESULT, note=[1])) == RESULT


@pytest.mark.parametrize("version", [0, 2, -1, True, 1.0, "1", None, [], 10**40])
def test_another_version_is_rejected_with_what_to_do(version: object) -> None:
    for reference in (FRAME, RESULT):
        with pytest.raises(BadReference, match="only 1 is understood: update this service"):
            type(reference).from_json(changed(reference, version=version))


def test_a_reference_of_the_other_kind_is_rejected() -> None:
    with pytest.raises(BadReference, match="of kind 'results', and frames are wanted"):
        FrameReference.from_json(RESULT.to_json())
    with pytest.raises(BadReference, match="of kind 'frames', and results are wanted"):
        ResultReference.from_json(FRAME.to_json())


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(FrameReference)])
def test_a_frames_field_that_is_missing_is_named(field: str) -> None:
    if field in ("geometry", "deadline_wall_ns"):
        assert getattr(FrameReference.from_json(without(FRAME, field)), field) is None
        return
    with pytest.raises(BadReference, match=field):
        FrameReference.from_json(without(FRAME, field))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ResultReference)])
def test_a_results_field_that_is_missing_is_named(field: str) -> None:
    with pytest.raises(BadReference, match=field.removeprefix("frame_")):
        ResultReference.from_json(without(RESULT, field))


@pytest.mark.parametrize("field", [*NUMBERS, "attempts", "deadline_wall_ns"])
@pytest.mark.parametrize("value", [-1, BIGGEST + 1, 10**400, 1.0, True, "1", [1]])
def test_a_number_must_be_an_integer_of_64_bits(field: str, value: object) -> None:
    with pytest.raises(BadReference, match=field):
        FrameReference.from_json(changed(FRAME, **{field: value}))


def test_the_largest_numbers_are_accepted() -> None:
    biggest = {name: BIGGEST for name in (*NUMBERS, "attempts", "deadline_wall_ns") if name != "size_bytes"}
    reference = FrameReference.from_json(changed(FRAME, **biggest, size_bytes=MAX_OBJECT_BYTES))
    assert reference.sequence == reference.epoch == BIGGEST
    with pytest.raises(BadReference, match=f"at most {MAX_OBJECT_BYTES}"):
        FrameReference.from_json(changed(FRAME, size_bytes=MAX_OBJECT_BYTES + 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", []),
        ("shape", [0, 3]),
        ("shape", [1] * 9),
        ("shape", [1.0]),
        ("shape", "640x480"),
        ("shape", [True]),
        ("format", "gif"),
        ("format", []),
        ("dtype", "object"),
        ("dtype", "O8"),
        ("dtype", "u3"),
        ("dtype", "c99"),
        ("dtype", "u00"),
        ("dtype", "u1,u1"),
        ("dtype", "\u0661"),
        ("dtype", "|u1\n"),
        ("pixel_format", "x" * 33),
        ("sha256", "0" * 63),
        ("sha256", "A" * 64),
        ("sha256", "0" * 64 + "\n"),
        ("stream", "a/b"),
        ("stream", "../x"),
        ("stream", "roof\n"),
        ("stream", "x" * 49),
        ("geometry", []),
        ("geometry", {}),
        ("geometry", GEOMETRY | {"scale_px": 10**400}),
        ("geometry", GEOMETRY | {"scale_px": math.nan}),
        ("geometry", GEOMETRY | {"width_px": 1 << 40}),
        ("geometry", GEOMETRY | {"projection": "x" * 10_000}),
    ],
)
def test_an_invalid_field_is_rejected_in_a_short_sentence(field: str, value: object) -> None:
    with pytest.raises(BadReference) as caught:
        FrameReference.from_json(changed(FRAME, **{field: value}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("field", ["model", "group", "instance"])
@pytest.mark.parametrize("value", [None, 1, "x" * 257, ["a"]])
def test_a_results_texts_are_bounded(field: str, value: object) -> None:
    with pytest.raises(BadReference, match=field):
        ResultReference.from_json(changed(RESULT, **{field: value}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b'"frames"',
        b"1" * 10_000,
        b"[" * 16_000,
        b'{"a":' * 3000,
        b'{"version":1}',
        FRAME.to_json()[:-1],
        FRAME.to_json() + b"x",
        FRAME.to_json() + b" " * MAX_REFERENCE_BYTES,
    ],
    ids=lambda body: f"{len(body)} bytes",
)
def test_a_message_that_is_not_a_reference_is_rejected(body: bytes) -> None:
    for kind in (FrameReference, ResultReference):
        with pytest.raises(BadReference) as caught:
            kind.from_json(body)
        assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_bad_reference(body: bytes) -> None:
    for kind in (FrameReference, ResultReference):
        with contextlib.suppress(BadReference):
            kind.from_json(body)


@given(st.sampled_from([field.name for field in dataclasses.fields(FrameReference)]), json_values)
@example("geometry", GEOMETRY | {"v_min": -(10**400)})
def test_arbitrary_json_in_a_frames_field_raises_only_bad_reference(field: str, value: object) -> None:
    with contextlib.suppress(BadReference):
        reference = FrameReference.from_json(changed(FRAME, **{field: value}))
        pixels_bytes(reference)
        assert FrameReference.from_json(reference.to_json()) == reference


@given(st.sampled_from([field.name for field in dataclasses.fields(ResultReference)]), json_values)
def test_arbitrary_json_in_a_results_field_raises_only_bad_reference(field: str, value: object) -> None:
    with contextlib.suppress(BadReference):
        reference = ResultReference.from_json(changed(RESULT, **{field: value}))
        assert ResultReference.from_json(reference.to_json()) == reference


@pytest.mark.parametrize(
    "address",
    [
        "", "frames", "frames/", "/frames/x", "frames//x", "frames/x/", "frames/.", "frames/..", "frames/../x",
        "frames/x/../../y", "frames/.hidden", "frames/x/./y", "Frames/x", "results/x", "framesx/y", "./frames/x",
        "../frames/x", "frames/%2e%2e/x", "frames/..%2fx", "frames/%00", "frames/x\x00", "frames/x\n", "frames/\nx",
        "frames/x y", "frames/x\\..\\y", "frames\\x", "file:///frames/x", "frames/http://host/x", "http://host/frames/x",
        "s3://frames/x", "frames/x?versionId=1", "frames/x#1", "frames/~root", "frames/$HOME", "frames/*", "frames/x;y",
        "frames/\u2025/x", "frames/\uff0e\uff0e/x", "frames/\u202ex", "frames/\ud800", "frames/" + "x" * 201,
        "frames/" + "x/" * 600 + "x", 5, None, [], ["frames", "x"], {}, b"frames/x",
    ],
)  # fmt: skip
def test_an_address_never_leaves_its_kind_and_the_storage(address: object) -> None:
    with pytest.raises(BadReference, match="nothing is fetched"):
        check_address(address, FRAMES)


@given(st.text(alphabet="./%\\ ~:?#*\x00\nframesx", max_size=40))
def test_an_accepted_address_stays_below_its_folder(text: str) -> None:
    with contextlib.suppress(BadReference):
        parts = check_address(f"frames/{text}", FRAMES).split("/")
        assert not any(part.startswith(".") or part == "" for part in parts)


@pytest.mark.parametrize("encoding", FORMATS)
def test_the_relays_own_addresses_are_accepted(encoding: str) -> None:
    address = frame_address("s" * 48, BIGGEST, BIGGEST, BIGGEST, encoding=encoding, sha256="f" * 64)
    assert check_address(address, FRAMES) == address


@given(st.text(max_size=256))
@example("../../x")
@example("..")
@example("x" * 256)
@example("")
@example("YOLOX nano / 2 + Geländer")
def test_any_model_name_gives_a_valid_address(model: str) -> None:
    prefix = result_prefix("roof", 7, 42, 10**18, model)
    assert prefix.startswith("results/roof/20010909T0146Z-7/42/")
    assert prefix.count("/") == 5
    assert check_address(f"{prefix}0f3a", RESULTS)


@given(st.integers(0, BIGGEST), st.integers(0, BIGGEST))
def test_an_address_names_the_minute_of_the_capture(captured_wall_ns: int, epoch: int) -> None:
    part = result_prefix("roof", epoch, 42, captured_wall_ns, "m").split("/")[2]
    assert part == frame_address("roof", epoch, 42, captured_wall_ns, encoding="png", sha256="0" * 64).split("/")[2]
    start_s = slice_start_s(part)
    assert start_s is not None
    assert 0 <= captured_wall_ns // 10**9 - start_s < 60
    assert slice_start_s(str(epoch)) is None


@pytest.mark.parametrize("part", ["", "7", "20261129T2051Z7", "20261329T2051Z-7", "20261129T2551Z-7", "x-7"])
def test_a_part_that_names_no_minute_is_told_apart(part: str) -> None:
    assert slice_start_s(part) is None


def test_an_address_depends_on_the_content() -> None:
    one, other = (frame_address("roof", 7, 42, 10**18, encoding="png", sha256=digit * 64) for digit in "01")
    assert one != other


def test_the_trace_id_is_the_same_everywhere_and_has_w3cs_format() -> None:
    assert trace_id("roof/7/42") == trace_id(FRAME.key) != trace_id("roof/7/43")
    assert len(trace_id(FRAME.key)) == 32
    int(trace_id(FRAME.key), 16)


def test_results_of_one_frame_and_model_have_one_key() -> None:
    assert dataclasses.replace(RESULT, instance="two", address="results/x").key == RESULT.key
    assert dataclasses.replace(RESULT, model="planted 2").key != RESULT.key


@pytest.mark.parametrize(("dtype", "size"), [("|u1", 12), ("<u2", 24), ("<f4", 48), ("<c16", 192), ("|b1", 12)])
def test_the_size_of_the_pixels_is_known_beforehand(dtype: str, size: int) -> None:
    assert pixels_bytes(dataclasses.replace(FRAME, shape=(2, 2, 3), dtype=dtype)) == size


def test_more_pixels_than_allowed_are_rejected() -> None:
    for shape in ((1 << 28, 2), (BIGGEST,) * 8):
        with pytest.raises(BadReference, match=f"at most {MAX_OBJECT_BYTES}"):
            pixels_bytes(dataclasses.replace(FRAME, shape=shape))


def test_the_kinds_are_the_first_parts_of_addresses() -> None:
    assert check_address(FRAME.address, FRAMES) == FRAME.address
    assert check_address(RESULT.address, RESULTS) == RESULT.address
