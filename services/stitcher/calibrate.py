"""Where the cameras look, found from one picture of each.

All cameras are taken to stand at one point, so their pictures differ by a rotation and a focal length. OpenCV's
stitching pipeline does the work: SIFT features, matches between each two cameras, rotations and focal lengths from the
homographies, bundle adjustment of the rays, and wave correction, which makes the horizon straight.

Source: M. Brown and D. Lowe, "Automatic Panoramic Image Stitching using Invariant Features", IJCV 2007.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration import Calibration, CalibrationError, CameraPose

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

FEATURES = 4000
RATIO = 0.65
"""How much better a SIFT match must be than the second best (as in OpenCV's sample stitcher)."""
MAX_FOCAL_SPREAD = 2.0
"""Focal lengths that differ more than this from their median are a failed adjustment, not a rig of cameras."""
CONTRADICTION_RAD = math.radians(6)
"""A match that turns a camera by so much more or less than the surer matches do is wrong."""
WHAT_TO_DO = (
    "let neighbouring cameras overlap by a sixth of their width, on still and textured things far away,"
    " or give calibration.hfov_deg or a saved calibration.file"
)


Progress = Callable[[int, int], None]
"""Called with the steps that are done, and their number."""


def no_progress(_done: int, _total: int) -> None:
    """Take the progress for nobody."""


def steps_for(pictures: int) -> int:
    """Number of steps of a calibration: the features of each picture, the matches, the adjustment."""
    return pictures + 2


def calibrate(
    pictures: Mapping[str, Image],
    *,
    hint_focal_px: float | None = None,
    min_confidence: float = 1.0,
    progress: Progress = no_progress,
) -> Calibration:
    """Place the cameras.

    Args:
        pictures: By camera, uint8 BGR of shape ``(height, width, 3)``, taken at about the same time.
        hint_focal_px: Rough focal length of all cameras in pixels; without it, it is found from the homographies.
        min_confidence: Least confidence of a match between two cameras.
        progress: Told after each step.

    Returns:
        The largest group of cameras that match with each other, from left to right; the others are ``unplaced``.

    Raises:
        CalibrationError: Fewer than two could be placed, or the result is no rig of cameras.
    """
    names = list(pictures)
    if len(names) < 2:
        raise CalibrationError(f"at least two cameras with a picture are needed, there is {', '.join(names) or 'none'}")
    try:
        features = _find_features(list(pictures.values()), progress)
        matcher = cv2.detail.BestOf2NearestMatcher(False, 1 - RATIO)
        matches = matcher.apply2(features)
        matcher.collectGarbage()
        confidence = _judge(features, matches)
        progress(len(names) + 1, steps_for(len(names)))
        kept = _largest_group(confidence, min_confidence)
        if len(kept) < 2:
            raise CalibrationError(f"no two of the cameras {', '.join(names)} match: {WHAT_TO_DO}")
        kept_features = [features[i] for i in kept]
        kept_matches = _submatches(matches, kept, len(names))
        found = _adjust(kept_features, kept_matches, hint_focal_px, min_confidence)
    except (cv2.error, np.linalg.LinAlgError) as error:
        reason = error.err if isinstance(error, cv2.error) else str(error)
        raise CalibrationError(f"the cameras {', '.join(names)} cannot be placed ({reason}): {WHAT_TO_DO}") from None
    poses = []
    for index, (focal_px, rotation) in zip(kept, found, strict=True):
        height_px, width_px = pictures[names[index]].shape[:2]
        poses.append(
            CameraPose(
                name=names[index],
                width_px=width_px,
                height_px=height_px,
                focal_px=focal_px,
                center_x_px=(width_px - 1) / 2,
                center_y_px=(height_px - 1) / 2,
                rotation=rotation.tolist(),
                confidence=float(np.delete(confidence[index], index).max()),
            )
        )
    poses.sort(key=lambda pose: pose.yaw_rad)
    return Calibration(tuple(poses), tuple(name for i, name in enumerate(names) if i not in kept))


def _find_features(pictures: Sequence[Image], progress: Progress) -> list[Any]:
    finder = cv2.SIFT.create(nfeatures=FEATURES)
    features = []
    for picture in pictures:
        features.append(cv2.detail.computeImageFeatures2(finder, picture))
        progress(len(features), steps_for(len(pictures)))
    return features


def _judge(features: Sequence[Any], matches: Sequence[Any]) -> Matrix:
    """Confidence of each match, put into it and returned by cameras; 0 on the diagonal.

    A match is judged by how many of all features in the overlap it explains (Brown and Lowe, section 3.2), not of the
    matched ones as OpenCV does: a facade that repeats itself gives many matches between pictures of different parts.
    """
    points = [np.array([point.pt for point in one.getKeypoints()], np.float64).reshape(-1, 2) for one in features]
    confidence = np.zeros((len(features), len(features)))
    for match in matches:
        i, j = match.src_img_idx, match.dst_img_idx
        if i == j or min(i, j) < 0 or match.H is None:
            continue
        there = _count_inside(points[i], features[i].img_size, match.H, features[j].img_size)
        back = _count_inside(points[j], features[j].img_size, np.linalg.inv(match.H), features[i].img_size)
        match.confidence = match.num_inliers / (8 + 0.3 * min(there, back))
        confidence[i, j] = match.confidence
    return np.asarray(np.maximum(confidence, confidence.T))


def _count_inside(points: Matrix, size: tuple[int, int], homography: Matrix, other_size: tuple[int, int]) -> int:
    """How many points of one picture fall into the other; homographies are relative to the pictures' middles."""
    centered = np.column_stack([points - np.array(size) / 2, np.ones(len(points))]) @ homography.T
    ahead = centered[:, 2] > 1e-9
    moved = np.abs(centered[ahead, :2] / centered[ahead, 2:])
    return int((moved < np.array(other_size) / 2).all(axis=1).sum())


def _largest_group(confidence: Matrix, least: float) -> list[int]:
    """The largest set of cameras joined by sure matches (leaveBiggestComponent drops the indices, so not that)."""
    groups: list[set[int]] = []
    for camera in range(len(confidence)):
        joined = {camera} | {other for other in range(len(confidence)) if confidence[camera, other] >= least}
        overlapping = [group for group in groups if group & joined]
        groups = [group for group in groups if not group & joined] + [joined.union(*overlapping)]
    return max((sorted(group) for group in groups), key=len)


def _submatches(matches: Sequence[Any], kept: Sequence[int], count: int) -> list[Any]:
    result = []
    for i, left in enumerate(kept):
        for j, right in enumerate(kept):
            match = matches[left * count + right]
            if left != right:
                match.src_img_idx, match.dst_img_idx = i, j
            result.append(match)
    return result


def _adjust(
    features: Sequence[Any], matches: Sequence[Any], hint_focal_px: float | None, min_confidence: float
) -> list[tuple[float, Matrix]]:
    """Focal length and rotation of each camera, the horizon straight and the middle at yaw 0."""
    good, cameras = cv2.detail.HomographyBasedEstimator().apply(features, matches, [])
    if not good:
        raise CalibrationError(f"the matches contradict each other: {WHAT_TO_DO}")
    focal_px = hint_focal_px or float(np.median([camera.focal for camera in cameras]))
    for camera, rotation in zip(cameras, _chain(matches, len(cameras), focal_px), strict=True):
        camera.focal, camera.R = focal_px, rotation.astype(np.float32)
        camera.ppx, camera.ppy = camera.ppx - 0.5, camera.ppy - 0.5  # pixel centres are whole numbers
    adjuster = cv2.detail.BundleAdjusterRay()
    adjuster.setConfThresh(min_confidence)
    good, cameras = adjuster.apply(features, matches, cameras)
    focals_px = np.array([camera.focal for camera in cameras])
    middle_px = float(np.median(focals_px))
    if not good or not np.isfinite(focals_px).all() or middle_px <= 0:
        raise CalibrationError(f"the adjustment of the cameras failed: {WHAT_TO_DO}")
    if (focals_px > MAX_FOCAL_SPREAD * middle_px).any() or (focals_px < middle_px / MAX_FOCAL_SPREAD).any():
        raise CalibrationError(
            f"the adjustment gave focal lengths of {', '.join(f'{f:.0f}' for f in focals_px)} px: {WHAT_TO_DO}"
        )
    rotations = cv2.detail.waveCorrect([camera.R for camera in cameras], cv2.detail.WAVE_CORRECT_HORIZ)
    upright = _center([np.asarray(rotation, np.float64) for rotation in rotations])
    return list(zip(focals_px.tolist(), upright, strict=True))


def _chain(matches: Sequence[Any], count: int, focal_px: float) -> list[Matrix]:
    """Rotations from the surest homographies outwards; matches that contradict them lose their confidence."""
    k = np.diag([focal_px, focal_px, 1.0])
    turns: dict[tuple[int, int], Matrix] = {}
    for match in matches:
        if match.src_img_idx != match.dst_img_idx and match.H is not None:
            u, _, vt = np.linalg.svd(np.linalg.inv(k) @ np.linalg.inv(match.H) @ k)
            turns[match.src_img_idx, match.dst_img_idx] = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    sure = {(m.src_img_idx, m.dst_img_idx): m for m in matches if (m.src_img_idx, m.dst_img_idx) in turns}
    rotations: dict[int, Matrix] = {0: np.eye(3)}
    while len(rotations) < count:
        links = [link for link in sure if link[0] in rotations and link[1] not in rotations]
        if not links:
            raise CalibrationError(f"the matches contradict each other: {WHAT_TO_DO}")
        best = max(links, key=lambda link: float(sure[link].confidence))
        rotations[best[1]] = rotations[best[0]] @ turns[best]
    for (i, j), match in sure.items():
        difference, _ = cv2.Rodrigues(rotations[j].T @ rotations[i] @ turns[i, j])
        if np.linalg.norm(difference) > CONTRADICTION_RAD:
            match.confidence = 0.0
    return [rotations[index] for index in range(count)]


def _center(rotations: Sequence[Matrix]) -> list[Matrix]:
    """Turn all cameras so that most stand upright and their middle is at yaw 0."""
    if sum(rotation[1, 1] for rotation in rotations) < 0:
        rotations = [np.diag([-1.0, -1.0, 1.0]) @ rotation for rotation in rotations]
    axes = np.array([rotation[:, 2] for rotation in rotations])
    rough = math.atan2(axes[:, 0].sum(), axes[:, 2].sum())
    yaws = (np.arctan2(axes[:, 0], axes[:, 2]) - rough + math.pi) % (2 * math.pi) - math.pi
    middle = rough + (yaws.min() + yaws.max()) / 2
    cosine, sine = math.cos(middle), math.sin(middle)
    turn = np.array([[cosine, 0.0, -sine], [0.0, 1.0, 0.0], [sine, 0.0, cosine]])
    return [turn @ rotation for rotation in rotations]
