"""The drawings match the code: every field of the bytes, every step, every module of a contract."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from framebus.ring import layout
from website import bytes_of_ring, import_graph, life_of_slot
from website.bytes_of_ring import header_fields, slot_fields
from website.import_graph import contracts

SVG = "{http://www.w3.org/2000/svg}"


def texts(markdown: str) -> list[str]:
    """Return the texts of all pictures of a page, which have to be well-formed."""
    pictures = re.findall(r"<svg.*?</svg>", markdown, re.DOTALL)
    assert pictures
    return [text.text or "" for picture in pictures for text in ET.fromstring(picture).iter("text")]


def test_the_drawing_of_the_ring_shows_every_field() -> None:
    drawn = "\n".join(texts(bytes_of_ring.drawing())).replace("_\n", "_")
    for field in (*header_fields(), *slot_fields()):
        assert field.name in drawn, field
    for number in (layout.SLOT_TABLE, layout.LOCK_LIVE, layout.LOCK_SLOTS, layout.LOCK_SEATS):
        assert f"{number}" in drawn.splitlines()


def test_fields_are_drawn_at_their_offsets() -> None:
    header = {field.name: field for field in header_fields()}
    assert (header["magic"].size, header["version"].offset) == (len(layout.MAGIC), len(layout.MAGIC))
    assert (header["tail"].offset, header["max_loans"].offset + 4) == (layout.TAIL, layout.HEADER.size)
    slot = {field.name: field for field in slot_fields()}
    assert slot["epoch"].offset == layout.SLOT_FIELDS
    assert slot["metadata"].offset + slot["metadata"].size == layout.SLOT_HEADER_BYTES
    for fields in (header_fields(), slot_fields()):
        ends = [field.offset + field.size for field in fields]
        assert all(end <= later.offset for end, later in zip(ends, fields[1:], strict=False))


def test_the_drawing_of_a_slots_life_has_the_steps_of_the_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = " ".join(texts(life_of_slot.drawing()))
    assert [
        step for step in ("P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "R2", "R3", "R6") if step not in drawn
    ] == []
    assert f"P6 {life_of_slot.steps()['P6']}" in drawn
    changed = tmp_path / "spec.md"
    changed.write_text(life_of_slot.SPEC.read_text().replace("| P8. add", "| P9. add"))
    monkeypatch.setattr(life_of_slot, "SPEC", changed)
    with pytest.raises(ValueError, match="other steps"):
        life_of_slot.drawing()


def test_the_drawing_of_the_layers_shows_the_contracts_of_the_imports() -> None:
    found = contracts()
    assert found[0].modules[-1] == "framebus.errors"
    drawn = texts(import_graph.drawing())
    for layers in found:
        place = {module: index for index, layer in enumerate(layers.layers) for module in layer}
        imports = layers.imports()
        assert imports, layers.name
        assert all(place[importer] <= place[imported] for importer, imported in imports), layers.name
        assert all(
            module.removeprefix(f"{layers.modules[0].rpartition('.')[0]}.") in drawn for module in layers.modules
        )
    assert ("framebus.bus", "framebus.ring") in found[0].imports()
