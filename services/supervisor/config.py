"""The supervisor's section, and the whole file: the supervisor checks it all before it starts anything."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.common.config import CommonConfiguration, Section
from services.detector.config import DetectorSection
from services.simulator.config import SimulatorSection
from services.stitcher.config import StitcherSection
from services.streamer.config import StreamerSection

ServiceName = Literal["simulator", "stitcher", "detector", "streamer"]


class SupervisorSection(Section):
    """Which services run, and how much they may fail."""

    services: tuple[ServiceName, ...] = Field(("simulator", "stitcher", "detector", "streamer"), min_length=1)
    """The services to start, in that order; they end in the reverse."""
    status_interval_s: float = Field(5.0, gt=0)
    """Seconds between two status lines."""
    restarts: int = Field(5, ge=0)
    """How often a service may die within :attr:`restarts_within_s` before the whole is ended."""
    restarts_within_s: float = Field(60.0, gt=0)
    """The time in which they are counted."""


class SupervisorConfiguration(CommonConfiguration):
    """The whole file."""

    simulator: SimulatorSection = SimulatorSection()
    stitcher: StitcherSection = StitcherSection()
    detector: DetectorSection = DetectorSection()
    streamer: StreamerSection = StreamerSection()
    supervisor: SupervisorSection = SupervisorSection()
