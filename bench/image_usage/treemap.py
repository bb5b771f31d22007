"""A picture of an image as SVG: the area of each file is its size, and the colour shows how it was used.

The areas are laid out as squarified treemaps (Bruls, Huizing, van Wijk, 2000).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

from bench.image_usage.advice import megabytes
from bench.image_usage.usage import Report, Row

WIDTH_PX, HEIGHT_PX = 1280, 800
HEADER_PX, FOOTER_PX = 34, 30
TITLE_PX: Final = 15
LETTER_PX: Final = 6.2
"""Width of a letter of the labels, roughly."""
BOLD_PX: Final = 7.0
LEAST_LETTERS: Final = 8
"""A label with room for fewer letters is left out."""
LEAST_PART: Final = 2e-4
"""Files smaller than this part of the picture are joined into one area for each package and colour."""
COLOURS: Final = {
    "touched": "#1b7837",
    "opened": "#a6dba0",
    "held": "#e6d98c",
    "apart": "#80b1d3",
    "only later": "#fdb863",
    "unused": "#d9d9d9",
    "hidden": "#b2182b",
}
LEGEND: Final = {
    "touched": "pages touched",
    "opened": "opened, pages not touched",
    "held": "held by other processes",
    "apart": "only by health checks and shells",
    "only later": "only by a further observation",
    "unused": "never opened",
    "hidden": "superseded or deleted",
}


class Box(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float


class Part(NamedTuple):
    """An area of one colour."""

    size: float
    colour: str
    title: str


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Divide a box into areas of these proportions, as square as possible.

    Args:
        sizes: Positive, in descending order.
        box: The box to divide.
    """
    total = sum(sizes)
    scale = box.width * box.height / total if total else 0.0
    areas = [size * scale for size in sizes]
    placed: list[Box] = []
    begin = 0
    while begin < len(areas):
        side = min(box.width, box.height)
        end = begin + 1
        # Add areas to the row as long as its worst aspect ratio does not grow.
        while end < len(areas) and _worst(areas[begin : end + 1], side) <= _worst(areas[begin:end], side):
            end += 1
        row, box = _lay(areas[begin:end], box)
        placed.extend(row)
        begin = end
    return placed


def _worst(areas: Sequence[float], side: float) -> float:
    total = sum(areas)
    if not total or not side:
        return 0.0
    # The larger of the aspect ratios of the row's largest and smallest area.
    return max(side * side * max(areas) / total**2, total**2 / (side * side * max(min(areas), 1e-12)))


