"""The detector as a service: what its entry point names."""

from __future__ import annotations

import threading

from services.common.service import Service
from services.detector.config import DetectorConfiguration


def run(configuration: DetectorConfiguration, stop: threading.Event) -> None:
    """Detect until ``stop`` is set."""
    # Not at the top: the configuration is checked without OpenCV and ONNX Runtime.
    from services.detector.service import main  # noqa: PLC0415

    main(configuration, stop)


def check(configuration: DetectorConfiguration) -> None:
    """Load the model."""
    from services.detector.service import check as check_service  # noqa: PLC0415  as above

    check_service(configuration)


def check_model(arguments: list[str]) -> int:
    """Load a model or a bundle, say what it is, and find its objects in a picture."""
    from services.detector.check import main  # noqa: PLC0415  as above

    return main(arguments)


def run_reference(arguments: list[str]) -> int:
    """Look at one frame of the storage as a detector on a queue does, and print what it finds as JSON."""
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
