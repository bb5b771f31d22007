"""Labels and thresholds: from the configuration, the site or the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from services.detector.config import DEFAULT_LABELS, DetectorSection
from services.detector.models.bundle import Manifest
from services.detector.models.classes import Names, coco_names, names_of_file, names_of_metadata, numbered_names
from services.detector.models.errors import ModelError

DEFAULT_THRESHOLD = 0.35


def given_names(
    manifest: Manifest | None, section: DetectorSection, metadata: Mapping[str, str]
) -> tuple[Names | None, str]:
    """Return the classes' names from the operator, the bundle or the file, and which of these is their source.

    Raises:
        ModelError: The file with names is unusable.
    """
    if section.classes is not None:
        return names_of_file(section.classes), str(section.classes)
    if manifest is not None and manifest.classes is not None:
        # None for COCO: the number of outputs decides which of its numberings applies.
        return (None if manifest.classes == "coco" else manifest.classes), "the bundle"
    return names_of_metadata(metadata), "the file"


def assumed_names(count: int | None) -> tuple[Names, str]:
    """Return the classes' names if only their number is known, and their source."""
    names = coco_names(count)
    if names is not None:
        return names, "COCO, by their number"
    assert count is not None  # coco_names() returns names for None
    return numbered_names(count), "nothing: set detector.classes to a file with their names"


def wanted_labels(
    path: Path, names: Names, section: DetectorSection, site: Manifest | None, manifest: Manifest | None
) -> tuple[str, ...]:
    """Return the labels to detect: configured, of the site, of the bundle, or the known ones of the default labels.

    Raises:
        ModelError: The model does not know a label.
    """
    for labels in (section.labels, site and site.labels, manifest and manifest.labels):
        if labels:
            unknown = [label for label in labels if label not in names]
            if unknown:
                known = ", ".join(name for name in names if name is not None)
                raise ModelError(f"the model {path} does not know {', '.join(unknown)}; it knows {known}")
            return tuple(dict.fromkeys(labels))
    known_names = tuple(dict.fromkeys(name for name in names if name is not None))
    return tuple(label for label in DEFAULT_LABELS if label in names) or known_names


def thresholds_of(
    labels: tuple[str, ...], section: DetectorSection, site: Manifest | None, manifest: Manifest | None
) -> tuple[float, ...]:
    """Return the least score of each label: configured, of the site, of the bundle, or 0.35."""
    if section.score_threshold is not None:
        return (section.score_threshold,) * len(labels)
    sources = [source for source in (site, manifest) if source is not None]
    general = next((one.score_threshold for one in sources if one.score_threshold is not None), DEFAULT_THRESHOLD)
    # In reverse, so that the site's thresholds replace those of the model's bundle.
    single: dict[str, float] = {}
    for source in reversed(sources):
        single |= source.score_thresholds
    return tuple(single.get(label, general) for label in labels)
