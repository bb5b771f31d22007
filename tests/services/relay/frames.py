"""References to frames and results for tests that need neither broker nor ring."""

from __future__ import annotations

import hashlib
from typing import Any

from services.common.reference import FrameReference, ResultReference, frame_address

STREAM = "roof"
DATA = b"pixels"


def frame(sequence: int, epoch: int = 7, data: bytes = DATA, **changed: Any) -> FrameReference:
    """A frame of the stream."""
    sha256 = hashlib.sha256(data).hexdigest()
    captured_wall_ns = changed.get("captured_wall_ns", min(sequence * 10**9, (1 << 64) - 1))
    fields: dict[str, Any] = {
        "address": frame_address(STREAM, epoch, sequence, captured_wall_ns, encoding="raw", sha256=sha256),
        "size_bytes": len(data),
        "sha256": sha256,
        "stream": STREAM,
        "epoch": epoch,
        "sequence": sequence,
        "captured_ns": sequence,
        "captured_wall_ns": captured_wall_ns,
        "format": "raw",
        "shape": (len(data),),
        "dtype": "|u1",
        "pixel_format": "data",
    }
    return FrameReference(**(fields | changed))


def result(of: FrameReference, group: str = "detector", **changed: Any) -> ResultReference:
    """A detector's result for a frame."""
    fields: dict[str, Any] = {
        "address": f"results/{of.stream}/{of.epoch}/{of.sequence}/m/0",
        "size_bytes": 5,
        "sha256": "0" * 64,
        "stream": of.stream,
        "epoch": of.epoch,
        "sequence": of.sequence,
        "captured_ns": of.captured_ns,
        "captured_wall_ns": of.captured_wall_ns,
        "model": "m",
        "group": group,
        "instance": "one",
        "frame_address": of.address,
    }
    return ResultReference(**(fields | changed))
