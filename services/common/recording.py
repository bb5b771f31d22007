"""Recordings as frames: a folder of pictures or a video, each with what it knows of its frames.

``file:///recordings/monday`` is a folder of pictures, taken in the order of their names, in which 2 comes before 10; or
a folder with one video; ``file:///recordings/monday.mp4`` is a video. A file ``frames.jsonl`` in the folder, or
``monday.frames.jsonl`` beside the video, tells of each frame, a JSON object a line:

    {"sequence": 17, "epoch": 5, "captured_ns": 81234000000, "geometry": {"scale_px": 868.9, ...}, "file": "17.png"}

Every key may be missing. Frames are then numbered from 1, of epoch 0, captured when the video says, or 40 ms apart.
Lines with ``file`` say which pictures there are, in their order; without it, a line belongs to a picture or to a frame
of the video by its place.

Source: RFC 8089, the "file" URI scheme.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from services.common import geometry
from services.common.pictures import read_picture
from services.common.service import ServiceError

PICTURES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEOS: Final = frozenset({".avi", ".h264", ".h265", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"})
SIDECAR: Final = "frames.jsonl"
INTERVAL_NS: Final = 40_000_000
"""Between frames whose time nothing tells."""
_LONGEST_LINE: Final = 1 << 16
_NUMBER: Final = re.compile(r"(\d+)")


class RecordingError(Exception):
    """A recording that cannot be read; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class RecordedFrame:
    """A frame of a recording, or one that came by reference, as :class:`framebus.Frame` is one of a ring."""

    pixels: npt.NDArray[np.uint8]
    """BGR, ``(height, width, 3)``."""
    sequence: int
    epoch: int
    captured_ns: int
    """By the clock of where it was recorded."""
    metadata: Mapping[str, Any] | None = None
    """With the panorama's geometry, where it is known: see :mod:`services.common.geometry`."""
    pixel_format: str = "bgr"
    skipped: int = 0
    """Frames missed since the one before: none."""


class Recording:
    """A folder of pictures or a video. What can be told without decoding it is checked at once.

    Raises:
        RecordingError: There is none at this address, or nothing in it that can be read.
    """

    def __init__(self, url: str) -> None:
        self._path = path_of(url)
        self._pictures: list[Path] = []
        if self._path.is_dir():
            self._pictures = _files(self._path, PICTURES)
            videos = _files(self._path, VIDEOS)
            if not self._pictures and len(videos) == 1:
                self._path = videos[0]
            elif not self._pictures:
                found = f"{len(videos)} videos" if videos else "no picture and no video"
                raise RecordingError(f"{self._path} holds {found}: name a folder with pictures, or a video")
        elif not self._path.exists():
            raise RecordingError(f"{self._path} does not exist: name a folder with pictures, or a video")
        self._told = self._read_sidecar()
        if self._pictures and self._told is not None:
            self._pictures = self._told_pictures(self._told)

    def frames(self) -> Iterator[RecordedFrame]:
        """All frames in order, each when it is asked for.

        Raises:
            RecordingError: One cannot be read, after those before it.
        """
        number = 0
        for number, (pixels, captured_ns) in enumerate(self._decoded()):
            told: Mapping[str, Any] = {}
            if self._told is not None:
                if number >= len(self._told):
                    raise RecordingError(
                        f"{self._sidecar} tells of {len(self._told)} frames, and {self._path} has more"
                    )
                told = self._told[number]
            yield RecordedFrame(
                pixels,
                told.get("sequence", number + 1),
                told.get("epoch", 0),
                told.get("captured_ns", captured_ns),
                {geometry.KEY: told["geometry"]} if "geometry" in told else None,
            )
        if self._told is not None and number + 1 < len(self._told):
            raise RecordingError(
                f"{self._sidecar} tells of {len(self._told)} frames, and {self._path} ends after {number + 1}"
            )

    def _decoded(self) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
        if not self._pictures:
            yield from _decode_video(self._path)
            return
        for number, path in enumerate(self._pictures):
            yield _read_picture(path), number * INTERVAL_NS

    def _read_sidecar(self) -> list[dict[str, Any]] | None:
        folder = self._path if self._pictures else self._path.parent
        own = self._path.with_name(f"{self._path.stem}.{SIDECAR}")
        self._sidecar = own if not self._pictures and own.exists() else folder / SIDECAR
        try:
            with self._sidecar.open("rb") as file:
                lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
                return [_told_frame(f"{self._sidecar}:{number}", line) for number, line in enumerate(lines, 1)]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordingError(f"{self._sidecar} cannot be read: {error.strerror}") from None

    def _told_pictures(self, told: list[dict[str, Any]]) -> list[Path]:
        """The pictures that the lines name, or all where they name none."""
        named = [one["file"] for one in told if "file" in one]
        if not named:
            if len(told) != len(self._pictures):
                raise RecordingError(
                    f"{self._sidecar} tells of {len(told)} frames, and the folder has {len(self._pictures)} pictures: "
                    'write a line for each, or name the picture of each line with "file"'
                )
            return self._pictures
        if len(named) != len(told):
            raise RecordingError(
                f'{self._sidecar} names the "file" of {len(named)} of {len(told)} frames: name all or none'
            )
        paths = [self._path / name for name in named]
        for path in paths:
            if not path.is_file():
                raise RecordingError(f"{self._sidecar} names {path.name}, which {self._path} does not hold")
        return paths


