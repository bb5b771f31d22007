"""``framebus-detector check MODEL|BUNDLE [PICTURE]``: loads a model, and says what it is and what a picture shows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from services.common.config import LogSection, load
from services.common.logs import set_up_logs
from services.common.pictures import read_picture
from services.common.service import ServiceError
from services.detector.config import DetectorConfiguration
from services.detector.detector import find_all
from services.detector.models.model import Model, ModelError, load_model


def main(arguments: list[str]) -> int:
    """Load a model or a bundle, say what it is, and find its objects in a picture.

    Raises:
        ServiceError: The model or the picture cannot be used.
    """
    options = _parse(arguments)
    set_up_logs("detector", LogSection(level="warning"))  # to standard error, apart from what is printed
    given = {"model": options.model, "classes": options.classes, "format": options.format}
    section = load(DetectorConfiguration, options.config).detector.model_copy(
        update={key: value for key, value in given.items() if value is not None}
    )
    pixels = (
        None if options.picture is None else read_picture(options.picture, str(options.picture), "give PNG or JPEG")
    )
    try:
        model = load_model(section)
    except ModelError as error:
        raise ServiceError(str(error)) from None
    if pixels is None:
        print(json.dumps(_describe(model), indent=2) if options.json else _in_words(model))
        return 0
    boxes = find_all(section, model, pixels)
    objects = [
        {"label": model.labels[label], "score": round(float(score), 3), "xyxy": [round(float(x), 1) for x in corners]}
        for corners, score, label in zip(boxes.corners, boxes.scores, boxes.labels, strict=True)
    ]
    print(json.dumps({**_describe(model), "rejected_boxes": model.rejected_boxes, "objects": objects}, indent=2))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="framebus-detector check", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument(
        "model", type=Path, metavar="MODEL|BUNDLE", help="an ONNX file, or a directory with bundle.yaml"
    )
    parser.add_argument("picture", nargs="?", type=Path, metavar="PICTURE", help="PNG or JPEG; its objects as JSON")
    parser.add_argument("--config", type=Path, help="the YAML file, for labels, thresholds, providers and tiles")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the model's classes, one a line")
    parser.add_argument("--format", help="how its outputs are read, where they fit several formats")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def _describe(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "format": model.format,
        "provider": model.provider,
        "input_px": list(model.input_px),
        "batch": model.batch,
        "classes": list(model.classes),
        "named_by": model.named_by,
        "labels": dict(zip(model.labels, (round(value, 3) for value in model.thresholds), strict=True)),
    }


def _in_words(model: Model) -> str:
    height_px, width_px = model.input_px
    labels = ", ".join(f"{label} {value:g}" for label, value in zip(model.labels, model.thresholds, strict=True))
    rows = {
        "model": f"{model.name} {model.version}".rstrip(),
        "format": model.format,
        "input": f"{width_px} x {height_px} pixels, {'up to ' if model.batch > 1 else ''}{model.batch} a run",
        "classes": f"{len(model.classes)}, named by {model.named_by}: {', '.join(model.classes)}",
        "labels": f"{labels} (with the least score of each)",
        "provider": model.provider,
    }
    return "\n".join(f"{name:9} {text}" for name, text in rows.items())
