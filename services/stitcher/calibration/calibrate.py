"""Calibrate the cameras' directions and lenses from one or more pictures of each.

All cameras are assumed to stand at one point, so their pictures differ only by a rotation and by their lenses. Matched
features give an initial estimate (:mod:`~services.stitcher.calibration.search`), least squares on rays refines it
(:mod:`~services.stitcher.calibration.solve`), and each pair is then verified against its overlap
(:mod:`~services.stitcher.calibration.judge`). Cameras that do not fit are removed and reported, and the rest is solved
again.

Source: M. Brown and D. Lowe, "Automatic Panoramic Image Stitching using Invariant Features", IJCV 2007.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.features import find_features, match
from services.stitcher.calibration.judge import Verdict, judge
from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPrior, PointPair
from services.stitcher.calibration.prepare import prepare
from services.stitcher.calibration.result import hfov_deg, to_calibration
from services.stitcher.calibration.search import Lens, Matches, Pair, find_lenses, trial_lens
from services.stitcher.calibration.solve import Solution, Solver, find_links, groups_of

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

WHAT_TO_DO = (
    "let neighbouring cameras overlap by a sixth of their width, where they show still, textured and distant things,"
    " or give calibration.hfov_deg, pairs of points, or a saved calibration.file"
)
MAX_ROUNDS = 12
HFOV_TOLERANCE = 0.2
"""Largest logarithm of the ratio of the found and the configured field of view. A camera beyond it is removed."""


Progress = Callable[[int, int], None]
"""Callback with the number of completed steps and the total."""


def no_progress(_done: int, _total: int) -> None:
    """Ignore the progress."""


def steps_for(pictures: int) -> int:
    """Return the number of steps of a calibration: the features of each picture, the matches, the adjustment."""
    return pictures + 2


def calibrate(
    pictures: Mapping[str, Image | Sequence[Image]],
    *,
    priors: Mapping[str, CameraPrior] | None = None,
    points: Sequence[PointPair] = (),
    min_confidence: float = 1.0,
    progress: Progress = no_progress,
) -> Calibration:
    """Place the cameras.

    Args:
        pictures: By camera, uint8 BGR of shape ``(height, width, 3)``, taken at about the same time; or several
            pictures of each camera, of which the still parts are used.
        priors: Known properties of the cameras, by name.
        points: Points that two cameras see, marked by the operator.
        min_confidence: Least confidence of a pair that links two cameras.
        progress: Called after each step.

    Returns:
        The largest group of cameras that fit together, from left to right; the others are ``unplaced``, with reasons.

    Raises:
        CalibrationError: Fewer than two cameras could be placed, or a value is not a picture.
    """
    names = list(pictures)
    if len(names) < 2:
        raise CalibrationError(f"at least two cameras with a picture are needed, there is {', '.join(names) or 'none'}")
    try:
        return _Task(pictures, priors or {}, points, min_confidence, progress).run()
    except (cv2.error, np.linalg.LinAlgError, FloatingPointError):
        raise CalibrationError(f"the cameras {', '.join(names)} cannot be placed: {WHAT_TO_DO}") from None


class _Task:
    """One calibration."""

    def __init__(
        self,
        pictures: Mapping[str, Image | Sequence[Image]],
        priors: Mapping[str, CameraPrior],
        points: Sequence[PointPair],
        min_confidence: float,
        progress: Progress,
    ) -> None:
        self._names = list(pictures)
        self._priors = {name: priors.get(name, CameraPrior()) for name in self._names}
        self._min_confidence = min_confidence
        several = {name: [one] if isinstance(one, np.ndarray) else list(one) for name, one in pictures.items()}
        self._views = prepare(several, self._priors)
        features = []
        for view in self._views:
            features.append(find_features(view))
            progress(len(features), steps_for(len(self._names)))
        self._features = [len(one.points) for one in features]
        self._pairs: dict[Pair, Matches] = {}
        for i, j in itertools.combinations(range(len(self._names)), 2):
            found = match(features[i], features[j])
            self._pairs[i, j] = Matches(features[i].points[found[:, 0]], features[j].points[found[:, 1]])
        progress(len(self._names) + 1, steps_for(len(self._names)))
        self._marked = self._read_points(points)
        self._lenses = self._guess_lenses()
        self._faults: dict[Pair, str] = {}
        self._reasons: dict[str, str] = {}

    def _read_points(self, points: Sequence[PointPair]) -> dict[Pair, Matches]:
        gathered: dict[Pair, list[tuple[Matrix, Matrix]]] = {}
        for one in points:
            if not set(one.cameras) <= set(self._names):
                continue
            # Pairs are keyed by ascending index, in whatever order the operator named the cameras.
            ends = sorted(zip(map(self._names.index, one.cameras), one.points_px, strict=True))
            (i, a), (j, b) = ends
            gathered.setdefault((i, j), []).append(
                (self._views[i].from_source(np.array(a)), self._views[j].from_source(np.array(b)))
            )
        return {
            pair: Matches(np.stack([p for p, _ in ends]), np.stack([q for _, q in ends]))
            for pair, ends in gathered.items()
        }

    def _guess_lenses(self) -> list[Lens]:
        widths = [float(view.size[0]) for view in self._views]
        # Assume that cameras of one picture size and pixel aspect are of one model, and therefore share a lens.
        alike = [(view.source_size, self._priors[view.name].pixel_aspect) for view in self._views]
        groups = [alike.index(one) for one in alike]
        known = [self._priors[view.name].hfov_deg for view in self._views]
        # Marked points come first, because the search uses only the first matches of a pair.
        pairs = {
            pair: Matches(*(np.concatenate([getattr(self._marked[pair], side), getattr(found, side)]) for side in "pq"))
            if pair in self._marked
            else found
            for pair, found in self._pairs.items()
        }
        lenses = find_lenses(pairs, widths, groups, known)
        self._groups = groups
        return lenses

    def run(self) -> Calibration:
        """Solve, verify, remove what does not fit, and repeat."""
        views, widths = self._views, [float(view.size[0]) for view in self._views]
        kinds_by = [(group, lens) for group, lens in zip(self._groups, self._lenses, strict=True)]
        kinds = [kinds_by.index(one) for one in kinds_by]
        known = {}
        for camera, lens in enumerate(self._lenses):
            known_deg = self._priors[self._names[camera]].hfov_deg
            trial = trial_lens(widths[camera], known_deg, lens.k1) if known_deg is not None else None
            if trial is not None:
                known[kinds[camera]] = trial.focal
        solver = Solver(views, self._pairs, self._marked, lenses=self._lenses, kinds=kinds, known_focal=known)
        links = find_links(self._pairs, self._lenses, widths)
        for pair, marks in self._marked.items():
            if pair not in links and len(marks) >= 2:
                # Two exact points determine a rotation. A match counts for at most 1, so 1.5 requires two that agree.
                links |= find_links({pair: marks}, self._lenses, widths, least=1.5)
        banned: set[int] = set()
        has_parallax = False
        # Each round that does not return removes a link or a camera.
        for _ in range(MAX_ROUNDS):
            usable = {pair: link for pair, link in links.items() if not set(pair) & banned}
            group = groups_of(list(usable), len(views))[0]
            if len(group) < 2:
                raise CalibrationError(self._nothing())
            solution = solver.solve(group, usable)
            inside = {(i, j): (group.index(i), group.index(j)) for i, j in self._pairs if {i, j} <= set(group)}
            marked = {inside[pair]: len(marks) for pair, marks in self._marked.items() if pair in inside}
            matches = {places: self._pairs[pair] for pair, places in inside.items()}
            verdicts = judge(
                solution,
                [views[camera] for camera in group],
                matches,
                self._min_confidence,
                marked,
                has_parallax=has_parallax,
            )
            has_parallax |= any(verdict.has_parallax for verdict in verdicts.values())
            bad = self._bad_links(solution, verdicts, usable)
            if bad:
                for pair in bad:
                    links.pop(pair, None)
                continue
            worst = self._worst(solution, verdicts)
            if worst is None:
                found = to_calibration(
                    solution, verdicts, self._views, priors=self._priors, lenses=self._lenses, refused=self._reasons
                )
                return replace(found, reasons={name: self._reason(name) for name in found.unplaced})
            banned.add(worst)
        raise CalibrationError(self._nothing())

    def _bad_links(
        self, solution: Solution, verdicts: Mapping[Pair, Verdict], links: Mapping[Pair, object]
    ) -> list[Pair]:
        """Return the initial links that the overlaps do not confirm."""
        place = {camera: number for number, camera in enumerate(solution.cameras)}
        bad = []
        for i, j in links:
            if i not in place or j not in place:
                continue
            verdict = verdicts.get((place[i], place[j]))
            # If other links outweighed this one, its overlap was not tested with this link's rotation: keep it.
            if not solution.follows(place[i], place[j], self._pairs[i, j]):
                self._faults.setdefault((i, j), "their matches contradict those of other cameras")
            elif verdict is None or not verdict.is_link:
                self._faults[i, j] = "their overlap is too small" if verdict is None else verdict.fault
                bad.append((i, j))
        if bad:
            return bad
        # The remaining links must connect all cameras.
        joined = groups_of([pair for pair, verdict in verdicts.items() if verdict.is_link], len(place))
        group_of = {number: index for index, group in enumerate(joined) for number in group}
        apart = [(i, j) for i, j in links if {i, j} <= set(place) and group_of[place[i]] != group_of[place[j]]]
        for pair in apart:
            self._faults.setdefault(pair, "too few of their matches agree with the other cameras")
        return apart

    def _worst(self, solution: Solution, verdicts: Mapping[Pair, Verdict]) -> int | None:
        """Return a camera to remove: it contradicts another camera in their overlap."""
        links = [(pair, v.good) for pair, v in verdicts.items() if v.is_link]
        against_pairs = [pair for pair, v in verdicts.items() if v.is_contradiction]
        places = range(len(solution.cameras))
        support = {number: sum(good for pair, good in links if number in pair) for number in places}
        against = {number: sum(number in pair for pair in against_pairs) for number in places}
        if not any(against.values()):
            return self._against_hint(solution)
        # Of the cameras with most contradictions, remove the one with the least support: the other one may be right.
        number = max(support, key=lambda one: (against[one], -support[one]))
        other = next(pair for pair in against_pairs if number in pair)
        a, b = (self._names[solution.cameras[one]] for one in other)
        verdict = verdicts[other]
        self._reasons[self._names[solution.cameras[number]]] = (
            f"{a} and {b} should show the same, but only {verdict.good} of {verdict.corners} points agree"
        )
        return solution.cameras[number]

    def _against_hint(self, solution: Solution) -> int | None:
        for number, camera in enumerate(solution.cameras):
            name = self._names[camera]
            known = self._priors[name].hfov_deg
            found = hfov_deg(solution, self._views, number)
            if known is not None and abs(math.log(found / known)) > HFOV_TOLERANCE:
                self._reasons[name] = (
                    f"its pictures show a horizontal field of view of {found:.0f} degrees, configured are {known:.0f}"
                )
                return camera
        return None

    def _nothing(self) -> str:
        names = ", ".join(self._names)
        details = "; ".join(f"{self._names[i]} and {self._names[j]}: {fault}" for (i, j), fault in self._faults.items())
        details = "; ".join(part for part in (details, *(f"{n}: {r}" for n, r in self._reasons.items())) if part)
        return f"no two of the cameras {names} match{f' ({details})' if details else ''}: {WHAT_TO_DO}"

    def _reason(self, name: str) -> str:
        camera = self._names.index(name)
        if name in self._reasons:
            return f"{self._reasons[name]}: {WHAT_TO_DO}"
        if self._views[camera].is_blank or self._features[camera] < 20:
            return (
                f"its picture shows next to nothing ({self._features[camera]} features): uncover and focus the lens,"
                " or calibrate in better light or without fog"
            )
        faults = {pair: fault for pair, fault in self._faults.items() if camera in pair}
        if faults:
            pair, fault = next(iter(faults.items()))
            other = self._names[pair[0] if pair[1] == camera else pair[1]]
            return f"with {other}, {fault}: {WHAT_TO_DO}"
        most = max((pair for pair in self._pairs if camera in pair), key=lambda pair: len(self._pairs[pair]))
        other = self._names[most[0] if most[1] == camera else most[1]]
        return (
            f"its features agree with no other camera's (most, {len(self._pairs[most])}, look like some of {other}):"
            f" {WHAT_TO_DO}"
        )
