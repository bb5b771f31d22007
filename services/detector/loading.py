"""Load what the detector requires: the model, the classifier, and its source of frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from services.common.recording import Recording, RecordingError
from services.common.service import UnusableSetting
from services.detector.config import DetectorConfiguration, DetectorSection
from services.detector.models.classifier import Classifier, load_classifier
from services.detector.models.model import Model, ModelError, load_model

if TYPE_CHECKING:
    from services.common.storage import Storage

log = structlog.get_logger()


def check(configuration: DetectorConfiguration) -> None:
    """Load the model and the classifier, and check the recording or the storage if the source requires it.

    Raises:
        UnusableSetting: One of them is unusable.
    """
    section = configuration.detector
    model, _ = open_source(section)
    second = load_second_stage(section, model)
    # A start tolerates an unusable classifier, but a check reports it.
    if isinstance(second, str):
        raise UnusableSetting(second)
    if section.from_queue:
        open_storage(configuration)


def open_storage(configuration: DetectorConfiguration) -> Storage:
    """Return the storage of a queue's frames and results."""
    from services.common.storage import Storage  # noqa: PLC0415  imported lazily: a ring requires no storage client

    return Storage(configuration.storage)


def open_source(section: DetectorSection) -> tuple[Model, Recording | None]:
    """Load the model, and open the recording if the source is one.

    Raises:
        UnusableSetting: One of them is unusable.
    """
    try:
        return load_model(section), None if section.recording is None else Recording(section.recording)
    except (ModelError, RecordingError) as error:
        raise UnusableSetting(str(error)) from None


def load_second_stage(section: DetectorSection, model: Model) -> Classifier | str | None:
    """Load the classifier. Return the reason if it is unusable, and None if none is configured.

    An unusable classifier does not stop the detector, which publishes boxes without second classes.
    """
    if section.classifier is None:
        return None
    try:
        classifier = load_classifier(section.classifier, section.providers, model.classes)
    except ModelError as error:
        log.warning("no second stage", reason=str(error))
        return str(error)
    applies_to = model.labels if classifier.applies_to is None else classifier.applies_to
    log.info(
        "classifier loaded",
        classifier=classifier.name,
        version=classifier.version,
        classes=classifier.classes,
        applies_to=applies_to,
        outputs=classifier.outputs,
        input_px=classifier.input_px,
    )
    # Not a fault: a site may look for fewer labels than the model knows.
    if not set(applies_to) & set(model.labels):
        log.warning("second stage idle", reason="the classifier applies to none of the detector's labels")
    return classifier
