"""``python -m bench run`` measures, ``compare`` compares with the run before, ``publish`` updates the documents."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import attach, plan, publish, report
from bench.compare import compare
from bench.containers import containers
from bench.harness import SHAPES, PeerFailed, Scenario, Start, run_scenario, start_process
from bench.peers import all_peers
from bench.results import FORMAT, Results, copy_us, describe_peer, load, machine, now, save, scenario_results
from bench.targets import verdicts

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs/benchmarks.md"
SAVED: Final = ROOT / ".bench"
"""Where each run is saved. Git ignores this folder."""
REPORT: Final = SAVED / "report"
PUBLISHED: Final = ROOT / "bench/results"
FORMS: Final = {"short": plan.short, "full": plan.full}
ATTACHMENTS: Final = {"short": 8, "full": 30}
PIPELINE: Final = "pipeline"
PIPELINE_S: Final = 60.0


def measure(form: str, only: str) -> Results:
    """Run a form's scenarios whose names contain ``only``."""
    begun_s = time.monotonic()
    results: Results = {
        "format": FORMAT,
        "form": form,
        "only": only,
        "started": now(),
        "machine": machine(),
        "missing": {},
        "scenarios": [],
        "attach": {},
        "pipeline": {},
    }
    peers = all_peers()
    # A peer that is not installed is listed with the reason, instead of being an empty row.
    missing = {name: reason for name, peer in peers.items() if (reason := peer.missing())}
    here = {name: peer for name, peer in peers.items() if name not in missing}
    results["missing"] = {peers[name].title: reason for name, reason in missing.items()}
    results["peers"] = {name: describe_peer(peer) for name, peer in here.items()}
    scenarios = [one for one in FORMS[form](list(here)) if only in one.name]
    with ExitStack() as stack:
        starts: dict[str, Start] = {"processes": start_process}
        # Build and start containers only if a selected scenario uses them: this can take minutes.
        if any(candidate.placement == "containers" for one in scenarios for candidate in one.candidates):
            try:
                starts["containers"] = stack.enter_context(containers())
            except PeerFailed as error:
                results["missing"]["two containers"] = str(error)
        for scenario in scenarios:
            runnable = _runnable(scenario, set(here), set(starts))
            started = now()
            outcomes = run_scenario(runnable, here, starts, _tell)
            results["scenarios"].append(scenario_results(runnable, outcomes, started))
    _tell("attaching")
    results["attach"] = attach.summary(attach.measure(ATTACHMENTS[form]))
    # The pipeline takes a minute or more, so the five minutes of the short form exclude it.
    if form == "full" and only in PIPELINE:
        from bench import pipeline  # imported lazily, because every worker imports this module

        _tell(PIPELINE)
        try:
            results["pipeline"] = pipeline.measure(f"bench-{secrets.token_hex(4)}", PIPELINE_S)
        except PeerFailed as error:
            results["missing"]["the pipeline"] = str(error)
    # A copy of each frame size gives the floor for every peer that copies.
    results["copy_us"] = {size: copy_us(size) for size in SHAPES}
    results["seconds"] = time.monotonic() - begun_s
    return results


def _runnable(scenario: Scenario, peers: set[str], places: set[str]) -> Scenario:
    """The scenario without the candidates that cannot run here."""
    candidates = tuple(one for one in scenario.candidates if one.peer in peers and one.placement in places)
    return replace(scenario, candidates=candidates)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _save(results: Results) -> Path:
    # A part of a run has a name of its own, so that compare and publish do not take it for a whole run.
    name = f"{results['form']}{'-part' if results['only'] else ''}"
    path = SAVED / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{name}.json"
    save(results, path)
    return path


def _print_verdicts(results: Results) -> None:
    for verdict in verdicts(results):
        value = "" if verdict.value is None else f"{verdict.value:.3g}"
        print(f"{verdict.text:13} {value:>8} of {verdict.target.limit:<5g} {verdict.target.claim}")


def _run(options: argparse.Namespace) -> int:
    results = measure(options.form, options.only)
    path = _save(results)
    _print_verdicts(results)
    # A part of a run has too few scenarios for the tables.
    if not options.only:
        report.write(results, REPORT)
        print(f"the tables and the pictures are in {REPORT.relative_to(ROOT)}")
    print(f"the figures are {path.relative_to(ROOT)}")
    return 0


def _publish(options: argparse.Namespace) -> int:
    run = options.run or _last(SAVED, "short", "full")
    if run is None:
        _tell("no saved run to publish: make bench-full saves one")
        return 2
    try:
        publish.publish(run, PUBLISHED, PAGE)
    except (OSError, ValueError) as error:
        _tell(str(error))
        return 2
    print(f"published {run.name} in {PUBLISHED.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
    print(f"read the findings in {PAGE.name} against the new tables: they are written by hand")
    return 0


def _last(folder: Path, *forms: str) -> Path | None:
    """Return the latest whole run in a folder; the names of runs begin with their time."""
    runs = (run for form in forms for run in folder.glob(f"*-{form}.json"))
    return max(runs, key=lambda run: run.name, default=None)


def _last_saved(form: str) -> Path | None:
    """Return the latest run of this form, saved here or published; if there is none, the published run."""
    # A checkout without a saved run still has the published one, though it may be of the other form.
    runs = [run for folder in (SAVED, PUBLISHED) if (run := _last(folder, form))]
    return max(runs, key=lambda run: run.name, default=_last(PUBLISHED, *FORMS))


def _compare(options: argparse.Namespace) -> int:
    before_path = options.before or _last_saved(options.form)
    if before_path is None:
        _tell(f"no saved run to compare with: make {'bench' if options.form == 'short' else 'bench-full'} saves one")
        return 2
    try:
        before = load(before_path)
        after = load(options.after) if options.after else None
    except (OSError, ValueError) as error:
        _tell(str(error))
        return 2
    if after is None:
        after = measure(options.form, options.only)
        _save(after)
    worse = 0
    # The largest slow-down comes first.
    for change in sorted(compare(before, after), key=lambda change: -change.ratio):
        word = ("slower" if change.ratio > 1 else "faster") if change.is_clear else "same"
        # Only framebus decides the exit status.
        worse += change.is_clear and change.ratio > 1 and change.candidate.startswith("framebus")
        print(
            f"{word:6} {change.ratio:5.2f}  {change.before_us:9.1f} us -> {change.after_us:9.1f} us  "
            f"{change.scenario}: {change.candidate}"
        )
    print(f"compared with the run of {before['started']}; {worse} figures of framebus are clearly slower")
    return int(worse > 0)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure, save the figures, and write tables and pictures")
    run.set_defaults(command=_run)
    versus = commands.add_parser("compare", help="measure, and compare with the last saved run")
    versus.set_defaults(command=_compare)
    versus.add_argument("--before", type=Path, help="the saved run to compare with; default: the last")
    versus.add_argument("--after", type=Path, help="a saved run to compare, instead of measuring")
    for command in (run, versus):
        command.add_argument("--form", choices=FORMS, default="short", help="short takes less than 5 minutes")
        command.add_argument("--only", default="", metavar="TEXT", help="only scenarios named with TEXT; no tables")
    public = commands.add_parser("publish", help="put the last saved run into bench/results/ and docs/benchmarks.md")
    public.set_defaults(command=_publish)
    public.add_argument("run", type=Path, nargs="?", help="the saved run to publish; default: the last")
    options = parser.parse_args()
    try:
        result: int = options.command(options)
    except KeyboardInterrupt:
        return 130
    return result


if __name__ == "__main__":
    sys.exit(main())
