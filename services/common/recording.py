"""Read recordings as frames: a folder of pictures or a video, with an optional description of each frame.

``file:///recordings/monday`` is a folder of pictures, in the natural order of their names (2 before 10), or a folder
with one video. ``file:///recordings/monday.mp4`` is a video. A file ``frames.jsonl`` in the folder, or
``monday.frames.jsonl`` beside the video, describes the frames, one JSON object per line:

    {"sequence": 17, "epoch": 5, "captured_ns": 81234000000, "geometry": {"scale_px": 868.9, ...}, "file": "17.png"}

Every key is optional. By default, frames are numbered from 1, have epoch 0, and have the video's timestamps or are
40 ms apart. If the lines have ``file``, they select the pictures and their order. Otherwise, the n-th line describes
the n-th picture or frame of the video.

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
"""Interval between frames without a timestamp."""
_LONGEST_LINE: Final = 1 << 16
_NUMBER: Final = re.compile(r"(\d+)")


class RecordingError(Exception):
    """The recording cannot be read; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class RecordedFrame:
    """A frame of a recording, or one fetched by reference; the counterpart of :class:`framebus.Frame`."""

    pixels: npt.NDArray[np.uint8]
    """BGR, ``(height, width, 3)``."""
    sequence: int
    epoch: int
    captured_ns: int
    """Capture time, by the clock of the recording host."""
    metadata: Mapping[str, Any] | None = None
    """Metadata, with the panorama's geometry if it is known: see :mod:`services.common.geometry`."""
    pixel_format: str = "bgr"
    skipped: int = 0
    """Skipped frames since the previous one; always 0 in a recording."""


class Recording:
    """A folder of pictures or a video. The constructor checks everything that does not require decoding.

    Raises:
        RecordingError: The address holds no recording, or none that can be read.
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
        """Yield all frames in order, decoding each one on demand.

        Raises:
            RecordingError: A frame cannot be read. The frames before it have been yielded.
        """
        number = 0
        for number, (pixels, captured_ns) in enumerate(self._decoded()):
            told: Mapping[str, Any] = {}
            if self._told is not None:
                if number >= len(self._told):
                    raise RecordingError(
                        f"{self._sidecar} describes {len(self._told)} frames, and {self._path} has more"
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
                f"{self._sidecar} describes {len(self._told)} frames, and {self._path} ends after {number + 1}"
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
                # A longer line is read in parts, of which none is JSON, so it takes no more memory than that.
                lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
                return [_told_frame(f"{self._sidecar}:{number}", line) for number, line in enumerate(lines, 1)]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordingError(f"{self._sidecar} cannot be read: {error.strerror}") from None

    def _told_pictures(self, told: list[dict[str, Any]]) -> list[Path]:
        """Return the pictures that the lines name, or all pictures if the lines name none."""
        named = [one["file"] for one in told if "file" in one]
        if not named:
            if len(told) != len(self._pictures):
                raise RecordingError(
                    f"{self._sidecar} describes {len(told)} frames, and the folder has {len(self._pictures)} pictures: "
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
    """Return the path in a file URL.

    Raises:
        RecordingError: The URL is not a file URL with an absolute path.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise RecordingError(f"{url} is not a file URL: write file:///FOLDER or file:///VIDEO")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise RecordingError(f"{url} names no absolute path: write three slashes, as in file:///recordings/monday")
    # Not parts.path: a '?' or '#' is part of a file's name here.
    return Path(unquote(url.partition("://")[2].removeprefix("localhost")))


def _files(folder: Path, endings: frozenset[str]) -> list[Path]:
    """Return the folder's files that have one of the endings, in natural order (2 before 10)."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in endings and not path.name.startswith(".")]
    except OSError as error:
        raise RecordingError(f"{folder} cannot be read: {error.strerror}") from None
    # Digits compare as numbers; the text itself orders names such as 1 and 01.
    return sorted(
        found, key=lambda path: [(int(part) if part.isdigit() else 0, part) for part in _NUMBER.split(path.name)]
    )


def _told_frame(place: str, line: bytes) -> dict[str, Any]:
    """Parse and validate the description of a frame. Unknown keys are dropped."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        raise RecordingError(f"{place} is not a JSON object of one line") from None
    if not isinstance(told, dict):
        raise RecordingError(f"{place} is not a JSON object of one line")
    for key in ("sequence", "epoch", "captured_ns"):
        if key in told and (type(told[key]) is not int or not 0 <= told[key] < 1 << 63):
            raise RecordingError(f"{place}: {key} is a whole number from 0, not {told[key]!r}")
    # A name with a folder could lead outside of the recording.
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
        return read_picture(path, str(path), "remove it, or create it again")
    except ServiceError as error:
        raise RecordingError(str(error)) from None


def _decode_video(path: Path) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    try:
        import av  # noqa: PLC0415  imported lazily: a folder of pictures does not require it
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
                # A stream's timestamps may begin anywhere, so count from its first frame.
                begun_ns = at_ns if begun_ns is None else begun_ns
                pixels = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
                # A phone held upright records a rotation, counter-clockwise as in FFmpeg's display matrix.
                yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))), max(0, at_ns - begun_ns)
    except (av.FFmpegError, OSError) as error:
        after = f" after {number} frames" if number else ""
        raise RecordingError(f"{path} cannot be decoded{after}: {error.strerror or error}") from None
    if not number:
        raise RecordingError(f"{path} holds no frame that can be decoded")
