"""Other stitchers, for comparison: where they place the cameras."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPose

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

STITCHING_PYTHON = "FRAMEBUS_STITCHING_PYTHON"
"""Environment variable: the Python of an environment with stitching-headless."""

STITCHING = """
import pickle, sys
from stitching import Stitcher
from stitching.images import Images
with open(sys.argv[1], "rb") as file:
    pictures, settings = pickle.load(file)
stitcher = Stitcher(**settings)
images = Images.of(pictures, stitcher.medium_megapix, stitcher.low_megapix, stitcher.final_megapix)
medium = list(images.resize(Images.Resolution.MEDIUM))
features = stitcher.find_features(medium, [])
matches = stitcher.match_features(features)
kept = [int(i) for i in stitcher.subsetter.get_indices_to_keep(features, matches)]
images.subset(kept)
features = stitcher.subsetter.subset_list(features, kept)
matches = stitcher.subsetter.subset_matches(matches, kept)
cameras = stitcher.estimate_camera_parameters(features, matches)
cameras = stitcher.refine_camera_parameters(features, matches, cameras)
cameras = stitcher.perform_wave_correction(cameras)
scale = images.get_ratio(Images.Resolution.MEDIUM, Images.Resolution.FINAL)
with open(sys.argv[2], "wb") as file:
    pickle.dump([(i, c.focal * scale, c.ppx * scale, c.ppy * scale, c.R.tolist()) for i, c in zip(kept, cameras)], file)
"""


def by_opencv(pictures: Mapping[str, Image]) -> Calibration:
    """``cv2.Stitcher`` in its panorama mode, as its documentation uses it."""
    names = list(pictures)
    stitcher = cv2.Stitcher.create(cv2.Stitcher_PANORAMA)
    try:
        status = stitcher.estimateTransform([pictures[name] for name in names])
    except cv2.error:
        status = -1
    if status != cv2.Stitcher_OK:
        raise CalibrationError(f"cv2.Stitcher: status {status}")
    scale = stitcher.workScale()
    poses = [
        _pose(names[i], pictures[names[i]], one.focal / scale, one.ppx / scale, one.ppy / scale, np.asarray(one.R))
        for i, one in zip(stitcher.component(), stitcher.cameras(), strict=True)
    ]
    return _calibration(names, poses)


def by_stitching(pictures: Mapping[str, Image], **settings: Any) -> Calibration:
    """``stitching-headless``, step by step as its ``Stitcher.stitch`` does.

    Args:
        pictures: The pictures, by camera.
        **settings: Settings of its ``Stitcher`` that differ from the defaults.
    """
    names = list(pictures)
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "pictures", Path(folder) / "cameras"
        given.write_bytes(pickle.dumps((list(pictures.values()), settings)))
        command = [os.environ[STITCHING_PYTHON], "-W", "ignore", "-c", STITCHING, str(given), str(got)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CalibrationError(f"stitching: {done.stderr.strip().splitlines()[-1]}")
        cameras = pickle.loads(got.read_bytes())
    poses = [_pose(names[i], pictures[names[i]], f, x, y, np.array(r)) for i, f, x, y, r in cameras]
    return _calibration(names, poses)


def _pose(
    name: str, picture: Image, focal_px: float, x: float, y: float, rotation: npt.NDArray[np.float64]
) -> CameraPose:
    height_px, width_px = picture.shape[:2]
    u, _, vt = np.linalg.svd(np.asarray(rotation, np.float64))
    return CameraPose(
        name=name,
        width_px=width_px,
        height_px=height_px,
        focal_px=focal_px,
        center_x_px=x - 0.5,
        center_y_px=y - 0.5,
        rotation=(u @ vt).tolist(),
        confidence=1.0,
    )


def _calibration(names: list[str], poses: list[CameraPose]) -> Calibration:
    placed = {pose.name for pose in poses}
    return Calibration(tuple(poses), tuple(name for name in names if name not in placed))


PLACE: dict[str, Callable[[Mapping[str, Image]], Calibration]] = {
    "cv2.Stitcher": by_opencv,
    "stitching": by_stitching,
    # As its warnings recommend if cameras are left out. With ORB, its default, and this threshold, none of 16 runs of
    # the table ended: the adjustment failed.
    "stitching, SIFT, 0.3": functools.partial(by_stitching, detector="sift", confidence_threshold=0.3),
}
