"""Publishes a run: its figures, tables and pictures in bench/results/, and the generated part of docs/benchmarks.md."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from bench import report
from bench.markdown import median, number, spread, table
from bench.results import Results, figure, load, of_panoramas
from bench.targets import verdicts

BEGIN: Final = "<!-- Made by 'make bench-publish': change bench/publish.py instead. -->"
END: Final = "<!-- End of what 'make bench-publish' makes. -->"
BEST_PEERS: Final = 6
"""Number of other peers in the page's table."""
COSTS: Final = ("p99_us", "sender_cpu_us", "receiver_cpu_us")


def publish(run: Path, folder: Path, page: Path) -> None:
    """Replace the published run by a saved one.

    Args:
        run: The run's figures, JSON.
        folder: Folder of figures, tables and pictures. Those of the previous run are removed.
        page: The page whose generated part is replaced; the text around it stays.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: A file cannot be read or written.
        ValueError: ``run`` holds no results, or ``page`` has no generated part.
    """
    results = load(run)
    written = page.read_text()
    before, after = _around(written, page)
    # Keep the published files until all new ones are written, also because ``run`` may be one of them.
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=folder.parent) as made:
        fresh = Path(made) / folder.name
        pictures = report.write(results, fresh)
        shutil.copyfile(run, fresh / run.name)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    place = os.path.relpath(folder, page.parent)
    lines = summary(results, f"{place}/", run.name, [picture.name for picture in pictures])
    page.write_text("\n".join([before + BEGIN, "", *lines, END + after]))


def _around(written: str, page: Path) -> tuple[str, str]:
    found = re.fullmatch(f"(.*){re.escape(BEGIN)}.*{re.escape(END)}(.*)", written, re.DOTALL)
    if found is None:
        raise ValueError(f"{page} has no generated part: it needs the line {BEGIN} and, below it, {END}")
    return found[1], found[2]


def summary(results: Results, place: str, run: str, pictures: list[str]) -> Iterable[str]:
    """Yield the lines of the page's generated part.

    Args:
        results: The run.
        place: Path from the page to the published files, ending in ``/``.
        run: Name of the file with the run's figures.
        pictures: Names of the pictures' files.
    """
    yield "## The run"
    yield ""
    yield report.statement(results)
    yield ""
    yield f"What framebus [sets out to reach]({place}targets.md): {report.targets_met(verdicts(results))}"
    yield ""
    yield from _hand_over(results)
    yield from _subscribers(results)
    yield from _pipeline(results.get("pipeline"))
    for picture in pictures:
        yield f"![{Path(picture).stem.replace('-', ' ')}]({place}{picture})"
        yield ""
    yield "In full:"
    yield ""
    for name, what in report.TABLES.items():
        yield f"- [{name}]({place}{name}): {what}"
    yield f"- [{run}]({place}{run}): the figures of each round"
    yield ""


def _hand_over(results: Results) -> Iterable[str]:
    """Yield the table of framebus's ways to wait, the best other peers and the floors: panoramas, one receiver."""
    scenario = of_panoramas(results, report.PEERS)
    if scenario is None:
        return
    latencies = {
        one["peer"]: (value, one)
        for one in scenario["candidates"].values()
        if (value := figure(one["rounds"], "p50_us")) and one["size"] == "10 MB"
    }
    others = sorted(
        (peer for peer in latencies if not peer.startswith((report.OURS, report.FLOOR))),
        key=lambda peer: latencies[peer][0].median,
    )
    ours = [peer for peer in latencies if peer.startswith(report.OURS)]
    floors = [peer for peer in latencies if peer.startswith(report.FLOOR)]
    yield "### A hand-over beside the best peers"
    yield ""
    yield f"Scenario *{scenario['name']}*: frames of 10 MB, one receiver. Times in microseconds."
    yield ""
    yield from table(
        ("peer", "p50", "p99", "sender's CPU", "receiver's CPU"),
        (
            (results["peers"][peer]["title"], spread(latencies[peer][0]), *_costs(latencies[peer][1]))
            # Sorted by their median, so these are the best.
            for peer in (*ours, *others[:BEST_PEERS], *floors)
        ),
    )


def _subscribers(results: Results) -> Iterable[str]:
    scenario = of_panoramas(results, "subscribers")
    if scenario is None:
        return
    yield "### Cost by subscribers"
    yield ""
    yield f"Scenario *{scenario['name']}*: frames of 10 MB. Times in microseconds."
    yield ""
    yield from table(
        ("peer", "receivers", "p50", "p99", "sender's CPU", "receiver's CPU"),
        (
            (
                results["peers"][one["peer"]]["title"],
                str(one["receivers"]),
                spread(figure(one["rounds"], "p50_us")),
                *_costs(one),
            )
            for one in scenario["candidates"].values()
            if one["rounds"]
        ),
    )


def _costs(candidate: Mapping[str, Any]) -> Iterable[str]:
    return (median(figure(candidate["rounds"], name)) for name in COSTS)


def _pipeline(pipeline: Mapping[str, Any] | None) -> Iterable[str]:
    if not pipeline:
        return
    yield "### The pipeline"
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
    yield from table(
        ("stage", "p50, ms", "p99, ms"),
        ((name, number(p50), number(p99)) for name, (p50, p99) in pipeline["stages_ms"].items()),
    )
    yield from table(("service", "cores"), ((name, f"{used:.2f}") for name, used in pipeline["cores"].items()))
