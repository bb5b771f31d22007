"""Bundles: a read-only directory with a model, or a site's settings, described by ``bundle.yaml``.

A deployment selects one bundle for each dimension: ``detector`` (the network), ``site`` (labels and thresholds) and
``classifier`` (the second stage). The files of a bundle are verified against their SHA-256 before they are loaded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import services
from services.common.config import message_of
from services.detector.models.errors import ModelError

MANIFEST = "bundle.yaml"
DEFAULT_BUNDLE = Path(services.__file__).resolve().parent.parent / "models" / "default"
"""``models/default`` beside the package, which exists in a checkout, and where the images mount it."""
NETWORKS = (".onnx", ".ort")
"""File extensions of networks."""
Threshold = float
Dimension = Literal["detector", "site", "classifier"]
Outputs = Literal["probabilities", "logits"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSection(_Part):
    """Requirements of the network's input, if the file does not declare them or deviates from the format's defaults."""

    height_px: int | None = Field(None, ge=16, le=4096)
    width_px: int | None = Field(None, ge=16, le=4096)
    colour: Literal["bgr", "rgb"] | None = None
    scale: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Factor of the pixels' values, which are 0 to 255."""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    fit: Literal["stretch", "corner", "centre"] | None = None


class Manifest(_Part):
    """Content of ``bundle.yaml``."""

    name: str = Field(min_length=1, max_length=64)
    version: str = Field(min_length=1, max_length=32)
    dimension: Dimension
    """Dimension of the bundle."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file of the bundle, by the file's name."""
    model: str | None = None
    """File name of the network; by default the only ``.onnx`` or ``.ort`` file."""
    format: str | None = None
    """Name of the format, if the network's outputs are ambiguous."""
    input: InputSection = InputSection()
    classes: Literal["coco"] | tuple[str, ...] | None = None
    """Names of the classes in the network's order, or COCO's."""
    labels: tuple[str, ...] | None = None
    """The classes to detect; for a classifier, the classes to report."""
    score_threshold: Threshold | None = Field(None, gt=0, lt=1)
    score_thresholds: dict[str, Threshold] = Field(default_factory=dict)
    """Thresholds of single classes."""
    applies_to: tuple[str, ...] | None = Field(None, min_length=1)
    """Labels of the objects that a classifier applies to; None for all labels of the detector."""
    outputs: Outputs | None = None
    """Outputs of a classifier; None: detected by whether its values for a picture sum to 1."""
    licence: str = ""

    @field_validator("version", mode="before")
    @classmethod
    def _as_text(cls, version: object) -> object:
        """Convert the version to text, because YAML reads 1.0 as a number."""
        return str(version) if isinstance(version, (int, float)) else version

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name, digest in files.items():
            path = PurePosixPath(name)  # a manifest must not name files outside of the bundle
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"{name!r} is not a file of the bundle")
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"the SHA-256 of {name} is not 64 hexadecimal digits in lower case")
        return files

    @field_validator("score_thresholds")
    @classmethod
    def _in_range(cls, thresholds: dict[str, float]) -> dict[str, float]:
        if any(not 0 < value < 1 for value in thresholds.values()):
            raise ValueError("each threshold must lie between 0 and 1")
        return thresholds

    @model_validator(mode="after")
    def _has_a_network(self) -> Self:
        networks = [name for name in self.files if name.endswith(NETWORKS)]
        if self.dimension != "classifier" and (self.applies_to is not None or self.outputs is not None):
            raise ValueError("applies_to and outputs are of a bundle for the dimension 'classifier'")
        if self.dimension == "classifier" and (self.format is not None or self.classes == "coco"):
            raise ValueError("a bundle for a classifier has no format, and names its own classes")
        if self.dimension == "site":
            if self.model is not None or networks:
                raise ValueError("a bundle for a site has no network")
        elif self.model is not None and self.model not in self.files:
            raise ValueError(f"the model {self.model} is not among the files")
        elif self.model is None and len(networks) != 1:
            raise ValueError(f"of {len(networks)} .onnx and .ort files none is named as the model")
        return self

    @property
    def network(self) -> str:
        """File name of the network, for a bundle that has one."""
        return self.model or next(name for name in self.files if name.endswith(NETWORKS))


def read_bundle(directory: Path, dimension: Dimension | None) -> Manifest:
    """Read a bundle's manifest, and verify its files.

    Args:
        directory: The bundle.
        dimension: Required dimension; None for any.

    Raises:
        ModelError: The manifest is missing, invalid or for another dimension, or a file is missing or altered.
    """
    path = directory / MANIFEST
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ModelError(f"the bundle {directory} cannot be used: {MANIFEST} cannot be read: {reason}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"the bundle {directory} cannot be used: {MANIFEST} is not YAML: {_flat(error)}") from None
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'it'}: {message_of(fault)}"
            for fault in error.errors(include_url=False)
        )
        raise ModelError(f"the bundle {directory} cannot be used: {MANIFEST}: {_flat(faults)}") from None
    if dimension is not None and manifest.dimension != dimension:
        raise ModelError(
            f"the bundle {directory} cannot be used: it is for the dimension {manifest.dimension!r}, and one for "
            f"{dimension!r} is needed"
        )
    # All files, not only the network: external weights are read by ONNX Runtime without a check.
    for name, digest in manifest.files.items():
        _check(directory, name, digest)
    return manifest


def _check(directory: Path, name: str, digest: str) -> None:
    try:
        with (directory / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"the bundle {directory} cannot be used: its file {name} cannot be read: {error.strerror}"
        ) from None
    if found != digest:
        raise ModelError(
            f"the bundle {directory} cannot be used: {name} is not the file that {MANIFEST} describes: its SHA-256 is "
            f"{found[:12]}... instead of {digest[:12]}..., so copy the bundle again"
        )


def _flat(error: object) -> str:
    return " ".join(str(error).split())
