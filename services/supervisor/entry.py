"""The supervisor as a service: what its entry point names."""

from __future__ import annotations

import threading

from services.common.service import Service
from services.supervisor.config import SupervisorConfiguration


def run(configuration: SupervisorConfiguration, stop: threading.Event) -> None:
    """Run the services until ``stop`` is set."""
    # Imported lazily, so that the configuration can be checked without rich.
    from services.supervisor.service import supervise  # noqa: PLC0415

    supervise(configuration, stop)


def check(configuration: SupervisorConfiguration) -> None:
    """Run the checks of all services."""
    from services.supervisor.process import check_all  # noqa: PLC0415

    check_all(configuration)


SERVICE = Service("supervisor", SupervisorConfiguration, run, reads_all=True, check=check, for_people=True)
