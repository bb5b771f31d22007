"""The model: detects objects in tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import structlog

from services.detector.boxes import Boxes, no_boxes
from services.detector.config import DetectorSection
from services.detector.models.bundle import DEFAULT_BUNDLE, Manifest, read_bundle
from services.detector.models.choose import Candidates, Chooser, usable
from services.detector.models.classes import Names
from services.detector.models.errors import ModelError
from services.detector.models.formats import find_format
from services.detector.models.formats.base import Array, Format, Graph
from services.detector.models.inputs import read_inputs
from services.detector.models.onnx_file import inspect_file
from services.detector.models.prepare import Placement
from services.detector.models.session import open_session, plain
from services.detector.models.wanted import assumed_names, given_names, thresholds_of, wanted_labels
from services.detector.tiles import Pixels

__all__ = ["Model", "ModelError", "load_model"]

LARGEST_BATCH = 8
"""Largest batch of a network with a dynamic batch size; more tiles would only require more memory."""
MOST_BOXES = 1000
"""Largest number of boxes of one tile, by score."""
GREY = 114  # as the border in YOLO's training

log = structlog.get_logger()


class Model:
    """A loaded network. Owned by one thread."""

    name: str
    """Name of the bundle, or of the file."""
    version: str
    """Version of the bundle; empty for a file."""
    format: str
    """Format of its outputs."""
    provider: str
    """ONNX Runtime's execution provider that runs it."""
    labels: tuple[str, ...]
    """The classes to detect."""
    classes: tuple[str, ...]
    """All classes of the network."""
    named_by: str
    """Source of the classes' names."""
    thresholds: tuple[float, ...]
    """Least score of each label."""
    input_px: tuple[int, int]
    """Height and width of the input, to which a tile is resized."""
    batch: int
    """Largest number of tiles in one run."""
    rejected_boxes: int
    """Boxes that were dropped as invalid: not finite, inverted, out of range, or with a score above 1."""

    def __init__(self, path: Path, manifest: Manifest | None, section: DetectorSection) -> None:
        """Load a file.

        Args:
            path: The ONNX file.
            manifest: Manifest of its bundle, if any.
            section: The configuration.

        Raises:
            ModelError: The file is unusable.
        """
        self.name = path.name if manifest is None else manifest.name
        self.version = "" if manifest is None else manifest.version
        self.rejected_boxes = 0
        self._told: set[str] = set()
        file = inspect_file(path)
        self._session = open_session(path, file, section.providers)
        self.provider = self._session.get_providers()[0]
        # Of a file in ONNX Runtime's own format, only ONNX Runtime reads the metadata.
        metadata = {**file.metadata, **self._session.get_modelmeta().custom_metadata_map}
        image, self._others = read_inputs(path, self._session, manifest, metadata)
        self._image = image
        self._outputs = [output.name for output in self._session.get_outputs()]
        names, self.named_by = given_names(manifest, section, metadata)
        self._format = self._recognise(path, manifest, section, names, metadata)
        self.format = self._format.name
        self.input_px = (image.height_px, image.width_px)
        self.batch = LARGEST_BATCH if image.batch is None else image.batch
        self._tensor = self._format.preparation.tensor(self.batch)
        if names is None:
            names, self.named_by = assumed_names(self._format.classes)
        self.classes = tuple(name for name in names if name is not None)
        site = None if section.site is None else read_bundle(section.site, "site")
        self.labels = wanted_labels(path, names, section, site, manifest)
        self.thresholds = thresholds_of(self.labels, section, site, manifest)
        numbers = tuple(names.index(label) for label in self.labels)
        if self._format.classes is not None and max(numbers) >= self._format.classes:
            raise ModelError(
                f"the model {path} has {self._format.classes} classes, but {len(names)} names are given "
                f"({self.named_by}): name each class, in the model's order"
            )
        self._chooser = Chooser(numbers, self.thresholds)

    def detect(self, tiles: Sequence[Pixels]) -> list[Boxes]:
        """Detect objects in tiles.

        Args:
            tiles: uint8 BGR of shape ``(height, width, 3)`` each, of any size and row stride; read only.

        Returns:
            For each tile, the boxes above their label's threshold, clipped to the tile, in its pixels, and at most 1000
            by score. Duplicates are not suppressed.
        """
        found: list[Boxes] = []
        for start in range(0, len(tiles), self.batch):
            found += self._detect(tiles[start : start + self.batch])
        return found

    def _detect(self, tiles: Sequence[Pixels]) -> list[Boxes]:
        """Detect objects in at most one batch of tiles."""
        placements = [self._format.prepare(tile, out) for tile, out in zip(tiles, self._tensor, strict=False)]
        # A network with a fixed batch takes a whole one; the results for the rows of earlier tiles are not decoded.
        count = self._image.batch or len(tiles)
        outputs = self._run(self._tensor[:count])
        return [
            self._boxes(self._format.decode([output[index] for output in outputs], self._chooser), placement, tile)
            for index, (placement, tile) in enumerate(zip(placements, tiles, strict=True))
        ]

    def _run(self, tensor: Array) -> list[Array]:
        feeds = {self._image.name: tensor}
        # RT-DETR scales its boxes to this size: with the input's own, they are in its pixels, as of other formats.
        for name, dtype in self._others.items():
            feeds[name] = np.array([[self._image.width_px, self._image.height_px]] * len(tensor), dtype)
        outputs: list[Array] = self._session.run(self._outputs, feeds)
        return outputs

    def _boxes(self, candidates: Candidates, placement: Placement, tile: Pixels) -> Boxes:
        """Drop invalid boxes, and clip the others to the tile."""
        if not len(candidates.scores):
            return no_boxes()
        height_px, width_px = tile.shape[:2]
        with np.errstate(invalid="ignore", over="ignore"):
            xyxy = placement.in_tile(candidates.xyxy)
        good = usable(xyxy, candidates.scores, height_px, width_px)
        scores, labels = candidates.scores, candidates.labels
        if not good.all():
            self._reject(xyxy[~good], scores[~good])
            xyxy, scores, labels = xyxy[good], scores[good], labels[good]
        if len(scores) > MOST_BOXES:
            # In any order: the suppression of duplicates sorts by score.
            best = np.argpartition(-scores, MOST_BOXES)[:MOST_BOXES]
            xyxy, scores, labels = xyxy[best], scores[best], labels[best]
        xyxy = np.minimum(np.maximum(xyxy, 0), np.array([width_px, height_px, width_px, height_px], np.float32))
        return Boxes(xyxy.astype(np.float32, copy=False), np.minimum(scores, np.float32(1)), labels)

    def _reject(self, xyxy: Array, scores: Array) -> None:
        """Count invalid boxes, and log them once."""
        self.rejected_boxes += len(scores)
        logits = bool((scores > 1).any())
        if "rejected" in self._told:  # a faulty export would otherwise fill the log with every frame
            return
        self._told.add("rejected")
        log.warning(
            "boxes rejected",
            reason="a score is above 1: export the model with its sigmoid"
            if logits
            else "a box is not finite, inverted or out of range",
            count=len(scores),
            score=f"{scores[0]:g}",
            box=" ".join(f"{value:g}" for value in xyxy[0]),
        )

    def _recognise(
        self,
        path: Path,
        manifest: Manifest | None,
        section: DetectorSection,
        names: Names | None,
        metadata: Mapping[str, str],
    ) -> Format:
        """Run the network once on a grey picture, to recognise the format of its outputs."""
        image = self._image
        grey = GREY if image.dtype == "uint8" else GREY / 255
        try:
            outputs = self._run(np.full(image.shape, grey, image.dtype))
        except Exception as error:  # noqa: BLE001  onnxruntime's own errors share no base but Exception
            raise ModelError(f"the model {path} fails when it runs: {plain(error)}") from None
        graph = Graph(
            image.height_px,
            image.width_px,
            image.channels_first,
            image.dtype,
            tuple(self._others),
            dict(zip(self._outputs, outputs, strict=True)),
            metadata,
            names,
        )
        try:
            found = find_format(graph, section.format or (None if manifest is None else manifest.format))
        except ModelError as error:
            raise ModelError(f"the model {path} {error}") from None
        # The format's defaults hold where the bundle says nothing; the input's size has been read already.
        if manifest is not None:
            changed = manifest.input.model_dump(exclude_none=True, exclude={"height_px", "width_px"})
            found.preparation = dataclasses.replace(found.preparation, **changed)
        return found


def load_model(section: DetectorSection) -> Model:
    """Load the model that the configuration names: an ONNX file, a bundle, or the default bundle.

    Raises:
        ModelError: The model is unusable; one sentence.
    """
    path = section.model
    if path is None:
        if not DEFAULT_BUNDLE.exists():
            raise ModelError(
                f"no model is configured, and there is no {DEFAULT_BUNDLE}: set detector.model to an ONNX file or a "
                "bundle, such as models/default of a checkout"
            )
        path = DEFAULT_BUNDLE
    if not path.is_dir():
        return Model(path, None, section)
    manifest = read_bundle(path, "detector")
    return Model(path / manifest.network, manifest, section)
