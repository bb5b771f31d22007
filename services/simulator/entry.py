"""The simulator as a service: what its entry point names."""

from __future__ import annotations

import threading

from services.common.service import Service
from services.simulator.config import SimulatorConfiguration


def run(configuration: SimulatorConfiguration, stop: threading.Event) -> None:
    """Serve the five cameras until ``stop`` is set."""
    # Imported lazily, so that the configuration can be checked without the modules for rendering and serving.
    from services.simulator.service import main  # noqa: PLC0415

    main(configuration, stop)


def check(configuration: SimulatorConfiguration) -> None:
    """Check that the ports are free and the clips exist or can be rendered."""
    from services.simulator.service import check as check_service  # noqa: PLC0415  as above

    check_service(configuration)


SERVICE = Service("simulator", SimulatorConfiguration, run, awaited=True, check=check)
