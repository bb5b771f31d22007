"""The calibration against ground truth: a table of successes and of the worst seams, and random rigs.

``python -m tests.services.stitcher.calibration_trials`` (or ``make calibration-trials``) prints both. ``cv2.Stitcher``
places the same pictures beside it, and so does ``stitching-headless`` with ``--stitching PYTHON``, the interpreter of
an environment that has it and OpenCV < 5.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from services.stitcher.calibration.calibrate import calibrate
from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPrior
from tests.services.stitcher import peers, worlds
from tests.services.stitcher.rigs import Error, Rig, Shot, World, camera, compare, drawn_seam_px, row, with_shot

GAINS = (1.0, 0.8, 1.2, 0.9, 1.15)
OVERLAPS = (0.40, 0.28, 0.20, 0.14)
K1S = (0.0, -0.05, -0.2, -0.3)
SEAM_PX, FOCAL = 1.0, 0.005
SURE_SEAM_PX = 3.0
WORLDS: tuple[Callable[[int], World], ...] = (worlds.street, worlds.shapes, worlds.painted)

world = functools.lru_cache(maxsize=16)(lambda paint, seed: paint(seed))
"""Painting a world takes longer than calibrating in it."""


@dataclass(frozen=True)
class Outcome:
    """The result of one trial."""

    placed: int
    of: int
    error: Error | None
    cpu_s: float
    reason: str = ""
    drawn_px: float = 0.0
    """The worst seam where a panorama changes cameras, if a seam in an overlap is too bad."""

    @property
    def is_right(self) -> bool:
        """Return whether all cameras are placed within the limits."""
        error = self.error
        return error is not None and self.placed == self.of and error.seam_px <= SEAM_PX and error.focal <= FOCAL


def attempt(
    rig: Rig, seed: int, place: Callable[..., Calibration] = calibrate, priors: Mapping[str, CameraPrior] | None = None
) -> Outcome:
    """Calibrate one rig and compare the result with the truth."""
    pictures = rig.take(seed)
    started_s = _cpu_s()
    try:
        found = place(pictures, priors=priors) if priors else place(pictures)
    except CalibrationError as error:
        return Outcome(0, len(rig.shots), None, _cpu_s() - started_s, str(error))
    cpu_s = _cpu_s() - started_s
    reasons = "; ".join(f"{name}: {reason}" for name, reason in found.reasons.items())
    off = compare(found, rig)
    drawn_px = drawn_seam_px(found, rig) if off.seam_px > SEAM_PX else 0.0
    return Outcome(len(found.cameras), len(rig.shots), off, cpu_s, reasons, drawn_px)


def five(overlap: float, k1: float, run: int, size: tuple[int, int] = (1920, 1080)) -> Rig:
    """Return five cameras as in the table."""
    seen = world(WORLDS[run % len(WORLDS)], run // len(WORLDS))
    return row(seen, 5, overlap=overlap, k1=k1, tilt_deg=3, gains=GAINS, noise=1.5, vignetting=0.2, seed=run, size=size)


def special_rigs() -> Iterator[tuple[str, Rig, dict[str, CameraPrior]]]:
    """Return rigs of different cameras, with what is known of them."""
    street = world(worlds.street, 1)
    for count in (2, 3, 16):
        yield f"{count} cameras", row(street, count, hfov_deg=60 if count < 16 else 30, overlap=0.28), {}
    yield "eight round the circle", row(street, 8, hfov_deg=62, overlap=1 - 45 / 62), {}
    yield "4K among 720p", with_shot(row(street, 5), "cam2", pose=camera("cam2", 0, size=(3840, 2160))), {}
    small = row(street, 5, size=(1920, 1080))
    yield "360p among 1080p", with_shot(small, "cam2", pose=camera("cam2", 0, size=(640, 360))), {}
    wide = (camera("a", -60), camera("b", 0, hfov_deg=105), camera("c", 60))
    yield "105 between 60 degrees", Rig(street, tuple(Shot(pose) for pose in wide)), {}
    turned = row(world(worlds.shapes, 1), 5, overlap=0.28)
    yield "one turned by 90", with_shot(turned, "cam2", pose=camera("cam2", 0, 0, 90)), {}
    yield "one upside down", with_shot(turned, "cam2", pose=camera("cam2", 0, 0, 180)), {}
    yield "roll and pitch of 12", row(street, 5, tilt_deg=12, overlap=0.28), {}
    for aspect, size in ((2.0, (960, 1080)), (16 / 11, (704, 576))):
        poses = [camera(f"cam{i}", 43 * i - 86, size=size, pixel_aspect=aspect) for i in range(5)]
        known = {pose.name: CameraPrior(pixel_aspect=aspect) for pose in poses}
        yield f"pixels of {aspect:.2f}", Rig(street, tuple(Shot(pose) for pose in poses)), known
    yield "night", row(street, 5, night=True, noise=2.0), {}
    yield "clock and name, 14 %", row(street, 5, overlap=0.14, overlay=True), {}
    yield (
        "hfov of a lens with k1 -0.2",
        row(street, 5, k1=-0.2),
        {f"cam{i}": CameraPrior(60.0) for i in range(5)},
    )


def random_rig(seed: int) -> Rig:
    """Return a random rig, which may be impossible."""
    random = np.random.default_rng(seed)

    def chance(share: float) -> bool:
        return bool(random.random() < share)

    paints = (worlds.street, worlds.shapes, worlds.painted, worlds.film, worlds.facade, worlds.water)
    paint = paints[int(random.choice(6, p=(0.34, 0.2, 0.14, 0.1, 0.12, 0.1)))]
    seen = world(paint, int(random.integers(2)))
    spacing_m = 0.0
    if chance(0.2):
        distance_m = float(random.uniform(2, 30))
        seen = worlds.before(seen, int(random.integers(100)), distance_m, random.uniform(0.05, 0.5))
        spacing_m = float(distance_m * 10 ** random.uniform(-3, -0.8))
    rig = row(
        seen,
        int(random.integers(2, 7)),
        overlap=float(random.uniform(-0.1, 0.45)),
        seed=seed,
        hfov_deg=float(random.uniform(35, 75)),
        size=(960, 540) if chance(0.7) else (1280, 720),
        k1=float(random.uniform(-0.3, 0.05)),
        k2=float(random.uniform(0.0, 0.08)) if chance(0.3) else 0.0,
        tilt_deg=float(random.choice([0, 3, 8, 15])),
        gains=tuple(random.uniform(0.7, 1.3, 7).tolist()),
        vignetting=float(random.choice([0.0, 0.4])),
        noise=float(random.uniform(0, 6)),
        night=chance(0.15),
        overlay=chance(0.2),
        spacing_m=spacing_m,
    )
    names = list(rig.truth)
    name = names[int(random.integers(len(names)))]
    if chance(0.2):
        rig = replace(
            rig, shown={name: world(worlds.street, 7) if chance(0.6) else worlds.plain(int(random.integers(255)))}
        )
    pose = rig.truth[name]
    if chance(0.25):
        yaw_deg = float(np.degrees(pose.yaw_rad))
        other = camera(
            name,
            yaw_deg,
            float(random.uniform(-8, 8)),
            float(random.choice([0, 90, 180, -90, 30])),
            hfov_deg=float(random.uniform(30, 100)),
            size=((640, 360), (1280, 720), (540, 960), (1920, 1080))[int(random.integers(4))],
        )
        rig = with_shot(rig, name, pose=other)
    if paint is worlds.water:
        # Each picture shows other waves.
        rig = replace(rig, shown={n: world(worlds.water, 10 + i) for i, n in enumerate(names)})
    return rig


def _try_random(seed: int) -> tuple[int, Outcome]:
    cv2.setNumThreads(1)
    return seed, attempt(random_rig(seed), seed)


def _try_five(case: tuple[float, float, int, str]) -> tuple[tuple[float, float, int, str], Outcome]:
    cv2.setNumThreads(1)
    overlap, k1, run, who = case
    return case, attempt(five(overlap, k1, run), run, calibrate if who == "framebus" else peers.PLACE[who])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials; the table comes last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="runs of each cell of the table")
    parser.add_argument("--random", type=int, default=1000, help="random rigs")
    parser.add_argument("--first", type=int, default=0, help="seed of the first random rig")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--peers", action="store_true", help="place the pictures with cv2.Stitcher too")
    parser.add_argument("--stitching", type=Path, help="Python of an environment with stitching-headless")
    options = parser.parse_args(arguments)
    if options.stitching:
        if subprocess.run([options.stitching, "-c", "import stitching"], check=False).returncode:
            parser.error(f"{options.stitching} has no stitching-headless: install it there, with OpenCV < 5")
        os.environ[peers.STITCHING_PYTHON] = str(options.stitching)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        wrong = _random_rigs(pool, range(options.first, options.first + options.random))
        is_right = _special(options.runs > 0)
        who = ["framebus", *(name for name in peers.PLACE if _is_wanted(name, options))]
        is_right &= _table(pool, who, options.runs)
    return 0 if is_right and not wrong else 1


def _is_wanted(peer: str, options: argparse.Namespace) -> bool:
    return bool(options.stitching if peer.startswith("stitching") else options.peers)


def _cpu_s() -> float:
    """Return the CPU time of this process and of the peers' processes, their start included."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _random_rigs(pool: concurrent.futures.Executor, seeds: range) -> int:
    placed = refused = partly = wrong = drawn = 0
    for seed, outcome in pool.map(_try_random, seeds):
        seam_px = outcome.error.seam_px if outcome.error else 0.0
        refused += outcome.placed == 0
        placed += outcome.placed == outcome.of
        partly += 0 < outcome.placed < outcome.of
        wrong += seam_px > SURE_SEAM_PX
        drawn += outcome.drawn_px > SURE_SEAM_PX
        if seam_px > SEAM_PX:
            print(
                f"rig {seed}: {outcome.placed} of {outcome.of} placed, seam {seam_px:.1f} px,"
                f" {outcome.drawn_px:.1f} px where the panorama changes cameras",
                flush=True,
            )
        if (seed - seeds.start + 1) % 50 == 0:
            print(f"after {seed - seeds.start + 1} random rigs: {placed} placed, {wrong} wrong", flush=True)
    if seeds:
        print(
            f"{len(seeds)} random rigs: {placed} placed, {partly} in part, {refused} refused;"
            f" {wrong} called sure with a seam above {SURE_SEAM_PX:.0f} px, {drawn} where the panorama changes cameras",
            flush=True,
        )
    return wrong


