"""Measure whether the cameras still fit: residual, drift and parallax of neighbours, from live pictures.

The displacement between two neighbours in their overlap has two components. A small rotation common to the whole
overlap is drift: a camera was turned. The rest depends on the place: parallax of near things, or a lens that differs
from its calibration. Moving things are elsewhere in the next measurement. Therefore a patch that disagrees with most of
the overlap counts only if it did so in the previous measurement as well: in the same place, by the same amount and with
the same look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import Calibration, CameraPose
from services.stitcher.inspection.overlap import Array, Displacements, Image, Mask, Overlap
from services.stitcher.rendering.panorama import Panorama

State = Literal["measured", "no picture", "no texture", "nothing in common"]

LEAST_PATCHES: Final = 10
LEAST_SHARE: Final = 0.25
"""Least share of the patches that must be found; with fewer, the cameras show different things."""
LEAST_AGREEING: Final = 0.4
"""Least share of the found patches that must agree on a drift; with fewer, there is no common drift."""
CLOSE_PX: Final = 1.0
"""Patches that differ from the rest by no more than this always count."""
FAR: Final = 4.0
"""Patches that differ by more than this many robust deviations do not count."""
ROUNDS: Final = 10
SUSTAINED: Final = 2
"""Consecutive measurements that a warning requires."""


@dataclass(frozen=True, slots=True)
class PairQuality:
    """How well two neighbours fit. Numbers are pixels of the panorama; ``None`` if they could not be measured."""

    cameras: tuple[str, str]
    """The left one first."""
    state: State
    patches: int = 0
    """Number of measured places in the overlap."""
    residual_px: float | None = None
    """Root mean square of the displacements, that is the visible offset at a seam."""
    drift_px: float | None = None
    """Root mean square of the common rotation."""
    drift_xy_px: tuple[float, float] | None = None
    """Displacement by that rotation in the middle of the overlap, to the right and downwards: of the right picture
    against the left."""
    parallax_px: float | None = None
    """Root mean square of the remainder."""

    def describe(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        return {
            "cameras": list(self.cameras),
            "state": self.state,
            "patches": self.patches,
            "residual_px": _rounded(self.residual_px),
            "drift_px": _rounded(self.drift_px),
            "drift_xy_px": None if self.drift_xy_px is None else [_rounded(value) for value in self.drift_xy_px],
            "parallax_px": _rounded(self.parallax_px),
        }


class QualityMonitor:
    """Measures how well the cameras of one calibration fit. Owned by one thread, except for :meth:`describe`.

    Args:
        calibration: The placed cameras, from left to right.
        panorama: Their panorama.
        limit_px: Residual above which, in two consecutive measurements, there is a warning.
        is_wanted: Called before each pair, also in the constructor. If it returns False, the remaining pairs are
            skipped.
    """

    def __init__(
        self,
        calibration: Calibration,
        panorama: Panorama,
        limit_px: float,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._limit_px = limit_px
        self._is_wanted = is_wanted
        self._pairs: dict[tuple[str, str], Overlap] = {}
        for left, right in _neighbours(calibration.cameras):
            if is_wanted() and (overlap := Overlap(left, right, panorama.scale_px)).is_seen:
                self._pairs[left.name, right.name] = overlap
        self._strays: dict[tuple[str, str], dict[int, Array]] = {}
        self._over: dict[tuple[str, str], int] = dict.fromkeys(self._pairs, 0)
        self._have_agreed: set[tuple[str, str]] = set()
        self._judged: dict[tuple[str, str], PairQuality] = {}
        self._result: tuple[tuple[PairQuality, ...], str] = ((), "")

    def measure(self, planes: Mapping[str, Image]) -> tuple[PairQuality, ...]:
        """Measure each pair of neighbours.

        Args:
            planes: Luma of the cameras by name, uint8 of shape ``(height, width)``, of one instant. Cameras without a
                picture of that instant are missing.

        Returns:
            One for each pair. If the measurement was interrupted, there are fewer, and none is kept.
        """
        result = tuple(self._measure(pair, planes) for pair in self._pairs if self._is_wanted())
        if len(result) < len(self._pairs):
            return result  # warnings compare pairs with each other, so they need all of them
        for quality in result:
            self._count(quality)
        self._result = result, "; ".join(self._warnings())
        return result

    def describe(self) -> dict[str, Any]:
        """Return the last measurement, for the status: ``pairs``, and ``warning``, which is empty if there is none."""
        pairs, warning = self._result
        return {"limit_px": self._limit_px, "pairs": [pair.describe() for pair in pairs], "warning": warning}

    def _measure(self, pair: tuple[str, str], planes: Mapping[str, Image]) -> PairQuality:
        if not all(name in planes for name in pair):
            return PairQuality(pair, "no picture")
        found = self._pairs[pair].compare(*(planes[name] for name in pair))
        if found.textured < LEAST_PATCHES:
            return PairQuality(pair, "no texture")
        if len(found.cells) < max(LEAST_PATCHES, LEAST_SHARE * found.textured):
            return PairQuality(pair, "nothing in common")
        turn, agree = _common(found)
        if agree.sum() < max(LEAST_PATCHES, LEAST_AGREEING * len(agree)):
            return PairQuality(pair, "nothing in common")
        common_px = _effect(found.angles) @ turn
        left_px = found.shifts_px - common_px
        counted = agree | self._stayed(pair, found, left_px, agree)
        middle_px = (_effect(np.zeros((1, 2))) @ turn)[0]
        return PairQuality(
            pair,
            "measured",
            int(counted.sum()),
            _rms(found.shifts_px[counted]),
            _rms(common_px[counted]),
            (float(middle_px[0]), float(middle_px[1])),
            _rms(left_px[counted]),
        )

    def _stayed(self, pair: tuple[str, str], found: Displacements, left_px: Array, agree: Mask) -> Mask:
        """Return which outliers were the same in the previous measurement. Remember them for the next one."""
        # Near things that stand still are parallax, whereas a passer-by is elsewhere in the next measurement.
        before = self._strays.get(pair, {})
        strays = np.flatnonzero(~agree)
        self._strays[pair] = {int(found.cells[index]): left_px[index] for index in strays}
        stayed = np.zeros(len(agree), bool)
        for index in strays[found.still[strays]]:
            earlier = before.get(int(found.cells[index]))
            stayed[index] = earlier is not None and float(np.linalg.norm(earlier - left_px[index])) < CLOSE_PX
        return stayed

    def _count(self, quality: PairQuality) -> None:
        """Count the consecutive measurements in which the pair was beyond the limit."""
        pair = quality.cameras
        if quality.residual_px is not None:
            self._have_agreed.add(pair)
            self._judged[pair] = quality
            self._over[pair] = self._over[pair] + 1 if quality.residual_px > self._limit_px else 0
        elif quality.state == "nothing in common" and pair in self._have_agreed:
            # It fitted before, so a camera was turned by more than can be measured.
            self._judged[pair] = quality
            self._over[pair] += 1

    def _warnings(self) -> Iterator[str]:
        """Yield a sentence for each camera that seems to have moved, and for each pair with other displacements.

        The last result stays valid while a camera has no picture or the overlap has no texture.
        """
        over = [pair for pair in self._pairs if self._over[pair] >= SUSTAINED]
        moved: dict[str, list[PairQuality]] = {}
        for pair in over:
            quality = self._judged[pair]
            names = f"{pair[0]} and {pair[1]}"
            residual_px, drift_px = quality.residual_px, quality.drift_px or 0.0
            # Drift explains less of it than parallax does, so do not name a camera as moved.
            if residual_px is not None and drift_px < (quality.parallax_px or 0.0):
                yield (
                    f"{names} are {residual_px:.1f} px apart, by place:"
                    " near things that both see, or a lens that was zoomed or focused; calibrate again if it was"
                )
            else:
                moved.setdefault(self._suspect(pair), []).append(quality)
        for suspect, qualities in moved.items():
            worst = max(qualities, key=lambda one: one.residual_px or 0.0)
            names = f"{worst.cameras[0]} and {worst.cameras[1]}"
            if worst.residual_px is None:
                yield f"{names} have nothing in common any more: {suspect} was moved? calibrate again"
            else:
                yield f"{names} no longer fit by {worst.residual_px:.1f} px: {suspect} was moved? calibrate again"

    def _suspect(self, pair: tuple[str, str]) -> str:
        """Return the camera of a pair that seems to have moved, or ``a or b`` if either may have.

        That is the one that fits none of its other neighbours. If this holds for both or for neither, it is the one
        that is in several pairs beyond the limit.
        """
        fits = [
            any(name in other and self._over[other] == 0 for other in self._have_agreed if other != pair)
            for name in pair
        ]
        if fits[0] == fits[1]:
            others = [
                {name for name in pair if name in other} for other in self._over if self._over[other] >= SUSTAINED
            ]
            shared = [name for name in pair if sum(name in names for names in others) > 1]
            return shared[0] if len(shared) == 1 else f"{pair[0]} or {pair[1]}"
        return pair[1] if fits[0] else pair[0]


def _neighbours(cameras: Sequence[CameraPose]) -> list[tuple[CameraPose, CameraPose]]:
    """Pair each camera with the next, and the last with the first: they are neighbours on a full circle."""
    pairs = list(pairwise(cameras))
    return [*pairs, (cameras[-1], cameras[0])] if len(cameras) > 2 else pairs


def _effect(angles: Array) -> npt.NDArray[np.float64]:
    """Return the displacement, in rad and units of v, per radian of rotation about each axis: ``(patches, 2, 3)``.

    The axes are to the right, down, and ahead, in the middle of the overlap. For a direction ``(sin yaw, v, cos yaw)``
    and a small rotation w, the change ``w x direction`` is split into one of yaw and one of v.
    """
    yaw, v = angles[:, 0], angles[:, 1]
    sine, cosine = np.sin(yaw), np.cos(yaw)
    effect = np.zeros((len(angles), 2, 3))
    effect[:, 0] = np.stack([-v * sine, np.ones_like(v), -v * cosine], axis=-1)
    effect[:, 1] = (1 + v * v)[:, None] * np.stack([-cosine, np.zeros_like(v), sine], axis=-1)
    return effect


def _common(found: Displacements) -> tuple[Array, Mask]:
    """Return the rotation that most patches agree on, times the pixels per radian, and which patches agree.

    Iteratively reweighted least squares with Tukey's weights, starting at the median.
    """
    effect = _effect(found.angles)
    # Begin at the median, because wrong patches would pull a first least-squares fit towards them.
    middle = np.median(found.shifts_px, axis=0)
    off = np.linalg.norm(found.shifts_px - middle, axis=1)
    turn = np.zeros(3)
    for _ in range(ROUNDS):
        width = max(CLOSE_PX, FAR * _deviation(off))
        # lstsq() squares the weighted rows, so these are the roots of Tukey's weights.
        weights = np.maximum(1 - (off / (1.5 * width)) ** 2, 0.0)
        turn, *_ = np.linalg.lstsq(
            (effect * weights[:, None, None]).reshape(-1, 3), (found.shifts_px * weights[:, None]).reshape(-1), None
        )
        off = np.linalg.norm(found.shifts_px - effect @ turn, axis=1)
    return turn, off <= max(CLOSE_PX, FAR * _deviation(off))


def _deviation(off: Array) -> float:
    """Return the standard deviation along each axis, from the median length, which is 1.177 deviations in 2-D."""
    return float(np.median(off)) / 1.177


def _rms(vectors: Array) -> float:
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2) + 0.0  # + 0.0 avoids -0.0
