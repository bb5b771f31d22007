"""The streamer's section of the configuration."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Literal, Self

from pydantic import Field, model_validator

from services.common.config import Section
from services.common.remote_config import RemoteConfiguration
from services.streamer.freshness import Limits


class StreamerSection(Section):
    """Where the page is served, and its limits."""

    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on; ``0.0.0.0`` opens the page to the network. The page has no log-in: put it behind a proxy
    that requires one."""
    port: int = Field(8080, ge=0, le=65535)
    """TCP port; 0 selects a free port, which is logged."""
    allowed_hosts: tuple[str, ...] = ()
    """Dotted host names by which browsers may reach the page (addresses and names without a dot are always allowed).
    This prevents DNS rebinding, by which a foreign site points its own name to this host."""
    jpeg_quality: int = Field(80, ge=10, le=100)
    """JPEG quality. At 2448x344, a detailed scene takes about 170 kB with 80 and 130 kB with 70."""
    max_clients: int = Field(16, ge=1, le=1000)
    """Largest number of viewers, WebSocket and MJPEG together; further ones are answered 503."""
    delayed_after_s: float = Field(1.0, ge=0.1, le=3600)
    """Age of the picture, since its capture, from which its state is delayed instead of live."""
    stale_after_s: float = Field(3.0, ge=0.1, le=3600)
    """Age of the picture from which it is stale: dimmed on the page, not served as a snapshot, and unhealthy."""
    silent_after_s: float = Field(2.0, ge=0.5, le=3600)
    """Seconds without a sign of life of a service, camera or detector after which the page reports it as silent."""
    detections: Literal["ring", "broker", "both"] = "ring"
    """Source of the detections: detectors on this host (``ring``), detectors on other hosts (``broker``, which uses the
    sections ``broker`` and ``storage``), or both."""
    boxes_max_age_s: float = Field(2.0, ge=0.1, le=60)
    """Seconds after a frame's capture during which its detections are shown."""

    # Connections: deadlines, caps, proxies.
    max_connections: int = Field(512, ge=8, le=65536)
    """Largest number of TCP connections, including viewers. It is limited to half the file descriptors that the process
    may open."""
    max_connections_per_address: int = Field(384, ge=4, le=65536)
    """Largest number of connections of one client address (one /64 for IPv6), at most three quarters of all. It applies
    to the clients of trusted proxies, not to the proxies."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Addresses or networks of reverse proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Host`` are trusted."""
    head_timeout_s: float = Field(5.0, ge=0.2, le=60)
    """Time-out for the complete head of a request."""
    idle_timeout_s: float = Field(30.0, ge=0.2, le=3600)
    """Time-out of an idle connection that waits for its next request."""
    write_timeout_s: float = Field(8.0, ge=0.5, le=60)
    """Seconds after which a client that hardly reads is disconnected."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> Self:
        # The default of delayed_after_s is not a fault beside a smaller stale_after_s: limits reduces it.
        if "delayed_after_s" in self.model_fields_set and self.delayed_after_s > self.stale_after_s:
            raise ValueError(
                f"delayed_after_s {self.delayed_after_s:g} is more than stale_after_s {self.stale_after_s:g}"
            )
        return self

    @property
    def from_ring(self) -> bool:
        """Whether the page shows detections of detectors on this host."""
        return self.detections != "broker"

    @property
    def from_broker(self) -> bool:
        """Whether the page shows results of detectors on other hosts."""
        return self.detections != "ring"

    @property
    def limits(self) -> Limits:
        """The ages at which a picture is delayed and stale."""
        return Limits(min(self.delayed_after_s, self.stale_after_s), self.stale_after_s)


class StreamerConfiguration(RemoteConfiguration):
    """The sections that the streamer reads."""

    streamer: StreamerSection = StreamerSection()
