"""``framebus-stitcher delays``: measures the cameras' relative delays from motion in their overlaps.

In the overlap of two cameras, a passer-by changes the brightness of a point in both pictures. If this happens later in
one of them by its own time stamps, the difference is that of their delays. Encoders, networks and recorders add some
tenths of a second that no clock in the stream reveals.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from services.common.config import LogSection, load
from services.common.logs import set_up_logs
from services.common.service import ServiceError
from services.common.status import Stage
from services.stitcher.calibration.poses import Calibration, CalibrationError
from services.stitcher.calibration.poses import load as load_calibration
from services.stitcher.calibration.solve import groups_of
from services.stitcher.capture.camera import NS, CameraReader
from services.stitcher.capture.sender import SenderClocks
from services.stitcher.capture.synchronizer import Timed
from services.stitcher.config import StitcherConfiguration, StitcherSection
from services.stitcher.inspection.overlap import fit_luma
from services.stitcher.rendering.exposure import Patches, shared_patches

Array = npt.NDArray[np.float64]

STEP_S: Final = 0.01
SLOPE_S: Final = 0.06
"""Half the interval over which a change is measured. The interval is longer than a frame's, and shorter than the time
that an object takes to pass."""
LONGEST_S: Final = 2.0
"""Largest difference of two delays that is searched for."""
LEAST_S: Final = 2 * LONGEST_S
"""Shorter records are not conclusive."""
LEAST_LIKENESS: Final = 0.2
"""Least correlation of the changes in two cameras, at their best lag."""
MOST_RIVAL: Final = 0.7
"""Largest correlation at any other lag, as a share of the best. Periodic motion fits several lags."""
RIVAL_S: Final = 0.3
"""Distance from the best lag beyond which another one counts as a rival."""
NOISE: Final = 3.0
"""Smaller changes, in levels, count as noise or as slow changes of the light."""


@dataclass(frozen=True, slots=True)
class Record:
    """Brightness of the points of an overlap over time, in one camera."""

    times_s: Array
    """When each picture was captured, by the camera's clock, of shape ``(pictures,)``."""
    levels: Array
    """Luma of each point, of shape ``(pictures, points)``."""


@dataclass(frozen=True, slots=True)
class Lag:
    """Delay of one camera relative to another."""

    seconds: float
    likeness: float
    """Correlation of the changes, 0 to 1."""


def lag_between(left: Record, right: Record) -> Lag | None:
    """Return the delay of the right camera relative to the left one, or ``None`` if there was too little motion."""
    begin_s = max(left.times_s[0], right.times_s[0])
    end_s = min(left.times_s[-1], right.times_s[-1])
    if end_s - begin_s < LEAST_S:
        return None
    instants_s = np.arange(begin_s, end_s, STEP_S)
    changes = [_changes(record, instants_s) for record in (left, right)]
    energy = [float((change**2).sum()) for change in changes]
    if min(energy) == 0:
        return None
    # Cross-correlation of all points at once. Twice the length prevents the end of one record from meeting the
    # beginning of the other. A positive lag says that the right camera is later.
    count = len(changes[0])
    spectra = [np.fft.rfft(change, 2 * count, axis=0) for change in changes]
    together = np.fft.irfft((spectra[0].conj() * spectra[1]).sum(axis=1), 2 * count)
    most = round(LONGEST_S / STEP_S)
    lags = np.arange(-most, most + 1)  # the correlation has negative lags at its end, where negative indices point
    # Large lags have less overlap in time, so normalise by it.
    alike = together[lags] / np.sqrt(energy[0] * energy[1]) * count / (count - np.abs(lags))
    # A peak at the end of the range may be the slope of one beyond it.
    best = int(alike.argmax())
    rival = alike[np.abs(lags - lags[best]) * STEP_S > RIVAL_S].max()
    if alike[best] < LEAST_LIKENESS or rival > MOST_RIVAL * alike[best] or best in (0, len(lags) - 1):
        return None
    # The parabola through the three values has its peak between the steps.
    before, at, after = alike[best - 1 : best + 2]
    between = 0.5 * (before - after) / (before - 2 * at + after)
    return Lag(float((lags[best] + between) * STEP_S), float(alike[best]))


