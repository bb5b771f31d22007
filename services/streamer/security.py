"""Who may look: the checks that keep a foreign web page from watching through the operator's browser."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

HEADERS = {
    "Server": "framebus",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Sent with every answer."""


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Put :data:`HEADERS` into an answer that is about to be sent."""
    response.headers.update(HEADERS)


def refuse_strangers(allowed_hosts: Collection[str]) -> Middleware:
    """A middleware that answers 403 to what only a foreign web page would ask.

    *Host* must be an address, a name without a dot, this host's name, or one of ``allowed_hosts``: a site of the
    Internet may let its own name point to this address, and its pages would then be of the same origin (DNS rebinding).
    *Origin*, where a browser sends it, must be that host. *Sec-Fetch-Site* must not say that another site embeds us.
    """
    names = {name.lower().rstrip(".") for name in (*allowed_hosts, socket.gethostname(), socket.getfqdn())}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = _host_name(request.host)
        if not _is_address(name) and "." in name and name not in names:
            raise web.HTTPForbidden(text=f"host {name} is not in streamer.allowed_hosts\n")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
            raise web.HTTPForbidden(text="pages of another origin may not watch\n")
        # A link from elsewhere to the page itself is a navigation, and shows nothing to where it came from.
        if (
            request.headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"}
            and request.headers.get("Sec-Fetch-Mode") != "navigate"
        ):
            raise web.HTTPForbidden(text="pages of another site may not embed this\n")
        return await handler(request)

    return check


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return "malformed.invalid"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
