"""The classifier of the second stage: crops of objects in, the probability of each class out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from services.detector.boxes import Floats
from services.detector.models.bundle import Manifest, Outputs, read_bundle
from services.detector.models.choose import SLACK
from services.detector.models.classes import names_of_metadata, numbered_names
from services.detector.models.errors import ModelError
from services.detector.models.formats.base import IMAGENET_MEAN, IMAGENET_STD, Array
from services.detector.models.inputs import read_inputs
from services.detector.models.onnx_file import inspect_file
from services.detector.models.prepare import Preparation
from services.detector.models.session import open_session, plain
from services.detector.tiles import Pixels

DEFAULT_INPUT_PX = 224
"""Default side of the input of a classifier that takes any size."""
DEFAULT_THRESHOLD = 0.5
LARGEST_BATCH = 8
"""Largest batch of a network with a dynamic batch size."""
SUM_TOLERANCE = 0.02
"""Tolerance of the sum of a picture's probabilities, for rounding of float16 and int8."""

log = structlog.get_logger()


class Classifier:
    """A loaded classifier. Owned by one thread."""

    name: str
    """Name of the bundle, or of the file."""
    version: str
    """Version of the bundle; empty for a file."""
    classes: tuple[str, ...]
    """All classes, in the network's order."""
    named_by: str
    """Source of the classes' names."""
    told: tuple[str, ...]
    """The classes to report; an object of any other class has no second class."""
    thresholds: tuple[float, ...]
    """Least probability of each class."""
    applies_to: tuple[str, ...] | None
    """Labels of the objects that it applies to; None for all."""
    outputs: Outputs
    """Kind of the network's outputs; softmax converts logits to probabilities."""
    provider: str
    """ONNX Runtime's execution provider that runs it."""
    input_px: tuple[int, int]
    """Height and width of the input, to which a crop is resized."""
    batch: int
    """Largest number of crops in one run."""
    rejected_crops: int
    """Crops that were dropped because the network's outputs for them were invalid, such as NaN."""

    def __init__(self, path: Path, manifest: Manifest | None, providers: tuple[str, ...]) -> None:
        """Load a file.

        Args:
            path: The ONNX file.
            manifest: Manifest of its bundle, if any.
            providers: ONNX Runtime's execution providers, in order of preference.

        Raises:
            ModelError: The file is unusable.
        """
        self.name = path.name if manifest is None else manifest.name
        self.version = "" if manifest is None else manifest.version
        self.applies_to = None if manifest is None else manifest.applies_to
        self.rejected_crops = 0
        file = inspect_file(path)
        self._path = path
        self._session = open_session(path, file, providers)
        self.provider = self._session.get_providers()[0]
        metadata = {**file.metadata, **self._session.get_modelmeta().custom_metadata_map}
        self._image, others = read_inputs(path, self._session, manifest, metadata, DEFAULT_INPUT_PX)
        outputs = self._session.get_outputs()
        if others or len(outputs) != 1:
            raise ModelError(
                f"the classifier {path} has {len(others)} inputs beside the image, and {len(outputs)} outputs; one "
                "image and one output (N, classes) are needed"
            )
        self.input_px = (self._image.height_px, self._image.width_px)
        self.batch = LARGEST_BATCH if self._image.batch is None else self._image.batch
        self._preparation = self._prepare_for(manifest, metadata)
        self._tensor = self._preparation.tensor(self.batch)
        self.outputs = "logits"
        probed = self._probe()
        self.outputs = (None if manifest is None else manifest.outputs) or self._recognise(probed)
        self._name_classes(manifest, metadata, probed.shape[1])

    def classify(self, crops: Sequence[Pixels]) -> Floats:
        """Classify crops.

        Args:
            crops: uint8 BGR of shape ``(height, width, 3)`` each, of any size and row stride; read only.

        Returns:
            The probability of each class for each crop, ``(n, classes)``. A row is NaN if the network's outputs are
            invalid; such crops are counted.

        Raises:
            ModelError: The network fails when it runs.
        """
        parts = [self._run(crops[start : start + self.batch]) for start in range(0, len(crops), self.batch)]
        rows = np.concatenate([*parts, np.zeros((0, len(self.classes)), np.float32)])
        if self.outputs == "logits":
            rows = softmax(rows)
        with np.errstate(invalid="ignore"):
            good = ((rows >= -SLACK) & (rows <= 1 + SLACK)).all(axis=1)  # NaN compares false
        if not good.all():
            self._reject(rows[~good])
            rows[~good] = np.nan
        clipped: Floats = np.clip(rows, 0, 1)
        return clipped

    def _run(self, crops: Sequence[Pixels]) -> Floats:
        """Run the network on at most one batch of crops."""
        for crop, out in zip(crops, self._tensor, strict=False):
            self._preparation.fill(crop, out)
        # A network with a fixed batch takes a whole one; the rows of earlier crops are dropped below.
        tensor = self._tensor[: self._image.batch or len(crops)]
        try:
            (values,) = self._session.run(None, {self._image.name: tensor})
        except Exception as error:  # noqa: BLE001  onnxruntime's own errors share no base but Exception
            raise ModelError(f"the classifier {self._path} fails when it runs: {plain(error)}") from None
        values = np.asarray(values)
        if values.ndim != 2 or len(values) != len(tensor) or values.shape[1] < 2 or values.dtype.kind != "f":
            raise ModelError(
                f"the classifier {self._path} gives {values.dtype} {values.shape} for {len(tensor)} pictures; floats "
                f"of shape ({len(tensor)}, classes), of at least two classes, are needed"
            )
        return values[: len(crops)].astype(np.float32)

    def _probe(self) -> Floats:
        """Run the network on blank and textured pictures, to detect the kind of its outputs."""
        noise = np.random.default_rng(1).integers(0, 256, (*self.input_px, 3), np.uint8)
        pictures = [np.full_like(noise, 114), noise, np.zeros_like(noise)]
        if self._image.batch is None:
            try:
                return self._run(pictures)
            except ModelError:
                self.batch = 1  # the file declares a dynamic batch but was exported for a single picture
        return np.concatenate([self._run([picture]) for picture in pictures])

    def _recognise(self, probed: Floats) -> Outputs:
        """Return the kind of the outputs: probabilities lie between 0 and 1 and sum to 1 for each picture."""
        finite = probed[np.isfinite(probed).all(axis=1)]
        if not len(finite) or not ((finite >= -SLACK) & (finite <= 1 + SLACK)).all():
            return "logits"
        if (np.abs(finite.sum(axis=1) - 1) <= SUM_TOLERANCE).all():
            return "probabilities"
        # Independent scores lie in the same range. Softmax would make nearly even probabilities of them, which reach no
        # threshold.
        log.warning(
            "outputs taken for logits",
            classifier=self.name,
            reason="all lie between 0 and 1: say 'outputs: probabilities' in the bundle if they are each class's score",
        )
        return "logits"

    def _prepare_for(self, manifest: Manifest | None, metadata: Mapping[str, str]) -> Preparation:
        """Return the preparation of the input: ImageNet's or Ultralytics' defaults, overridden by the bundle."""
        image = self._image
        wanted: dict[str, Any] = {"fit": "centre"}
        if image.dtype != "uint8":
            wanted["scale"] = 1 / 255
            if metadata.get("task") != "classify":  # written by Ultralytics' exporter
                wanted |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        if manifest is not None:
            told = manifest.input.model_dump(exclude_none=True, exclude={"height_px", "width_px"})
            if {"scale", "mean", "std"} & told.keys():
                wanted = {"fit": "centre"}  # the bundle defines the normalisation as a whole, or not at all
            wanted |= told
        preparation = Preparation(image.height_px, image.width_px, image.channels_first, image.dtype)
        return dataclasses.replace(preparation, **wanted)

    def _name_classes(self, manifest: Manifest | None, metadata: Mapping[str, str], count: int) -> None:
        named = None if manifest is None else manifest.classes
        if named is not None:
            names, self.named_by = tuple(named), "the bundle"
        else:
            read = names_of_metadata(metadata)
            names = tuple(name or f"class{index}" for index, name in enumerate(read or numbered_names(count)))
            self.named_by = "nothing: name them in a bundle" if read is None else "the file"
        if len(names) != count:
            raise ModelError(
                f"the classifier {self._path} has {count} classes, but {len(names)} names are given "
                f"({self.named_by}): name each class, in the network's order"
            )
        self.classes = names
        labels = None if manifest is None else manifest.labels
        single = {} if manifest is None else manifest.score_thresholds
        unknown = [name for name in (*(labels or ()), *single) if name not in names]
        if unknown:
            raise ModelError(
                f"the classifier {self._path} does not know {', '.join(unknown)}; it knows {', '.join(names)}"
            )
        general = (None if manifest is None else manifest.score_threshold) or DEFAULT_THRESHOLD
        self.told = labels or names
        self.thresholds = tuple(single.get(name, general) for name in names)

    def _reject(self, rows: Array) -> None:
        """Count crops with invalid outputs, and log them once."""
        if not self.rejected_crops:
            log.warning(
                "crops rejected",
                classifier=self.name,
                reason="the classifier gives a number that is not finite"
                if not np.isfinite(rows).all()
                else "a probability is below 0 or above 1: say 'outputs: logits' in the bundle",
                count=len(rows),
            )
        self.rejected_crops += len(rows)


