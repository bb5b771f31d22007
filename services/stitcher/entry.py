"""The stitcher as a service: what its entry point names."""

from __future__ import annotations

import threading

from services.common.service import Service
from services.stitcher.config import StitcherConfiguration


def run(configuration: StitcherConfiguration, stop: threading.Event) -> None:
    """Publish panoramas until ``stop`` is set."""
    # Not at the top: the configuration is checked without OpenCV and PyAV.
    from services.stitcher.service import main  # noqa: PLC0415

    main(configuration, stop)


SERVICE = Service("stitcher", StitcherConfiguration, run)
