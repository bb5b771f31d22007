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


SERVICE = Service("detector", DetectorConfiguration, run, status_name=lambda read: read.detector.status_name)