def _lay(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """Place a row along the shorter side; return it and the rest of the box."""
    total = sum(areas)
    row = []
    if box.width >= box.height:
        thick = total / box.height if box.height else 0.0
        y = box.y
        for area in areas:
            long = area / thick if thick else 0.0
            row.append(Box(box.x, y, thick, long))
            y += long
        return row, Box(box.x + thick, box.y, max(box.width - thick, 0.0), box.height)
    thick = total / box.width
    x = box.x
    for area in areas:
        long = area / thick if thick else 0.0
        row.append(Box(x, box.y, long, thick))
        x += long
    return row, Box(box.x, box.y + thick, box.width, max(box.height - thick, 0.0))


def parts(row: Row) -> Iterator[Part]:
    """Yield the areas of a file: its touched bytes, and the rest."""
    name, size, seen = row.file.path, row.file.size_bytes, row.seen
    if not row.visible:
        yield Part(size, "hidden", f"{name}, {row.file.state.value}")
    elif seen.opened:
        yield Part(seen.touched_bytes, "touched", f"{name}, touched")
        yield Part(seen.held_bytes, "held", f"{name}, {LEGEND['held']}")
        yield Part(size - seen.touched_bytes - seen.held_bytes, "opened", f"{name}, opened, the rest")
    else:
        colour = "apart" if seen.apart else "only later" if seen.only_in else "unused"
        yield Part(size, colour, f"{name}, {LEGEND[colour]}")


def _joined(found: Iterable[Part], least: float) -> list[Part]:
    """Join the small parts of each colour; return all parts, the largest first."""
    kept: list[Part] = []
    small: dict[str, tuple[float, int]] = {}
    for part in found:
        if part.size >= least:
            kept.append(part)
        elif part.size > 0:
            size, count = small.get(part.colour, (0.0, 0))
            small[part.colour] = (size + part.size, count + 1)
    kept.extend(Part(size, colour, f"{count} small files, {LEGEND[colour]}") for colour, (size, count) in small.items())
    return sorted(kept, key=lambda part: -part.size)


def svg(report: Report) -> str:
    """Draw the layers above the base's, and the base as one package."""
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        # Files that no container sees have no package, so group them by their state.
        name = str(row.package) if row.visible else row.file.state.value
        # The base is one group, because only another base can change it.
        groups.setdefault(name if row.ours else f"base: {report.base}", []).append(row)
    total = sum(row.file.size_bytes for row in report.rows)
    drawn = {
        name: _joined((part for row in group for part in parts(row)), total * LEAST_PART)
        for name, group in groups.items()
    }
    ordered = sorted(((sum(part.size for part in found), name, found) for name, found in drawn.items()), reverse=True)
    # A group of empty files has no area.
    ordered = [one for one in ordered if one[0] > 0]
    canvas = Box(0, HEADER_PX, WIDTH_PX, HEIGHT_PX - HEADER_PX - FOOTER_PX)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH_PX}" height="{HEIGHT_PX}" fill="#ffffff"/>',
        f'<text x="8" y="22" font-size="16">{escape(report.summary())}</text>',
    ]
    for box, (size, name, found) in zip(squarify([one[0] for one in ordered], canvas), ordered, strict=True):
        lines.extend(_group(box, name, size, found))
    lines.extend([*_legend(), "</svg>", ""])
    return "\n".join(lines)


def _group(box: Box, name: str, size: float, found: Sequence[Part]) -> Iterator[str]:
    label = f"{name}, {megabytes(size)}"
    titled = box.height > 3 * TITLE_PX and box.width > 40
    inner = Box(
        box.x + 1, box.y + (TITLE_PX if titled else 1), box.width - 2, box.height - (TITLE_PX + 1 if titled else 2)
    )
    yield f"<g><title>{escape(label)}</title>{_rectangle(box, '#ffffff')}"
    if inner.width > 0 and inner.height > 0:
        for place, part in zip(squarify([part.size for part in found], inner), found, strict=True):
            title = f"<title>{escape(part.title)}, {megabytes(part.size)}</title>"
            yield _rectangle(place, COLOURS[part.colour], title)
            yield from _label(
                place,
                part.title.split(",")[0].rpartition("/")[2],
                "#ffffff" if part.colour in {"touched", "hidden"} else "#333333",
            )
    if titled:
        shown = label[: int((box.width - 6) / BOLD_PX)]
        yield f'<text x="{box.x + 3:.1f}" y="{box.y + 11:.1f}" font-weight="bold">{escape(shown)}</text>'
    yield "</g>"


def _label(box: Box, name: str, colour: str) -> Iterator[str]:
    letters = int((box.width - 6) / LETTER_PX)
    if box.height > 14 and letters >= LEAST_LETTERS:
        name = name if len(name) <= letters else f"{name[: letters - 1]}…"
        yield f'<text x="{box.x + 3:.1f}" y="{box.y + 12:.1f}" fill="{colour}">{escape(name)}</text>'


def _rectangle(box: Box, colour: str, title: str = "") -> str:
    stroke = ' stroke="#ffffff" stroke-width="0.5"'
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    return f'<rect {place} fill="{colour}"{stroke}>{title}</rect>'


def _legend() -> Iterator[str]:
    x = 8.0
    y = HEIGHT_PX - FOOTER_PX + 8
    for name, meaning in LEGEND.items():
        yield _rectangle(Box(x, y, 14, 14), COLOURS[name])
        yield f'<text x="{x + 19:.1f}" y="{y + 11:.1f}" font-size="12">{escape(meaning)}</text>'
        x += 32 + len(meaning) * 6.3
