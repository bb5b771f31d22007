"""Writes all tables of a run as Markdown. The page of the benchmarks summarizes them and links to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from bench.harness import SHAPES
from bench.markdown import number, percent, spread, table
from bench.results import Figure, Results, figure
from bench.targets import Verdict, verdicts

BASELINE: Final = "framebus-futex"
FIGURES: Final = {"p50_us": "p50", "p99_us": "p99", "sender_cpu_us": "sender's CPU"}
OURS: Final = "framebus"
FLOOR: Final = "floor"
PEERS: Final = "peers"
"""Beginning of the names of the scenarios in which every peer takes part."""
TABLES: Final = {
    "targets.md": "what framebus sets out to reach, and where another is ahead",
    "peers.md": "every peer, by frame size and by subscribers, and how each hands over",
    "conditions.md": "frame rate, jitter, frame sizes, subscribers, cores, containers; attaching; copies",
}
"""The files and their contents."""
Rows = list[dict[str, float]]


def write(results: Results, folder: Path) -> list[Path]:
    """Write the tables and the pictures of a run into a folder; return the pictures' files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # Imported here, because only the pictures need matplotlib.
    from bench.plots import draw

    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (
        ("targets.md", _targets_file(results)),
        ("peers.md", _peers_file(results)),
        ("conditions.md", _conditions_file(results)),
    ):
        text = "\n".join([f"# Benchmarks: {TABLES[name]}", "", statement(results), "", *lines])
        (folder / name).write_text(text.rstrip("\n") + "\n")
    return draw(results, folder)


def statement(results: Results) -> str:
    """Return the sentence that says when, where and by which command a run was made."""
    machine = results["machine"]
    command = "make bench" if results["form"] == "short" else "make bench-full"
    return (
        f"Made by `{command}` on {results['started']} in "
        f"{results['seconds'] / 60:.1f} minutes: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}; load average before it {machine['load_before']}."
    )


def _targets_file(results: Results) -> Iterable[str]:
    yield "## What framebus sets out to reach"
    yield ""
    all_verdicts = verdicts(results)
    yield targets_met(all_verdicts)
    yield ""
    yield from _targets(all_verdicts)
    yield "## Where another is ahead"
    yield ""
    yield from _ahead(results)


def _peers_file(results: Results) -> Iterable[str]:
    for scenario in results["scenarios"]:
        if scenario["name"].startswith(PEERS):
            yield from _scenario(scenario, results["peers"])
    yield "## Peers"
    yield ""
    yield from table(
        ("peer", "version", "how it hands over"),
        ((peer["title"], peer["version"], peer["how"]) for peer in results["peers"].values()),
    )
    if results["missing"]:
        yield "Missing from this run:"
        yield ""
        yield from (f"- {name}: {reason}" for name, reason in results["missing"].items())
        yield ""


def _conditions_file(results: Results) -> Iterable[str]:
    for scenario in results["scenarios"]:
        if not scenario["name"].startswith(PEERS):
            yield from _scenario(scenario, results["peers"])
    yield from _attach(results["attach"])
    yield "## Copies"
    yield ""
    yield "What a copy of a frame takes in one process, the floor of whatever copies:"
    yield ""
    yield from table(
        ("frame", "copy, us"), ((size, spread(Figure.of(taken))) for size, taken in results["copy_us"].items())
    )


def targets_met(all_verdicts: list[Verdict]) -> str:
    """Return the sentence that counts the targets that a run met and missed."""
    missed = [verdict for verdict in all_verdicts if verdict.text == "missed"]
    met = [verdict for verdict in all_verdicts if verdict.text == "met"]
    return f"{len(met)} of {len(all_verdicts)} are met in this run, {len(missed)} are missed."


def _targets(all_verdicts: list[Verdict]) -> Iterable[str]:
    rows = (
        (
            verdict.target.claim,
            f"{verdict.target.limit:g} {verdict.target.unit}".strip(),
            "" if verdict.value is None else f"{verdict.value:.3g} {verdict.target.unit}".strip(),
            f"**{verdict.text}**" if verdict.text == "missed" else verdict.text,
        )
        for verdict in all_verdicts
    )
    yield from table(("ratio, or figure", "at most", "in this run", ""), rows)


def _ahead(results: Results) -> Iterable[str]:
    """Yield the table of peers with a better figure than every way of framebus under the same conditions."""
    rows = []
    for scenario in results["scenarios"]:
        # Compare only candidates of the same size, number of receivers and place.
        groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for one in scenario["candidates"].values():
            if one["rounds"]:
                groups.setdefault((one["size"], one["receivers"], one["where"]), []).append(one)
        for (size, receivers, _), candidates in groups.items():
            for name, what in FIGURES.items():
                values = {one["peer"]: value.median for one in candidates if (value := figure(one["rounds"], name))}
                # Any way of framebus will do, because a user may choose it.
                ours = min((value for peer, value in values.items() if peer.startswith(OURS)), default=0.0)
                rows += [
                    (
                        scenario["name"],
                        size,
                        str(receivers),
                        results["peers"][peer]["title"],
                        what,
                        number(value),
                        number(ours),
                    )
                    for peer, value in values.items()
                    # A floor hands no frame over, so it is not a competitor.
                    if value < ours and not peer.startswith(FLOOR)
                ]
    if not rows:
        yield "Nowhere in this run."
        yield ""
        return
    yield "Better than the best of framebus's ways in the same table, floors left aside; times in microseconds."
    yield ""
    yield from table(("table", "size", "receivers", "peer", "figure", "its", "framebus's best"), rows)


