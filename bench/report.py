"""The report of a run: Markdown with its tables, and plots as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from bench.harness import SHAPES
from bench.results import Figure, Results, figure
from bench.targets import Verdict, verdicts

BASELINE: Final = "framebus-futex"
FIGURES: Final = {"p50_us": "p50", "p99_us": "p99", "sender_cpu_us": "sender's CPU"}
OURS: Final = "framebus"
FLOOR: Final = "floor"
Rows = list[dict[str, float]]


def write(results: Results, page: Path) -> None:
    """Write the page, and the plots into a folder beside it that has the page's name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from bench.plots import draw

    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw(results, folder)
    page.write_text("\n".join(_page(results, [f"{folder.name}/{plot.name}" for plot in plots])) + "\n")


def _page(results: Results, plots: list[str]) -> Iterable[str]:
    machine = results["machine"]
    command = "make bench" if results["form"] == "short" else "make bench-full"
    yield "# Benchmarks"
    yield ""
    yield (
        f"Made by `{command}` on {results['started']} in "
        f"{results['seconds'] / 60:.1f} minutes: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}; load average before it {machine['load_before']}."
    )
    yield ""
    yield _HOW
    yield "## What framebus sets out to reach"
    yield ""
    yield from _targets(verdicts(results))
    yield "## Where another is ahead"
    yield ""
    yield from _ahead(results)
    for plot in plots:
        yield f"![{Path(plot).stem.replace('-', ' ')}]({plot})"
        yield ""
    for scenario in results["scenarios"]:
        yield f"## {scenario['name'][0].upper()}{scenario['name'][1:]}"
        yield ""
        yield from _scenario(scenario, results["peers"])
    yield from _attach(results["attach"])
    yield from _pipeline(results.get("pipeline"))
    yield "## Copies"
    yield ""
    yield "What a copy of a frame takes in one process, the floor of whatever copies:"
    yield ""
    yield from _table(
        ("frame", "copy, us"), ((size, _text(Figure.of(taken))) for size, taken in results["copy_us"].items())
    )
    yield "## Who took part"
    yield ""
    yield from _table(
        ("peer", "version", "how it hands over"),
        ((peer["title"], peer["version"], peer["how"]) for peer in results["peers"].values()),
    )
    if results["missing"]:
        yield "Missing from this run:"
        yield ""
        yield from (f"- {name}: {reason}" for name, reason in results["missing"].items())
        yield ""


_HOW: Final = """\
A sender and its receivers are Python processes. The time of a hand-over goes from just before the call that publishes
to just after the call with which the receiver holds the frame's array, both CLOCK_MONOTONIC. Every frame carries its
sequence and a checksum of eight rows, which the receiver checks after it has read the clock. CPU time is that of the
whole process, its threads included, for each frame, less what pacing, stamping and checking take. The candidates of a
table take turns, a round each, in an order that changes; a figure is the median of the rounds' figures, with the least
and the most of them behind it. Unless a table says otherwise, the sender has one core for itself and the receivers the
others: which core the scheduler chooses would else decide more than the candidate does. *delivered* is the part of the
sent frames that arrived: peers that keep the newest frame may drop those before.
"""


def _targets(all_verdicts: list[Verdict]) -> Iterable[str]:
    missed = [verdict for verdict in all_verdicts if verdict.text == "missed"]
    met = [verdict for verdict in all_verdicts if verdict.text == "met"]
    yield f"{len(met)} of {len(all_verdicts)} are met in this run, {len(missed)} are missed."
    yield ""
    rows = (
        (
            verdict.target.claim,
            f"{verdict.target.limit:g} {verdict.target.unit}".strip(),
            "" if verdict.value is None else f"{verdict.value:.3g} {verdict.target.unit}".strip(),
            f"**{verdict.text}**" if verdict.text == "missed" else verdict.text,
        )
        for verdict in all_verdicts
    )
    yield from _table(("ratio, or figure", "at most", "in this run", ""), rows)


def _ahead(results: Results) -> Iterable[str]:
    """The peers whose figure is better than that of every way of framebus in the same conditions."""
    rows = []
    for scenario in results["scenarios"]:
        groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for one in scenario["candidates"].values():
            if one["rounds"]:
                groups.setdefault((one["size"], one["receivers"], one["where"]), []).append(one)
        for (size, receivers, _), candidates in groups.items():
            for name, what in FIGURES.items():
                values = {one["peer"]: value.median for one in candidates if (value := figure(one["rounds"], name))}
                ours = min((value for peer, value in values.items() if peer.startswith(OURS)), default=0.0)
                rows += [
                    (
                        scenario["name"],
                        size,
                        str(receivers),
                        results["peers"][peer]["title"],
                        what,
                        _number(value),
                        _number(ours),
                    )
                    for peer, value in values.items()
                    if value < ours and not peer.startswith(FLOOR)
                ]
    if not rows:
        yield "Nowhere in this run."
        yield ""
        return
    yield "Better than the best of framebus's ways in the same table, floors left aside; times in microseconds."
    yield ""
    yield from _table(("table", "size", "receivers", "peer", "figure", "its", "framebus's best"), rows)


def _scenario(scenario: Mapping[str, Any], peers: Mapping[str, Any]) -> Iterable[str]:
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
            failures.append(f"- {what}: {_last_line(one['failure'])}")
        if not rounds:
            continue
        p50, torn = figure(rounds, "p50_us"), figure(rounds, "torn")
        rows.append(
            (
                title,
                *(str(one[name]) for name in varied),
                _text(p50),
                f"{p50.median / base.median:.2f}" if p50 and base else "",
                _text(figure(rounds, "p99_us")),
                _text(figure(rounds, "fps")),
                _text(figure(rounds, "sender_cpu_us")),
                _text(figure(rounds, "receiver_cpu_us")),
                _percent(figure(rounds, "delivered")),
                ("not checked" if not peers[one["peer"]]["exact"] else f"{torn.most:.0f}") if torn else "",
            )
        )
    yield from _table(heads, rows)
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
    yield from _table(
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


def _pipeline(pipeline: Mapping[str, Any] | None) -> Iterable[str]:
    if not pipeline:
        return
    yield "## The pipeline"
    yield ""
    yield (
        f"The services on five simulated cameras, with a viewer that decodes nothing, for {pipeline['seconds']:.0f} s "
        f"from {pipeline['started']} on: "
        f"{pipeline['panoramas_per_s']:.1f} panoramas a second, of which a further subscriber missed "
        f"{pipeline['skipped']}; {pipeline['pictures_per_s']:.1f} pictures a second at the page, and boxes of "
        f"{pipeline['boxes_per_s']:.1f} panoramas. Of the time from the capture to the page the hand-over of the "
        f"panorama is {pipeline['hand_over_part']:.2%}."
    )
    yield ""
    yield from _table(
        ("stage", "p50, ms", "p99, ms"),
        ((name, _number(p50), _number(p99)) for name, (p50, p99) in pipeline["stages_ms"].items()),
    )
    yield from _table(("service", "cores"), ((name, f"{used:.2f}") for name, used in pipeline["cores"].items()))


def _text(value: Figure | None) -> str:
    if value is None:
        return ""
    return f"{_number(value.median)} ({_number(value.least)} to {_number(value.most)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(value: Figure | None) -> str:
    return f"{value.median:.1%}" if value else ""


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1][:400] if text.strip() else ""


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterable[str]:
    heads = list(heads)
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
