"""The streamer's section of the configuration."""

from __future__ import annotations

from pydantic import Field

from services.common.config import CommonConfiguration, Section


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
    stale_after_s: float = Field(2.0, ge=0.1, le=3600)
    """Seconds without a frame after which the stream counts as unhealthy."""
    boxes_max_age_s: float = Field(2.0, ge=0.1, le=60)
    """Seconds after a frame's capture during which its detections are shown."""


class StreamerConfiguration(CommonConfiguration):
    """All that the streamer reads."""

    streamer: StreamerSection = StreamerSection()
