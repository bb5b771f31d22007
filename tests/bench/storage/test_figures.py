"""Tables of figures: rounds in turns, rows without figures, and how the page shows them."""

from __future__ import annotations

from bench.storage.figures import FigureTable, NotHere, from_json, lines, take_turns, to_json


def test_every_candidate_has_every_round_in_a_changing_order() -> None:
    table = FigureTable("lookups", "a folder")
    asked: list[str] = []

    def one(name: str) -> dict[str, float]:
        asked.append(name)
        return {"us": float(len(asked))}

    take_turns(table, {name: lambda name=name: one(name) for name in "abc"}, 20)  # type: ignore[misc]
    rounds = ["".join(asked[at : at + 3]) for at in range(0, 60, 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) > 1
    assert {row.name: len(row.cells["us"]) for row in table.rows} == {"a": 20, "b": 20, "c": 20}


def test_a_candidate_that_cannot_run_says_why_and_the_others_continue() -> None:
    table = FigureTable("drivers", "overlay2")
    tries: list[str] = []

    def absent() -> dict[str, float]:
        tries.append("absent")
        raise NotHere("not in this kernel")

    take_turns(table, {"overlay2": lambda: {"s": 1.0}, "zfs": absent}, 3)
    assert tries == ["absent"]
    assert table.row("overlay2").cells == {"s": [1.0, 1.0, 1.0]}
    assert (table.row("zfs").cells, table.row("zfs").note) == ({}, "not in this kernel")


def test_a_table_shows_medians_spreads_and_notes() -> None:
    table = FigureTable("drivers", "overlay2", text="In turns.")
    for value in (3.0, 1.0, 2.0):
        table.row("overlay2").add({"start, s": value})
    table.row("vfs").add({"start, s": 5.0, "disk, MB": 1234.0})
    table.row("zfs").note = "not in this kernel | none"
    assert list(lines(table)) == [
        "**drivers.** Baseline: overlay2. In turns.",
        "",
        "|  | start, s | disk, MB | seen |",
        "| --- | --- | --- | --- |",
        "| overlay2 | 2 (1 to 3) |  |  |",
        "| vfs | 5 | 1,234 |  |",
        "| zfs |  |  | not in this kernel / none |",
        "",
    ]


def test_tables_survive_a_round_trip_through_json() -> None:
    table = FigureTable("one", "none")
    table.row("a").add({"x": 1.5})
    assert from_json(to_json([table])) == [table]
