"""Drawings of the imports between modules: the layers are those of pyproject.toml's contracts."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import grimp

from website.svg import MARK, PALE, Picture, figure

ROOT: Final = Path(__file__).parent.parent
ROW_PX: Final = 34.0


@dataclass(frozen=True, slots=True)
class Layers:
    """A contract: modules of one layer import those of layers below only."""

    name: str
    layers: tuple[tuple[str, ...], ...]
    """From the top; modules of one layer beside each other."""

    @property
    def modules(self) -> list[str]:
        """All modules, from the top."""
        return [module for layer in self.layers for module in layer]

    def imports(self) -> dict[tuple[str, str], int]:
        """Return the pairs of modules of which the first imports the second, and by how many imports."""
        graph = _graph()
        inside = {module: {module} | set(graph.find_descendants(module)) for module in self.modules}
        owner = {part: module for module, parts in inside.items() for part in parts}
        found: dict[tuple[str, str], int] = {}
        for part, module in owner.items():
            for imported in graph.find_modules_directly_imported_by(part):
                other = owner.get(imported)
                if other is not None and other != module:
                    found[module, other] = found.get((module, other), 0) + 1
        return found


def contracts() -> list[Layers]:
    """Return the contracts on layers of import-linter, in their order."""
    settings: Any = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return [
        Layers(contract["name"], tuple(tuple(re.split(r"\s*[|:]\s*", layer)) for layer in contract["layers"]))
        for contract in settings["contracts"]
        if contract["type"] == "layers"
    ]


def drawing() -> str:
    """Return a drawing of each contract, as Markdown."""
    parts = []
    for layers in contracts():
        parts += [f"## {layers.name[:1].upper()}{layers.name[1:]}", "", figure(_picture(layers), _caption(layers)), ""]
    return "\n".join(parts)


def _caption(layers: Layers) -> str:
    count = sum(layers.imports().values())
    return (
        f"{len(layers.modules)} modules or packages, {count} imports between them. An arc goes from the importer down "
        "to what it imports, the wider the more imports there are."
    )


@cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("framebus", "services", cache_dir=None)


def _picture(layers: Layers) -> Picture:
    modules = layers.modules
    package = modules[0].rpartition(".")[0]
    rows = {module: index for index, module in enumerate(modules)}
    picture = Picture(640, len(modules) * ROW_PX + 14, f"Imports: {layers.name}")
    y = 6.0
    for layer in layers.layers:
        height = len(layer) * ROW_PX - 6
        picture.box(6, y, 240, height, line=MARK)
        for index, module in enumerate(layer):
            picture.text(16, y + 19 + index * ROW_PX, module.removeprefix(f"{package}."))
        y += len(layer) * ROW_PX
    for (importer, imported), count in sorted(layers.imports().items(), key=lambda pair: -pair[1]):
        start, end = 6 + rows[importer] * ROW_PX + 18, 6 + rows[imported] * ROW_PX + 10
        reach = 246 + 26 + abs(end - start) * 0.95
        width = min(0.8 + count * 0.25, 4)
        picture.path(f"M246 {start:g}C{reach:g} {start:g} {reach:g} {end:g} 249 {end:g}", ink=PALE, width=width)
    return picture
