"""``framebus-detector check MODEL|BUNDLE [PICTURE]``: loads a model, describes it, and runs it on a picture.

A classifier, which is a model for the second stage, treats the whole picture as one object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from services.common.config import LogSection, load
from services.common.logs import set_up_logs
from services.common.pictures import read_picture
from services.common.service import ServiceError
from services.detector.config import DetectorConfiguration, DetectorSection
from services.detector.detector import see_all
from services.detector.models.classifier import Classifier, is_classifier, load_classifier
from services.detector.models.model import Model, ModelError, load_model
from services.detector.tiles import Pixels


def main(arguments: list[str]) -> int:
    """Load a model or a bundle, describe it, and detect objects in a picture.

    Raises:
        ServiceError: The model or the picture is unusable.
    """
    options = _parse(arguments)
    set_up_logs("detector", LogSection(level="warning"))  # to standard error, separate from the output
    given = {"model": options.model, "classes": options.classes, "format": options.format}
    section = load(DetectorConfiguration, options.config).detector.model_copy(
        update={key: value for key, value in given.items() if value is not None}
    )
    pixels = (
        None if options.picture is None else read_picture(options.picture, str(options.picture), "give PNG or JPEG")
    )
    try:
        if is_classifier(options.model):
            print(_check_classifier(load_classifier(options.model, section.providers), pixels, as_json=options.json))
            return 0
        model = load_model(section)
        classifier = None
        if section.classifier is not None:
            classifier = load_classifier(section.classifier, section.providers, model.classes)
    except ModelError as error:
        raise ServiceError(str(error)) from None
    if pixels is None:
        print(json.dumps(_describe(model), indent=2) if options.json else _in_words(model))
        return 0
    print(json.dumps({**_describe(model), **_found(section, model, classifier, pixels)}, indent=2))
    return 0


def _found(section: DetectorSection, model: Model, classifier: Classifier | None, pixels: Pixels) -> dict[str, Any]:
    """Detect the objects of a picture. Return them and the number of invalid boxes."""
    seen = see_all(section, model, pixels, classifier)
    boxes = seen.known.boxes
    objects = []
    for xyxy, score, label, said in zip(boxes.xyxy, boxes.scores, boxes.labels, seen.said, strict=True):
        sub = {} if said is None else {"sub_class": said[0], "sub_score": round(said[1], 3)}
        one = {"label": model.labels[label], "score": round(float(score), 3), **sub}
        objects.append({**one, "xyxy": [round(float(x), 1) for x in xyxy]})
    return {"rejected_boxes": model.rejected_boxes, "objects": objects}


def _check_classifier(classifier: Classifier, pixels: Pixels | None, *, as_json: bool) -> str:
    """Describe a classifier and, as JSON, its result for a picture."""
    if pixels is None and not as_json:
        return _classifier_in_words(classifier)
    described = {
        "name": classifier.name,
        "version": classifier.version,
        "dimension": "classifier",
        "provider": classifier.provider,
        "input_px": list(classifier.input_px),
        "batch": classifier.batch,
        "outputs": classifier.outputs,
        "applies_to": classifier.applies_to,
        "named_by": classifier.named_by,
        "classes": dict(zip(classifier.classes, classifier.thresholds, strict=True)),
        "told": list(classifier.told),
    }
    if pixels is not None:
        row = classifier.classify([pixels])[0].tolist()
        probabilities = {name: round(value, 3) for name, value in zip(classifier.classes, row, strict=True)}
        described |= {"rejected_crops": classifier.rejected_crops}
        described |= {"probabilities": None if classifier.rejected_crops else probabilities}
    return json.dumps(described, indent=2)


def _classifier_in_words(classifier: Classifier) -> str:
    height_px, width_px = classifier.input_px
    batch = classifier.batch
    thresholds = dict(zip(classifier.classes, classifier.thresholds, strict=True))
    told = ", ".join(f"{name} {thresholds[name]:g}" for name in classifier.told)
    applies_to = "all objects" if classifier.applies_to is None else ", ".join(classifier.applies_to)
    rows = {
        "classifier": f"{classifier.name} {classifier.version}".rstrip(),
        "applies to": applies_to,
        "input": f"{width_px} x {height_px} pixels, {'up to ' if batch > 1 else ''}{batch} a run",
        "outputs": classifier.outputs,
        "classes": f"{len(classifier.classes)}, named by {classifier.named_by}: {', '.join(classifier.classes)}",
        "told": f"{told} (with the least probability of each)",
        "provider": classifier.provider,
    }
    return "\n".join(f"{name:10} {text}" for name, text in rows.items())


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="framebus-detector check", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument(
        "model", type=Path, metavar="MODEL|BUNDLE", help="an ONNX file, or a directory with bundle.yaml"
    )
    parser.add_argument("picture", nargs="?", type=Path, metavar="PICTURE", help="PNG or JPEG; its objects as JSON")
    parser.add_argument("--config", type=Path, help="the YAML file, for labels, thresholds, providers and tiles")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the model's classes, one per line")
    parser.add_argument("--format", help="format of its outputs, if they fit several")
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
