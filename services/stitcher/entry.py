"""The stitcher as a service: what its entry point names."""

from __future__ import annotations

import threading

from services.common.service import Service
from services.stitcher.config import StitcherConfiguration


def run(configuration: StitcherConfiguration, stop: threading.Event) -> None:
    """Publish panoramas until ``stop`` is set."""
    # Imported lazily, so that the configuration can be checked without OpenCV and PyAV.
    from services.stitcher.service import main  # noqa: PLC0415

    main(configuration, stop)


def check(configuration: StitcherConfiguration) -> None:
    """Read the saved calibration and the cameras that are files."""
    from services.stitcher.service import check as check_service  # noqa: PLC0415  as above

    check_service(configuration)


def probe(arguments: list[str]) -> int:
    """Report what cameras send, and what to configure for them."""
    from services.stitcher.capture.probe import main  # noqa: PLC0415  as above

    return main(arguments)


def check_pictures(arguments: list[str]) -> int:
    """Place still pictures, named after their cameras, and report what their panorama shows."""
    from services.stitcher.inspection.check import main  # noqa: PLC0415  as above

    return main(arguments)


def delays(arguments: list[str]) -> int:
    """Measure how late each camera's pictures are, from motion in the overlaps of two cameras."""
    from services.stitcher.inspection.delays import main  # noqa: PLC0415  as above

    return main(arguments)


SERVICE = Service(
    "stitcher",
    StitcherConfiguration,
    run,
    check=check,
    commands={"check": check_pictures, "probe": probe, "delays": delays},
)
