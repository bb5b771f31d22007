"""``framebus-stitcher check PICTURE…``: places still pictures, and reports what their panorama shows.

It runs the same calibration as the service, on pictures in files instead of cameras.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.common.config import load
from services.common.pictures import read_picture
from services.common.service import ServiceError
from services.stitcher.calibration.calibrate import calibrate
from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPrior, Image
from services.stitcher.calibration.priors import point_pairs, priors_of
from services.stitcher.config import StitcherConfiguration, StitcherSection
from services.stitcher.inspection.describe import describe
from services.stitcher.inspection.picture import draw
from services.stitcher.rendering.panorama import plan


def main(arguments: list[str]) -> int:
    """Place still pictures, named after their cameras, and report what their panorama shows."""
    options = _parse(arguments)
    if options.picture is not None and options.picture.suffix.lower() not in {"", ".png"}:
        raise ServiceError(f"--picture writes PNG: name the file {options.picture.with_suffix('.png')}")
    section = load(StitcherConfiguration, options.config).stitcher
    pictures = _read(options.pictures)
    priors = _priors(section, pictures, options.hfov_deg)
    view = options.view or section.view
    calibration: Calibration | None = None
    try:
        calibration = calibrate(
            pictures, priors=priors, points=point_pairs(section), min_confidence=section.calibration.min_confidence
        )
        width_px, height_px = options.size or (section.width_px, section.height_px)
        panorama = plan(calibration, width_px, height_px, view)
    except CalibrationError as error:
        if options.json:
            unplaced = [{"name": name, "placed": False} for name in pictures]
            document = {"error": str(error), "cameras": unplaced, "pairs": [], "shown_deg": 0.0, "all_deg": 0.0}
            print(json.dumps(document, indent=2))
        raise ServiceError(str(error)) from None
    if options.picture is not None:
        _write(options.picture, draw(calibration, panorama, pictures, title=panorama.coverage.sentence()))
    document = describe(calibration, panorama)
    print(json.dumps(document, indent=2) if options.json else _in_words(document))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="framebus-stitcher check", description=main.__doc__)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="one of each camera, named after it")
    parser.add_argument("--config", type=Path, help="the YAML file, for the cameras' settings and the panorama's size")
    parser.add_argument("--hfov-deg", type=float, help="approximate horizontal field of view of the cameras")
    parser.add_argument("--size", type=_size, metavar="WxH", help="size of the panorama, such as 4896x688")
    parser.add_argument("--view", choices=("crop", "fit"), help="fill the panorama, or show all with bars")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write a picture with seams and residuals, as PNG")
    return parser.parse_args(arguments)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()) or int(width) % 4 or int(height) % 4 or not int(width) * int(height):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write it like 4896x688, in multiples of 4")
    return int(width), int(height)


def _read(paths: list[Path]) -> dict[str, Image]:
    """Return the pictures, by the names of their cameras."""
    pictures: dict[str, Image] = {}
    for path in paths:
        name = path.stem
        if name in pictures:
            raise ServiceError(f"two pictures are named {name}: each camera gives one, named after it")
        pictures[name] = read_picture(path, str(path), "give PNG or JPEG")
    return pictures


def _priors(
    section: StitcherSection, pictures: Mapping[str, Image], hfov_deg: float | None
) -> Mapping[str, CameraPrior]:
    shapes = {name: picture.shape[:2] for name, picture in pictures.items()}
    priors = priors_of(section, {name: (shape[0], shape[1]) for name, shape in shapes.items()}, {})
    if hfov_deg is None:
        return priors
    if not 1 < hfov_deg < 170:
        raise ServiceError("--hfov-deg must lie between 1 and 170")
    return {name: replace(prior, hfov_deg=hfov_deg) for name, prior in priors.items()}


def _write(path: Path, png: bytes) -> None:
    try:
        path.write_bytes(png)
    except OSError as error:
        raise ServiceError(f"{path} cannot be written: {error.strerror}") from None


def _in_words(document: Mapping[str, Any]) -> str:
    width = max(6, *(len(camera["name"]) for camera in document["cameras"]))
    lines = [f"{'camera':{width}}    yaw  pitch   roll  focal length      k1  residual"]
    for camera in document["cameras"]:
        if not camera["placed"]:
            lines.append(f"{camera['name']:{width}}  not placed: {camera['reason']}")
            continue
        residual = "" if camera["rms_px"] is None else f"{camera['rms_px']:.2f} px"
        # + 0.0 avoids -0.0
        yaw, pitch, roll = (f"{round(camera[key], 1) + 0.0:6.1f}" for key in ("yaw_deg", "pitch_deg", "roll_deg"))
        lines.append(
            f"{camera['name']:{width}} {yaw} {pitch} {roll}"
            f" {camera['focal_px']:10.0f} px  {camera['k1']:6.3f}  {residual:>8}"
        )
    lines += [
        f"{' and '.join(pair['cameras'])}: {pair['matches']} points, residual {pair['rms_px']:.2f} px"
        for pair in document["pairs"]
    ]
    return "\n".join([*lines, document["shown"]])
