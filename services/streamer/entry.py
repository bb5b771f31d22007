"""The streamer as a service: what its entry point names."""

from __future__ import annotations

import threading

from services.common.service import Service
from services.streamer.config import StreamerConfiguration


def run(configuration: StreamerConfiguration, stop: threading.Event) -> None:
    """Serve the page until ``stop`` is set."""
    # Imported lazily, so that the configuration can be checked without OpenCV and aiohttp.
    from services.streamer.service import main  # noqa: PLC0415

    main(configuration, stop)


def check(configuration: StreamerConfiguration) -> None:
    """Read the page's files, check broker and storage if they are used, and check that the address can be bound."""
    from services.streamer.check import check as check_service  # noqa: PLC0415  as above

    check_service(configuration)


SERVICE = Service("streamer", StreamerConfiguration, run, check=check)
