"""The streamer's section of the configuration."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Literal, Self

from pydantic import Field, model_validator

from services.common.config import Section
from services.common.remote_config import RemoteConfiguration
from services.streamer.freshness import Limits


class StreamerSection(Section):
    """Where the page is served, and how much is spent on it."""

    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on; ``0.0.0.0`` opens the page to the network. There is no log-in: put a proxy before it."""
    port: int = Field(8080, ge=0, le=65535)
    """TCP port; 0 takes a free one, which the log names."""
    allowed_hosts: tuple[str, ...] = ()
    """Dotted names by which browsers may reach the page (addresses and names without a dot always may): a foreign
    site whose name is made to point here is refused."""
    jpeg_quality: int = Field(80, ge=10, le=100)
    """Quality of the pictures. At 2448x344, 80 makes about 170 kB of a detailed scene, 70 about 130 kB."""
    max_clients: int = Field(16, ge=1, le=1000)
    """Viewers at a time, WebSocket and MJPEG together; one more is answered 503."""
    delayed_after_s: float = Field(1.0, ge=0.1, le=3600)
    """Age of the picture, since its capture, from which it is called delayed instead of live."""
    stale_after_s: float = Field(3.0, ge=0.1, le=3600)
    """Age of the picture from which it is stale: dimmed on the page, not served as a snapshot, and unhealthy."""
    silent_after_s: float = Field(2.0, ge=0.5, le=3600)
    """Seconds without a sign of a service, camera or detector after which the page names it as silent."""
    detections: Literal["ring", "broker", "both"] = "ring"
    """Whose detections are shown: those of the detectors on this host (``ring``), those of detectors on other hosts
    (``broker``, by way of the sections ``broker`` and ``storage``), or both."""
    boxes_max_age_s: float = Field(2.0, ge=0.1, le=60)
    """Seconds after a frame's capture during which its detections are shown."""

    # Connections: deadlines, caps, proxies.
    max_connections: int = Field(512, ge=8, le=65536)
    """TCP connections at a time, viewers included. At the start it is lowered to half the descriptors that the process
    may open."""
    max_connections_per_address: int = Field(384, ge=4, le=65536)
    """The share of one client's address (of one /64 for IPv6), at most three quarters of all connections. Trusted
    proxies have no share; their clients have."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Addresses or networks of reverse proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Host`` are believed."""
    head_timeout_s: float = Field(5.0, ge=0.2, le=60)
    """Seconds in which a client must have sent the whole head of a request."""
    idle_timeout_s: float = Field(30.0, ge=0.2, le=3600)
    """Seconds for which a connection without a request is kept open for the next one."""
    write_timeout_s: float = Field(8.0, ge=0.5, le=60)
    """Seconds after which a client that reads next to nothing of what is sent to it is disconnected."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> Self:
        if "delayed_after_s" in self.model_fields_set and self.delayed_after_s > self.stale_after_s:
            raise ValueError(
                f"delayed_after_s {self.delayed_after_s:g} is more than stale_after_s {self.stale_after_s:g}"
            )
        return self

    @property
    def from_ring(self) -> bool:
        """Whether detections of detectors on this host are shown."""
        return self.detections != "broker"

    @property
    def from_broker(self) -> bool:
        """Whether results of detectors on other hosts are shown."""
        return self.detections != "ring"

    @property
    def limits(self) -> Limits:
        """The ages at which a picture is delayed and stale."""
        return Limits(min(self.delayed_after_s, self.stale_after_s), self.stale_after_s)


class StreamerConfiguration(RemoteConfiguration):
    """All that the streamer reads."""

    streamer: StreamerSection = StreamerSection()
