"""Convert the result for a frame to the published message."""

from __future__ import annotations

from framebus import Frame
from services.common import geometry
from services.common.detections import Detection, TileAge
from services.common.geometry import PanoramaGeometry
from services.common.recording import RecordedFrame
from services.detector.boxes import Floats
from services.detector.detector import Seen


def objects_of(
    seen: Seen, labels: tuple[str, ...], panorama: PanoramaGeometry | None, *, tracked: bool
) -> tuple[Detection, ...]:
    """Return the objects of a frame, with angles if the frame has a geometry, and with tracks if ``tracked``."""
    boxes = seen.known.boxes
    return tuple(
        Detection(
            label=labels[label],
            score=float(score),
            x_px=float(left),
            y_px=float(top),
            width_px=float(right - left),
            height_px=float(bottom - top),
            track_id=track if tracked else 0,
            angles=angles,
            age_ms=age_ns / 1e6,
            sub_class=None if said is None else said[0],
            sub_score=None if said is None else said[1],
        )
        for (left, top, right, bottom), score, label, track, age_ns, angles, said in zip(
            boxes.xyxy,
            boxes.scores,
            boxes.labels,
            seen.known.tracks,
            seen.known.ages_ns,
            angles_of(boxes.xyxy, panorama),
            seen.said,
            strict=True,
        )
    )


def tile_ages(seen: Seen) -> tuple[TileAge, ...]:
    """Return the age of each tile."""
    return tuple(
        TileAge(tile.xyxy, None if age_ns is None else age_ns / 1e6)
        for tile, age_ns in zip(seen.tiles, seen.ages_ns, strict=True)
    )


def geometry_of(frame: Frame | RecordedFrame) -> PanoramaGeometry | None:
    """Return the frame's geometry, or None if the publisher sends none or an unsupported one."""
    try:
        return geometry.read(frame.metadata)
    except geometry.GeometryError:
        return None  # boxes in pixels are useful without angles


def angles_of(xyxy: Floats, panorama: PanoramaGeometry | None) -> list[tuple[float, float, float, float] | None]:
    """Return yaw and pitch of the top left and the bottom right corner of each box, in rad."""
    if panorama is None:
        return [None] * len(xyxy)
    # A box's coordinate 0 is the frame's edge; the geometry's is the centre of the first pixel.
    angles = panorama.angles(xyxy.reshape(-1, 2, 2) - 0.5).reshape(-1, 4)
    return [(left, top, right, bottom) for left, top, right, bottom in angles.tolist()]
