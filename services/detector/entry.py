"""The detector as a service: what its entry point names."""

from __future__ import annotations

import threading

from services.common.service import Service
from services.detector.config import DetectorConfiguration


def run(configuration: DetectorConfiguration, stop: threading.Event) -> None:
    """Detect until ``stop`` is set."""
    # Imported lazily, so that the configuration can be checked without OpenCV and ONNX Runtime.
    from services.detector.service import main  # noqa: PLC0415

    main(configuration, stop)


def check(configuration: DetectorConfiguration) -> None:
    """Load the model."""
    from services.detector.loading import check as check_service  # noqa: PLC0415  as above

    check_service(configuration)


def check_model(arguments: list[str]) -> int:
    """Load a model or a bundle, describe it, and detect objects in a picture."""
    from services.detector.check import main  # noqa: PLC0415  as above

    return main(arguments)


def run_reference(arguments: list[str]) -> int:
    """Process one frame of the storage as a detector on a queue does, and print the result as JSON."""
    from services.detector.run_reference import main  # noqa: PLC0415  as above

    return main(arguments)


SERVICE = Service(
    "detector",
    DetectorConfiguration,
    run,
    status_name=lambda read: read.detector.status_name,
    check=check,
    commands={"check": check_model, "run": run_reference},
)