def _scenario(scenario: Mapping[str, Any], peers: Mapping[str, Any]) -> Iterable[str]:
    yield f"## {scenario['name'][0].upper()}{scenario['name'][1:]}"
    yield ""
    notes = ["flat out" if not scenario["fps"] else f"{scenario['fps']:g} frames a second"]
    if scenario["jitter"]:
        notes.append(f"each period off by up to {scenario['jitter']:.0%}")
    if not scenario["pinned"]:
        notes.append("cores as the scheduler likes")
    began = f", from {scenario['started']} on" if "started" in scenario else ""
    yield f"{', '.join(notes).capitalize()}{began}. Times in microseconds."
    yield ""
    candidates = list(scenario["candidates"].values())
    varied = [name for name in ("size", "receivers", "where") if len({one[name] for one in candidates}) > 1]
    if len({one["size"] for one in candidates}) == 1:
        height, width, channels = SHAPES[candidates[0]["size"]]
        yield f"Frames of {height} x {width} x {channels} bytes."
        yield ""
    baseline: Rows = next((one["rounds"] for one in candidates if one["peer"] == BASELINE), [])
    base = figure(baseline, "p50_us")
    heads = (
        "peer",
        *varied,
        "p50",
        f"to {BASELINE}",
        "p99",
        "frames/s",
        "sender's CPU",
        "receiver's CPU",
        "delivered",
        "torn",
    )
    rows, failures = [], []
    for one in candidates:
        rounds, title = one["rounds"], peers[one["peer"]]["title"]
        if one["failure"]:
            what = ", ".join((title, *(str(one[name]) for name in varied)))
            # A candidate that failed in a later round still has figures of the rounds before.
            failures.append(f"- {what}: {_last_line(one['failure'])}")
        if not rounds:
            continue
        p50, torn = figure(rounds, "p50_us"), figure(rounds, "torn")
        rows.append(
            (
                title,
                *(str(one[name]) for name in varied),
                spread(p50),
                f"{p50.median / base.median:.2f}" if p50 and base else "",
                spread(figure(rounds, "p99_us")),
                spread(figure(rounds, "fps")),
                spread(figure(rounds, "sender_cpu_us")),
                spread(figure(rounds, "receiver_cpu_us")),
                percent(figure(rounds, "delivered")),
                ("not checked" if not peers[one["peer"]]["exact"] else f"{torn.most:.0f}") if torn else "",
            )
        )
    yield from table(heads, rows)
    memory = [
        (peers[one["peer"]]["title"], *(str(one[name]) for name in varied), *_memory(one))
        for one in candidates
        if one["memory"]
    ]
    yield (
        "Memory after the rounds, in MB; *shared* counts each page of shared memory once over all processes, RSS in "
        "each that has mapped it."
    )
    yield ""
    yield from table(
        ("peer", *varied, "shared", "sender's own", "receiver's own", "sender's RSS", "receiver's RSS"), memory
    )
    if failures:
        yield "Failed:"
        yield ""
        yield from failures
        yield ""


def _memory(candidate: Mapping[str, Any]) -> tuple[str, ...]:
    memory = candidate["memory"]
    return (
        f"{memory['shared'] / 1e6:.1f}",
        f"{memory['sender_private'] / 1e6:.1f}",
        f"{memory['receiver_private'] / 1e6:.1f}",
        f"{memory['sender_rss'] / 1e6:.1f}",
        f"{memory['receiver_rss'] / 1e6:.1f}",
    )


def _attach(attach: Mapping[str, float]) -> Iterable[str]:
    if not attach:
        return
    yield "## Attaching"
    yield ""
    yield (
        f"From the call that subscribes to a live ring of eight 10 MB slots to the first frame's array: "
        f"{attach['first_frame_ms']:.1f} ms ({attach['first_frame_ms_least']:.1f} to "
        f"{attach['first_frame_ms_most']:.1f}). Reading a byte of each of the {attach['touched_pages']:.0f} pages of "
        f"the first eight frames took {attach['first_lap_faults']:.0f} minor faults, of the next eight "
        f"{attach['second_lap_faults']:.0f}. {attach['waiting_faults']:.0f} more came where the subscriber waited or "
        f"took a slot's first frame: there it maps the ring."
    )
    yield ""


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1][:400] if text.strip() else ""
