"""Find a request's client address, and the names by which it reached the page, also through proxies."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network
IPV6_SITE_BITS = 64
"""A host may use any address of its /64, so all of them count as one client."""


def parse_address(text: str | None) -> IPv4Address | IPv6Address | None:
    """Parse an address, with or without a zone. Return None if the text is not one. IPv4-mapped IPv6 becomes IPv4."""
    try:
        address = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    # A socket that listens on both versions reports IPv4 clients in mapped form.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_trusted(address: str | None, proxies: Sequence[Network]) -> bool:
    """Return whether an address is one of the trusted proxies."""
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in proxies)


def group_of(address: str | None) -> str:
    """Return the name of the share to which an address counts."""
    parsed = parse_address(address)
    if isinstance(parsed, IPv6Address):
        return str(ipaddress.ip_network((parsed, IPV6_SITE_BITS), strict=False))
    return str(parsed or address or "unknown")


def client_address(peer: str | None, headers: Mapping[str, str], proxies: Sequence[Network]) -> str | None:
    """Return the address of the client behind trusted proxies.

    Each proxy appends the address of its peer to ``X-Forwarded-For``. Read from the end, the first address that is not
    a trusted proxy is the client. The client controls everything before it, so that part is ignored.
    """
    if not is_trusted(peer, proxies):
        return peer
    for entry in reversed(headers.get("X-Forwarded-For", "").split(",")):
        address = entry.strip()
        if parse_address(address) is None:  # some proxies add the port, or brackets around IPv6
            address = host_name(address)
        if parse_address(address) is None:
            return peer  # without a readable address, count the request to the proxy itself
        if not is_trusted(address, proxies):
            return address
    return peer


def forwarded_host(peer: str | None, headers: Mapping[str, str], proxies: Sequence[Network]) -> str | None:
    """Return the host by which a browser reached the nearest trusted proxy, or None if no trusted proxy sends it."""
    if not is_trusted(peer, proxies):
        return None
    # The nearest proxy appends its entry last; those before it may be the client's.
    return headers.get("X-Forwarded-Host", "").rpartition(",")[2].strip() or None


def host_name(host: str) -> str:
    """Return the name in a ``Host`` header without the port; ``malformed.invalid`` if it has none."""
    try:
        return (urlsplit(f"//{host}").hostname or "malformed.invalid").rstrip(".")
    except ValueError:
        return "malformed.invalid"