def _changes(record: Record, instants_s: Array) -> Array:
    """Return the change of each point at each instant, in levels; 0 if it is only noise."""
    # The cameras' pictures have different rates and instants, so interpolate between them at common instants.
    place = np.interp(instants_s, record.times_s, np.arange(len(record.times_s)))
    first = np.minimum(place.astype(np.intp), len(record.times_s) - 2)
    share = (place - first)[:, None]
    levels = record.levels[first] * (1 - share) + record.levels[first + 1] * share
    steps = round(SLOPE_S / STEP_S)
    # Differences, because cameras differ in brightness; bounded, so that a single strong contrast does not decide.
    changes = levels[2 * steps :] - levels[: -2 * steps]
    return np.where(np.abs(changes) < NOISE, 0.0, changes.clip(-60, 60))


def delays_of(names: Sequence[str], lags: Mapping[tuple[str, str], Lag]) -> dict[str, float]:
    """Return the delays of the largest group of cameras that lags connect, in seconds; the least of them is 0."""
    places = [(names.index(left), names.index(right)) for left, right in lags]
    members = [names[place] for place in groups_of(places, len(names))[0]]
    if len(members) < 2:
        return {}
    rows = [(pair, lag) for pair, lag in lags.items() if set(pair) <= set(members)]
    matrix = np.zeros((len(rows) + 1, len(members)))
    wanted = np.zeros(len(rows) + 1)
    for row, ((left, right), lag) in enumerate(rows):
        # Least squares over all pairs, weighted by their likeness: lags around a circle do not add up to 0 exactly.
        matrix[row, members.index(right)], matrix[row, members.index(left)] = lag.likeness, -lag.likeness
        wanted[row] = lag.likeness * lag.seconds
    matrix[-1] = 1.0  # only differences are measured, so fix the sum
    solved = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    return dict(zip(members, (solved - solved.min()).tolist(), strict=True))


class _Recorder:
    """Records the brightness of the overlaps' points in each camera's pictures."""

    def __init__(self, calibration: Calibration) -> None:
        cameras = calibration.cameras
        self._cameras = {camera.name: camera for camera in cameras}
        self._patches: dict[str, dict[tuple[str, str], Patches]] = {name: {} for name in self._cameras}
        self._taken: dict[str, list[tuple[float, dict[tuple[str, str], Array]]]] = {name: [] for name in self._cameras}
        self.pairs = []
        for shared in shared_patches(cameras):
            left, right = (cameras[patches.camera].name for patches in shared)
            self.pairs.append((left, right))
            self._patches[left][left, right], self._patches[right][left, right] = shared

    def take(self, name: str, frame: Timed[VideoFrame]) -> None:
        """Record a picture. Called in the camera's thread."""
        luma = fit_luma(np.asarray(frame.picture.to_ndarray(format="gray"), np.uint8), self._cameras[name])
        seen = {pair: luma[patches.luma].mean(axis=1) for pair, patches in self._patches[name].items()}
        self._taken[name].append((frame.captured_ns / NS, seen))

    def records(self, pair: tuple[str, str]) -> tuple[Record, Record] | None:
        """Return the records of both cameras of a pair, or ``None`` if one has too few pictures."""
        found = []
        for name in pair:
            taken = sorted(self._taken[name], key=lambda entry: entry[0])
            if len(taken) < 2:
                return None
            found.append(Record(np.array([time_s for time_s, _ in taken]), np.array([seen[pair] for _, seen in taken])))
        return found[0], found[1]


