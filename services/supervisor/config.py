"""The section ``supervisor``. The supervisor validates the whole configuration before it starts a service."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from services.common.config import CommonConfiguration, Section, declared_services
from services.streamer.config import StreamerSection

SUPERVISOR = "supervisor"


def _check_installed(name: str) -> str:
    names = [declared for declared in declared_services() if declared != SUPERVISOR]
    if name not in names:
        raise ValueError(f"no such service is installed; there are {', '.join(names)}")
    return name


InstalledService = Annotated[str, AfterValidator(_check_installed)]


class SupervisorSection(Section):
    """Which services run, and how many failures are tolerated."""

    services: tuple[InstalledService, ...] = Field(("simulator", "stitcher", "detector", "streamer"), min_length=1)
    """The services to start, in this order; they stop in reverse order."""
    optional: tuple[InstalledService, ...] = ("detector",)
    """Services without which the others continue. If one fails permanently, it is given up and retried slowly."""
    status_interval_s: float = Field(60.0, gt=0)
    """Seconds between two status lines, if there is no terminal with a table."""
    restarts: int = Field(5, ge=0)
    """How often a service may die within :attr:`restarts_within_s` before the supervisor ends."""
    restarts_within_s: float = Field(60.0, gt=0)
    """The time window in which restarts are counted."""
    hung_after_s: float = Field(10.0, ge=1, le=3600)
    """Seconds without an answer after which a service that has answered before is killed and restarted."""


class SupervisorConfiguration(CommonConfiguration):
    """The sections that the supervisor reads: its own, and the streamer's for the address of the page."""

    streamer: StreamerSection = StreamerSection()
    supervisor: SupervisorSection = SupervisorSection()
