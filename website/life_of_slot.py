"""A drawing of a slot's life, whose steps are those of docs/spec.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from website.svg import MARK, Picture, figure

SPEC: Final = Path(__file__).parent.parent / "docs/spec.md"
PUBLISHER: Final = ("P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8")
SUBSCRIBER: Final = ("R1", "R2", "R3", "R4", "R5", "R6")


def steps() -> dict[str, str]:
    """Return the steps of the specification: their numbers, and what is done in each.

    Raises:
        ValueError: The table has other steps than those that are drawn.
    """
    cells = re.findall(r"\| (?=[PR]\d\. )([PR]\d)\. ((?:\\\||[^|])*?) (?=\|)", SPEC.read_text(encoding="utf-8"))
    found = {number: text.replace("\\|", "|").replace("`", "") for number, text in cells}
    if set(found) != {*PUBLISHER, *SUBSCRIBER}:
        raise ValueError(f"website/life_of_slot.py draws other steps than docs/spec.md has: {', '.join(found)}")
    return found


def drawing() -> str:
    """Return the drawing as Markdown."""
    told = steps()
    picture = Picture(736, 390, "The life of a slot")
    free, loan = (30, 40), (516, 40)
    leased, newest = (30, 300), (516, 300)
    states = {
        free: ("free", "seq = 0, or an older frame;", "no lock"),
        loan: ("on loan", "seq = 0; the publisher's", "write lock"),
        newest: ("the newest frame", "tail names it;", "no lock"),
        leased: ("leased", "read locks of", "subscribers"),
    }
    for (x, y), lines in states.items():
        picture.box(x, y, 190, 78, line=MARK)
        picture.lines(x + 95, y + 39, lines, size=12)
    picture.path("M220 62H514")
    picture.lines(368, 40, [f"P1 {told['P1']},", f"P2 {told['P2']}"], size=11)
    picture.path("M516 88H222")
    picture.lines(
        368, 108, ["given back unpublished, or the publisher dies:", "unlock alone, by it or by the kernel"], size=11
    )
    picture.path("M665 118V298")
    picture.lines(655, 165, [f"P3 {told['P3']}", f"P4 {told['P4']}"], size=11, anchor="end")
    picture.lines(655, 225, [f"P5 {told['P5']}, P6 {told['P6']},", f"P7 {told['P7']}, P8"], size=11, anchor="end")
    picture.path("M570 300 200 120")
    picture.lines(290, 215, ["P7 of the", "next frame"], size=11)
    picture.path("M516 325H222")
    picture.lines(368, 311, [f"R2 {told['R2'].partition(';')[0]}, R3"], size=11)
    picture.path("M220 352H514")
    picture.lines(368, 368, [f"R6 {told['R6'].partition(',')[0]}"], size=11)
    picture.path("M110 118V298")
    picture.lines(120, 165, ["R2, R3"], size=11, anchor="start")
    picture.path("M70 298V120")
    picture.lines(60, 250, ["R6"], size=11, anchor="end")
    return figure(picture, "The life of a slot. P and R are the steps of the publisher and of a subscriber.")
