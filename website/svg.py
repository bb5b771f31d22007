"""SVG pictures in the colours of the page around them, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

INK: Final = "var(--color-foreground-primary, #222)"
PALE: Final = "var(--color-foreground-muted, #777)"
FILL: Final = "var(--color-background-secondary, #f4f4f4)"
MARK: Final = "var(--color-brand-primary, #2457a6)"
FONT: Final = "var(--font-stack, sans-serif)"
MONO: Final = "var(--font-stack--monospace, monospace)"


class Picture:
    """A drawing, built shape by shape. Lengths are in px at full size."""

    def __init__(self, width_px: float, height_px: float, title: str) -> None:
        self.width_px, self.height_px, self.title = width_px, height_px, title
        self._shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, *, fill: str = FILL, line: str = INK) -> None:
        """Add a rectangle."""
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{fill}" stroke="{line}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        anchor: str = "start",
        ink: str = INK,
        font: str = FONT,
    ) -> None:
        """Add a line of text, whose baseline is at ``y``."""
        place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
        self._shapes.append(f'<text {place} style="fill:{ink};font-family:{font}">{escape(text)}</text>')

    def lines(self, x: float, y: float, texts: Sequence[str], *, size: float = 13, anchor: str = "middle") -> None:
        """Add lines of text below each other, centred on ``y``."""
        height = size * 1.25
        top = y - height * (len(texts) - 1) / 2 + size * 0.35
        for index, text in enumerate(texts):
            self.text(x, top + index * height, text, size=size, anchor=anchor)

    def path(self, way: str, *, ink: str = INK, width: float = 1.2, arrow: bool = True, dashed: bool = False) -> None:
        """Add a line along an SVG path."""
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self._shapes.append(f'<path d="{way}" fill="none" stroke="{ink}" stroke-width="{width:g}"{dashes}{end}/>')

    def render(self) -> str:
        """Return the picture as an element of HTML, on lines without an empty one between them."""
        head = (
            f'<svg viewBox="0 0 {self.width_px:g} {self.height_px:g}" role="img" aria-label="{escape(self.title)}" '
            f'style="max-width:{self.width_px:g}px;min-width:{self.width_px * 0.8:g}px;width:100%">'
        )
        marker = (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 8 4 0 8z" fill="{PALE}"/></marker></defs>'
        )
        return "\n".join([head, marker, *self._shapes, "</svg>"])


def figure(picture: Picture, caption: str) -> str:
    """Return a picture with its caption as a block of Markdown."""
    return (
        f'```{{raw}} html\n<figure class="drawing"><div>\n{picture.render()}\n</div>\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n```\n"
    )