def measure(section: StitcherSection, calibration: Calibration, seconds: float) -> dict[str, Any]:
    """Read the placed cameras for some seconds and measure their delays.

    Args:
        section: The configured cameras. Their ``delay_s`` is ignored.
        calibration: Their directions.
        seconds: How long to watch, once each camera is connected or the wait for it has ended.

    Returns:
        ``cameras`` with ``name`` and ``delay_s``, or ``None`` and a ``reason``; ``pairs`` with ``cameras``, ``lag_s``
        and ``likeness``.
    """
    recorder = _Recorder(calibration)
    placed, senders = {pose.name for pose in calibration.cameras}, SenderClocks()
    readers = {
        camera.name: CameraReader(
            camera.model_copy(update={"delay_s": 0.0}),  # a delay that was set before would be subtracted
            partial(recorder.take, camera.name),
            Stage(),
            open_timeout_s=section.open_timeout_s,
            read_timeout_s=section.read_timeout_s,
            reconnect=section.reconnect,
            key_frame_wait_s=section.key_frame_wait_s,
            senders=senders,
        )
        for camera in section.cameras
        if camera.name in placed
    }
    for reader in readers.values():
        reader.start()
    latest_s = time.monotonic() + section.open_timeout_s + section.key_frame_wait_s
    while time.monotonic() < latest_s and any(one.state != "connected" for one in readers.values()):
        time.sleep(0.1)
    time.sleep(seconds)
    states = {name: reader.state for name, reader in readers.items()}
    # Ask all of them to stop first, so that they end at the same time.
    for reader in readers.values():
        reader.request_stop()
    for reader in readers.values():
        reader.join(1.0)
    lags = {}
    for pair in recorder.pairs:
        if (records := recorder.records(pair)) is not None and (lag := lag_between(*records)) is not None:
            lags[pair] = lag
    delays = delays_of(list(readers), lags)
    return _document(section, states, delays, lags)


def _document(
    section: StitcherSection,
    states: Mapping[str, str],
    delays: Mapping[str, float],
    lags: Mapping[tuple[str, str], Lag],
) -> dict[str, Any]:
    cameras: list[dict[str, Any]] = []
    for camera in section.cameras:
        if camera.name in delays:
            cameras.append({"name": camera.name, "delay_s": round(delays[camera.name], 3)})
            continue
        state = states.get(camera.name, "not placed")
        reason = "too little moves where it overlaps the others" if state == "connected" else state
        cameras.append({"name": camera.name, "delay_s": None, "reason": reason})
    pairs = [
        {"cameras": list(pair), "lag_s": round(lag.seconds, 3), "likeness": round(lag.likeness, 2)}
        for pair, lag in lags.items()
    ]
    return {"cameras": cameras, "pairs": pairs}


def main(arguments: Sequence[str]) -> int:
    """Measure how late each camera's pictures are, from motion in the overlaps of two cameras."""
    parser = argparse.ArgumentParser(prog="framebus-stitcher delays", description=main.__doc__)
    parser.add_argument("--config", type=Path, help="the YAML file, for the cameras; without it the defaults hold")
    parser.add_argument("--calibration", type=Path, help="the saved calibration, instead of stitcher.calibration.file")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to watch what moves (30)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not LEAST_S < options.seconds <= 3600:
        parser.error(f"--seconds must be more than {LEAST_S:g} and at most 3600")
    section = load(StitcherConfiguration, options.config).stitcher
    file = options.calibration or section.calibration.file
    if file is None:
        raise ServiceError("it is not known where the cameras look: set stitcher.calibration.file, or --calibration")
    try:
        calibration = load_calibration(file, [camera.name for camera in section.cameras])
    except FileNotFoundError:
        raise ServiceError(
            f"there is no calibration {file}: the stitcher writes it once all cameras are placed"
        ) from None
    except CalibrationError as error:
        raise ServiceError(str(error)) from None
    set_up_logs("stitcher", LogSection(level="error"))  # the report below includes the cameras' states
    document = measure(section, calibration, options.seconds)
    sys.stdout.write((json.dumps(document, indent=2) if options.json else _in_words(document)) + "\n")
    return int(any(camera["delay_s"] is None for camera in document["cameras"]))


def _in_words(document: Mapping[str, Any]) -> str:
    width = max(6, *(len(camera["name"]) for camera in document["cameras"]))
    lines = [f"{'camera':{width}}  delay_s"]
    for camera in document["cameras"]:
        told = f"not known: {camera['reason']}" if camera["delay_s"] is None else f"{camera['delay_s']:7.3f}"
        lines.append(f"{camera['name']:{width}}  {told}")
    lines += [
        f"{' and '.join(pair['cameras'])}: {pair['lag_s']:+.3f} s, likeness {pair['likeness']:.2f}"
        for pair in document["pairs"]
    ]
    return "\n".join(lines)
