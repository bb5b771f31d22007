"""Deadlines and limits of connections, reduced to what the process' limit on file descriptors permits."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import structlog

from services.streamer.addresses import Network
from services.streamer.config import StreamerSection


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The effective deadlines and limits."""

    max_connections: int
    max_per_address: int
    head_timeout_s: float
    idle_timeout_s: float
    write_timeout_s: float
    trusted_proxies: tuple[Network, ...] = ()


def limits_of(section: StreamerSection) -> ConnectionLimits:
    """Return the configured limits, reduced to what the limit on file descriptors permits.

    The soft limit on descriptors is raised towards the hard one if necessary. Half the descriptors are reserved for
    files, sockets of other services and connections that are being accepted or closed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * section.max_connections
    # A process may raise its soft limit up to the hard one without privileges.
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    cap = section.max_connections if soft == resource.RLIM_INFINITY else min(section.max_connections, soft // 2)
    if cap < section.max_connections:
        structlog.get_logger().warning(
            "fewer connections than configured",
            max_connections=cap,
            reason=f"the process may open {soft} descriptors (ulimit -n), half of which are for connections",
        )
    return ConnectionLimits(
        max_connections=cap,
        # A single address must leave connections for the others.
        max_per_address=max(min(section.max_connections_per_address, cap * 3 // 4), 1),
        head_timeout_s=section.head_timeout_s,
        idle_timeout_s=section.idle_timeout_s,
        write_timeout_s=section.write_timeout_s,
        trusted_proxies=section.trusted_proxies,
    )
