"""The simulator as a service: what its entry point names."""

from __future__ import annotations

import threading

from services.common.service import Service
from services.simulator.config import SimulatorConfiguration


def run(configuration: SimulatorConfiguration, stop: threading.Event) -> None:
    """Serve the five cameras until ``stop`` is set."""
    # Not at the top: the configuration is checked without the modules that render and serve.
    from services.simulator.service import main  # noqa: PLC0415

    main(configuration, stop)


def check(configuration: SimulatorConfiguration) -> None:
    """See whether the ports are free and the clips can be had."""
    from services.simulator.service import check as check_service  # noqa: PLC0415  as above

    check_service(configuration)


SERVICE = Service("simulator", SimulatorConfiguration, run, awaited=True, check=check)
