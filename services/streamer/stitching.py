"""Read cameras and calibration from a stitcher's status.

To support stitchers of other versions, values that are missing or of a wrong type are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

CONNECTED: Final = "connected"
PAIR_NUMBERS: Final = ("residual_px", "drift_px", "parallax_px")
MAX_CAMERAS: Final = 64
"""Largest number of cameras. It is bounded because any member of the group can serve a document."""
MAX_SENTENCE: Final = 300


@dataclass(frozen=True, slots=True)
class CameraReport:
    """A camera in the stitcher's status."""

    name: str
    state: str
    """``connected``, or why not, in words; empty if the document lacks it."""
    cause: str
    """Cause in one or two words, such as ``refused``; empty while it is connected."""
    skew_s: float | None
    """Capture time of its newest picture minus that of the panorama."""
    placed: bool | None
    """Whether the calibration places it; ``None`` while there is no calibration."""

    @property
    def up(self) -> bool:
        """Whether it is connected."""
        return self.state == CONNECTED

    @property
    def trouble(self) -> str:
        """Why it is not connected, in one phrase with the cause; empty while it is, or if the document lacks it."""
        if self.up or not self.state:
            return "" if self.up else self.cause
        known = not self.cause or self.cause.casefold() in self.state.casefold()
        return self.state if known else f"{self.state} ({self.cause})"


def cameras(document: Mapping[str, Any]) -> list[CameraReport]:
    """Return the cameras of a service's status document; empty for a service without cameras."""
    details = _mapping(document.get("details"))
    calibration = _mapping(details.get("calibration"))
    placed = _mapping(calibration.get("cameras"))
    unplaced = _texts(calibration.get("unplaced"))
    found = []
    for name, content in list(_mapping(details.get("cameras")).items())[:MAX_CAMERAS]:
        camera = _mapping(content)
        skew_ms = _number(camera.get("skew_ms"))
        found.append(
            CameraReport(
                name=str(name),
                state=str(camera.get("state") or ""),
                cause=str(camera.get("cause") or ""),
                skew_s=None if skew_ms is None else skew_ms / 1e3,
                placed=True if name in placed else False if name in unplaced else None,
            )
        )
    return found


def pairs(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the measured :data:`PAIR_NUMBERS` of each pair of neighbours, by ``left-right``."""
    # Measured pairs only; those of the calibration have no live numbers.
    told = _mapping(_calibration(document).get("quality")).get("pairs")
    seen: set[str] = set()
    for content in told[:MAX_CAMERAS] if isinstance(told, list) else []:
        pair = _mapping(content)
        names = _texts(pair.get("cameras"))
        label = "-".join(names)
        if len(names) == 2 and label not in seen:  # a second sample with the same labels would spoil the metrics
            seen.add(label)
            numbers = {name: _number(pair.get(name)) for name in PAIR_NUMBERS}
            yield label, {name: value for name, value in numbers.items() if value is not None}


def coverage_deg(document: Mapping[str, Any]) -> dict[str, float]:
    """Return the degrees that the panorama shows (``shown``) and that the cameras see (``all``), if known."""
    coverage = _mapping(_calibration(document).get("coverage"))
    numbers = {name: _number(coverage.get(f"{name}_deg")) for name in ("shown", "all")}
    return {name: value for name, value in numbers.items() if value is not None}


def notices(document: Mapping[str, Any]) -> list[str]:
    """Return the notices for viewers: cameras that no longer fit, and those that the panorama omits."""
    calibration = _calibration(document)
    warning = _mapping(calibration.get("quality")).get("warning")
    coverage = _mapping(calibration.get("coverage"))
    sentence = coverage.get("sentence")
    found = [warning] if isinstance(warning, str) and warning else []
    if _texts(coverage.get("outside")) and isinstance(sentence, str):
        found.append(f"shown: {sentence}")
    # Any member of the group can serve a document, so bound what reaches the page.
    return [text[:MAX_SENTENCE] for text in found]


def _calibration(document: Mapping[str, Any]) -> dict[str, Any]:
    return _mapping(_mapping(document.get("details")).get("calibration"))


def _texts(value: object) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
