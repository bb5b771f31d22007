"""Names of a model's classes: from its bundle, a file, its metadata, or COCO by number of classes."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from services.detector.coco import COCO_80, COCO_BY_ID
from services.detector.models.errors import ModelError

METADATA_KEYS = ("names", "class_names", "classes", "labels")
"""Metadata keys in which exporters store the names; Ultralytics uses ``names``."""
MAX_CLASSES = 10_000
"""Largest number of a class. It prevents one large key of a mapping from making a list of that length."""
MAX_NAME = 64
"""Largest length of a class's name."""
Names = tuple[str | None, ...]
"""Name of each class by its number; None for an unused number."""


def names_of_file(path: Path) -> Names:
    """Read names from a file: one per line, or YAML or JSON with a list or a mapping by number, or with ``names``.

    Raises:
        ModelError: The file cannot be read or has no names.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ModelError(f"the class names {path} cannot be read: {reason}") from None
    names: Names | None = None
    if path.suffix in {".yaml", ".yml", ".json"}:
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError:
            content = None
        names = _names_of(content.get("names", content) if isinstance(content, dict) else content)
    else:
        names = _names_of([line.strip() for line in text.splitlines() if line.strip()])
    if not names:
        raise ModelError(f"the class names {path} are not a list: write one name a line, in the model's order")
    return names


def names_of_metadata(metadata: Mapping[str, str]) -> Names | None:
    """Return the names that an ONNX file's metadata holds, or None."""
    for key in METADATA_KEYS:
        text = metadata.get(key, "").strip()
        if not text:
            continue
        for parse in (json.loads, ast.literal_eval):  # Ultralytics writes the text of a Python dict, which is not JSON
            try:
                names = _names_of(parse(text))
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
            if names:
                return names
        if "," in text and not text.startswith(("{", "[")):
            return _names_of([part.strip() for part in text.split(",")])
    return None


def coco_names(count: int | None) -> Names | None:
    """Return COCO's names if the number of classes matches one of its numberings, or None.

    80 means its classes without gaps, 90 its ids from 1, 91 its ids from 0. Lists of detections have no number of
    classes (``count`` is None): assume the numbering without gaps, as by RT-DETR and YOLOv10.
    """
    if count is None or count == len(COCO_80):
        return COCO_80
    if count == len(COCO_BY_ID):
        return COCO_BY_ID
    if count == len(COCO_BY_ID) + 1:
        return (None, *COCO_BY_ID)
    return None


def numbered_names(count: int) -> Names:
    """Return generic names, if only the number of classes is known."""
    return tuple(f"class{index}" for index in range(count))


def _names_of(content: object) -> Names | None:
    if isinstance(content, Mapping):
        try:
            numbered = {int(key): value for key, value in content.items()}
        except (TypeError, ValueError):
            return None
        if not numbered or min(numbered) < 0 or max(numbered) >= MAX_CLASSES:
            return None
        values: Sequence[object] = [numbered.get(number) for number in range(max(numbered) + 1)]
    elif isinstance(content, (list, tuple)) and len(content) <= MAX_CLASSES:
        values = content
    else:
        return None
    names = tuple(None if value is None else _clean(str(value)) for value in values)
    return names if any(names) else None


def _clean(name: str) -> str | None:
    """Remove unprintable characters, because a name reaches logs and the page."""
    return "".join(letter for letter in name.strip() if letter.isprintable())[:MAX_NAME] or None