def path_of(url: str) -> Path:
    """The path in a file URL.

    Raises:
        RecordingError: It is none.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise RecordingError(f"{url} is no file: write file:///FOLDER or file:///VIDEO")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise RecordingError(f"{url} names no absolute path: write three slashes, as in file:///recordings/monday")
    return Path(unquote(url.partition("://")[2].removeprefix("localhost")))


def _files(folder: Path, endings: frozenset[str]) -> list[Path]:
    """Its files with one of the endings, in the order of their names, in which 2 comes before 10."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in endings and not path.name.startswith(".")]
    except OSError as error:
        raise RecordingError(f"{folder} cannot be read: {error.strerror}") from None
    return sorted(
        found, key=lambda path: [(int(part) if part.isdigit() else 0, part) for part in _NUMBER.split(path.name)]
    )


def _told_frame(place: str, line: bytes) -> dict[str, Any]:
    """What a line tells of a frame; only the keys that are known."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        raise RecordingError(f"{place} is not a JSON object of one line") from None
    if not isinstance(told, dict):
        raise RecordingError(f"{place} is not a JSON object of one line")
    for key in ("sequence", "epoch", "captured_ns"):
        if key in told and (type(told[key]) is not int or not 0 <= told[key] < 1 << 63):
            raise RecordingError(f"{place}: {key} is a whole number from 0, not {told[key]!r}")
    if "file" in told and (not isinstance(told["file"], str) or Path(told["file"]).name != told["file"]):
        raise RecordingError(f"{place}: file is the name of a picture in the same folder, not {told['file']!r}")
    if "geometry" in told:
        try:
            geometry.PanoramaGeometry.from_metadata(told["geometry"])
        except geometry.GeometryError as error:
            raise RecordingError(f"{place}: {error}") from None
    return {key: told[key] for key in ("sequence", "epoch", "captured_ns", "file", "geometry") if key in told}


def _read_picture(path: Path) -> npt.NDArray[np.uint8]:
    try:
        return read_picture(path, str(path), "remove it, or make it anew")
    except ServiceError as error:
        raise RecordingError(str(error)) from None


def _decode_video(path: Path) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    try:
        import av  # noqa: PLC0415  a folder of pictures needs none
    except ImportError:
        raise RecordingError(f"{path} is read by PyAV, which is not installed: run 'pip install av'") from None
    number = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise RecordingError(f"{path} holds no video")
            begun_ns: int | None = None
            for number, frame in enumerate(container.decode(video=0), 1):
                at_ns = (number - 1) * INTERVAL_NS if frame.time is None else round(frame.time * 1e9)
                begun_ns = at_ns if begun_ns is None else begun_ns
                pixels = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
                # A telephone that was held upright: the angle is counter-clockwise, as FFmpeg's display matrix has it.
                yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))), max(0, at_ns - begun_ns)
    except (av.FFmpegError, OSError) as error:
        after = f" after {number} frames" if number else ""
        raise RecordingError(f"{path} cannot be decoded{after}: {error.strerror or error}") from None
    if not number:
        raise RecordingError(f"{path} holds no frame that can be decoded")
