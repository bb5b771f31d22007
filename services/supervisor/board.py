"""Build the display of the pipeline (steps, cameras, stages) from the services' statuses. Performs no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.supervisor.health import Judge
from services.supervisor.process import GIVEN_UP, RESTARTING, RUNNING, WAITING

LATE_S = 3.0
"""Age of the newest frame above which a stage is behind."""
GOOD, BUSY, BAD, RESTING = "good", "busy", "bad", "resting"


@dataclass(frozen=True, slots=True)
class Step:
    """A long step of the start."""

    service: str
    what: str
    done: int
    total: int | None
    """``None`` if not known."""
    unit: str

    @property
    def amount(self) -> str:
        """The progress, in words."""
        return f"{self.done} of {self.total} {self.unit}" if self.total else ""


@dataclass(frozen=True, slots=True)
class Row:
    """A camera, a stage or a service."""

    name: str
    rate: str = ""
    age: str = ""
    remark: str = ""
    mood: str = GOOD
    is_camera: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """The complete display at one instant."""

    url: str
    page: str
    """State of the page, in its own words: ``starting``, ``live``, ``delayed``, or why it shows no picture."""
    running_s: float
    steps: tuple[Step, ...]
    rows: tuple[Row, ...]

    @property
    def cameras(self) -> tuple[Row, ...]:
        """The rows of the cameras."""
        return tuple(row for row in self.rows if row.is_camera)

    @property
    def is_starting(self) -> bool:
        """Whether the page has not yet shown a picture and no stage works."""
        return self.page == "starting" and not any(row.rate for row in self.rows if not row.is_camera)


def make_board(url: str, page: str, running_s: float, judges: Sequence[Judge]) -> Board:
    """Build the board from the newest answers."""
    steps = tuple(step for judge in judges if (step := step_of(judge.process.service, judge.document)) is not None)
    rows = tuple(row for judge in judges for row in rows_of(judge))
    return Board(url, page, running_s, steps, rows)


def step_of(service: str, document: Mapping[str, Any] | None) -> Step | None:
    """Return the long step in a status, or None."""
    progress = None if document is None else document.get("progress")
    if not isinstance(progress, Mapping):
        return None
    total = progress.get("total")
    return Step(
        service,
        str(progress.get("what", "starting")),
        int(progress.get("done") or 0),
        int(total) if total else None,
        str(progress.get("unit", "")),
    )


def rows_of(judge: Judge) -> list[Row]:
    """Return the rows of one service: its cameras, its stages, or itself."""
    service, state, document, reason = judge.process.service, judge.process.state, judge.document, judge.reason
    if state == GIVEN_UP:
        return [Row(service, remark=f"missing: {reason}", mood=BAD)]
    if state == RESTARTING:
        return [Row(service, remark=f"restarting: {reason}", mood=BAD)]
    if state == WAITING:
        return [Row(service, remark="waits for the ones above", mood=RESTING)]
    if document is None:
        return [Row(service, remark="starting", mood=BUSY)]
    if (step := step_of(service, document)) is not None:
        reason = ", ".join(filter(None, (step.what, step.amount)))
    stages: Mapping[str, Mapping[str, Any]] = document.get("stages") or {}
    details: Mapping[str, Any] = document.get("details") or {}
    cameras: Mapping[str, Mapping[str, Any]] = details.get("cameras") or {}
    silent = judge.silent_s > LATE_S
    rows = [
        _camera_row(name, stages.get(name, {}), str(camera.get("state", "")), silent)
        for name, camera in cameras.items()
    ]
    mood = (BAD if judge.has_worked or silent else BUSY) if reason and step is None else BUSY if reason else GOOD
    for index, (name, numbers) in enumerate((n, s) for n, s in stages.items() if n not in cameras):
        remark = _remark(name, details)
        rows.append(_stage_row(f"{service} {name}", numbers, reason if index == 0 else "", mood, remark))
    if not stages:
        rows.append(Row(service, remark=reason or state, mood=mood if state == RUNNING else BUSY))
    return rows


def _camera_row(name: str, numbers: Mapping[str, Any], state: str, silent: bool) -> Row:
    if silent:
        return Row(name, remark="not known", mood=BAD, is_camera=True)
    mood = GOOD if state == "connected" else BUSY if state == "connecting" else BAD
    late = mood == GOOD and (numbers.get("age_s") or 0) > LATE_S
    remark = f"no frame for {numbers['age_s']:.0f} s" if late else state
    return Row(name, _rate(numbers), _age(numbers), remark, BAD if late else mood, is_camera=True)


def _stage_row(name: str, numbers: Mapping[str, Any], reason: str, mood: str, remark: str) -> Row:
    if not numbers.get("frames"):
        return Row(name, remark=reason or "at rest", mood=mood if reason else RESTING)
    if reason:
        return Row(name, _rate(numbers), _age(numbers), reason, mood)
    if (numbers.get("age_s") or 0) > LATE_S:
        return Row(name, "", "", f"at rest for {numbers['age_s']:.0f} s", RESTING)
    return Row(name, _rate(numbers), _age(numbers), remark)


def _remark(stage: str, details: Mapping[str, Any]) -> str:
    for wanted, key, unit in (("send", "clients", "viewer"), ("detect", "objects", "object")):
        if stage == wanted and isinstance(count := details.get(key), int):
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return ""


def _rate(numbers: Mapping[str, Any]) -> str:
    fps = numbers.get("fps")
    return f"{fps:.1f} fps" if fps else ""


def _age(numbers: Mapping[str, Any]) -> str:
    p50 = numbers.get("latency_p50_ms")
    if p50 is None or not numbers.get("fps"):
        return ""
    return f"{p50:.0f} ms" if p50 < 10_000 else f"{p50 / 1e3:.0f} s"


def fold_cameras(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with all cameras in one."""
    cameras = [row for row in rows if row.is_camera]
    if not cameras:
        return list(rows)
    good = sum(row.mood == GOOD for row in cameras)
    bad = [row for row in cameras if row.mood != GOOD]
    remark = f"{good} of {len(cameras)} connected"
    if bad:
        remark += "; " + ", ".join(f"{row.name} {row.remark}" for row in bad)
    return [Row("cameras", remark=remark, mood=BAD if bad else GOOD), *(row for row in rows if not row.is_camera)]


def summary(board: Board) -> str:
    """Summarise in one short line: cameras, rate and age of each service's first stage, and what is missing."""
    words = []
    if board.cameras:
        good = sum(row.mood == GOOD for row in board.cameras)
        words.append(f"{good} of {len(board.cameras)} cameras")
    told: set[str] = set()
    for row in board.rows:
        service = row.name.partition(" ")[0]
        if row.is_camera or service in told:
            continue
        told.add(service)
        if row.mood == BAD:
            words.append(f"{service}: {row.remark}")
        elif row.rate:
            words.append(" ".join(filter(None, (row.name, row.rate, row.age))))
    return ", ".join(words if board.page in ("live", "running") else [board.page, *words])