def _special(wanted: bool) -> bool:
    is_right = True
    for name, rig, known in special_rigs() if wanted else ():
        outcome = attempt(rig, 1, priors=known)
        is_right &= outcome.is_right
        said = f"seam {outcome.error.seam_px:.2f} px" if outcome.error else ""
        print(f"{name:30} {outcome.placed} of {outcome.of} {said} {outcome.reason}", flush=True)
    return is_right


def _table(pool: concurrent.futures.Executor, who: Sequence[str], runs: int) -> bool:
    # Run by run, because all cells of a run are in the same world.
    cases = [(overlap, k1, run, one) for run, overlap, k1, one in itertools.product(range(runs), OVERLAPS, K1S, who)]
    outcomes: dict[tuple[float, float, str], list[Outcome]] = {}
    for (overlap, k1, run, one), outcome in pool.map(_try_five, cases):
        outcomes.setdefault((overlap, k1, one), []).append(outcome)
        if one == "framebus" and not outcome.is_right:
            print(f"overlap {overlap} k1 {k1} run {run}: {outcome}", flush=True)
    if not cases:
        return True
    print(
        "five cameras of 1920x1080: runs in which all were placed / within 1 px and 0.5 %, worst seam, CPU-s (median)"
    )
    print(f"{'overlap':>8}{'k1':>7}  " + "".join(f"{one:>34}" for one in who))
    for overlap, k1 in itertools.product(OVERLAPS, K1S):
        cells = "".join(f"{_cell(outcomes[overlap, k1, one]):>34}" for one in who)
        print(f"{overlap:8.0%}{k1:7.2f}  {cells}")
    for one in who[1:]:
        reasons = Counter(outcome.reason for key, several in outcomes.items() if key[2] == one for outcome in several)
        print(f"{one} places none: {', '.join(f'{n} x {why}' for why, n in reasons.most_common() if why) or 'never'}")
    ours = [outcome for (_, _, one), several in outcomes.items() if one == "framebus" for outcome in several]
    return all(outcome.is_right for outcome in ours)


def _cell(several: Sequence[Outcome]) -> str:
    placed = sum(outcome.placed == outcome.of for outcome in several)
    right = sum(outcome.is_right for outcome in several)
    worst = max((outcome.error.seam_px for outcome in several if outcome.error), default=float("nan"))
    cpu_s = float(np.median([outcome.cpu_s for outcome in several]))
    return f"{placed}/{right} of {len(several)}, {worst:8.2f} px, {cpu_s:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