def load_classifier(path: Path, providers: tuple[str, ...] = (), known: Sequence[str] | None = None) -> Classifier:
    """Load a classifier: an ONNX file, or a bundle.

    Args:
        path: The file, or the bundle's directory.
        providers: ONNX Runtime's execution providers, in order of preference.
        known: All classes of the detector's model; None if there is no detector.

    Raises:
        ModelError: The classifier is unusable, or applies to a label that the detector does not know; one sentence.
    """
    if path.is_dir():
        manifest = read_bundle(path, "classifier")
        classifier = Classifier(path / manifest.network, manifest, providers)
    else:
        classifier = Classifier(path, None, providers)
    if known is not None:
        unknown = [label for label in classifier.applies_to or () if label not in known]
        if unknown:
            raise ModelError(
                f"the classifier {path} applies to {', '.join(unknown)}, which the detector's model does not know; it "
                f"knows {', '.join(known)}"
            )
    return classifier


def is_classifier(path: Path) -> bool:
    """Return whether a bundle is for a classifier, or a file has a single output with two axes.

    Raises:
        ModelError: The bundle or file cannot be read.
    """
    if path.is_dir():
        return read_bundle(path, None).dimension == "classifier"
    shapes = [output.shape for output in open_session(path, inspect_file(path), ()).get_outputs()]
    return len(shapes) == 1 and len(shapes[0]) == 2


def softmax(values: Array) -> Floats:
    """Return the probabilities of logits, ``(n, classes)``, without overflow."""
    with np.errstate(invalid="ignore", over="ignore"):
        # Softmax does not change if a constant is subtracted, and the largest exponent is then 0.
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result
