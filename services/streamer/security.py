"""Access checks that prevent a foreign web page from watching through the operator's browser.

The page's own files contain no data and are served to every client, so that a rejected page can still show the reason.
All other requests are checked, in this order:

1. Each host name by which the request claims to have reached the page (``Host`` and, from a trusted proxy,
   ``X-Forwarded-Host``) must be an address, a name without a dot, this host's name, or one of
   ``streamer.allowed_hosts``. This prevents DNS rebinding: a foreign site could point its own name to this address, and
   its pages would then have the same origin.
2. ``Origin``, if the browser sends it, must be the host by which the browser reached the page: ``X-Forwarded-Host`` or,
   without it, ``Host``. If a proxy replaced ``Host``, the browser's ``Sec-Fetch-Site: same-origin``, which no page can
   forge, is accepted instead; the name in ``Origin`` must then pass rule 1.
3. ``Sec-Fetch-Site`` must not indicate that another site embeds the resource. A link from another site is a navigation,
   which reveals nothing to that site.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from services.streamer.addresses import Network, forwarded_host, host_name, parse_address

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
"""Headers of every response."""
HOST_SETTING: Final = "streamer.allowed_hosts"
ORIGIN_SETTING: Final = "proxy_set_header Host $http_host;"
MAX_QUOTED: Final = 100
"""Largest length of a client's header that is quoted in a response or the log."""
MAX_REMEMBERED: Final = 16
"""Largest number of refusals in the status. It is bounded because clients control the origins."""


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Add :data:`HEADERS` to a response that is about to be sent."""
    response.headers.update(HEADERS)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is rejected, and which setting would allow it."""

    kind: str
    """``host``, ``origin`` or ``embedded``."""
    reason: str
    setting: str
    """The setting that would allow it; empty if there is none."""
    origin: str
    """``Origin`` of the request, truncated; empty if it had none."""


class Gatekeeper:
    """Rejects and counts requests of foreign web pages.

    Args:
        allowed_hosts: Host names by which the page may be reached, in addition to addresses and names without a dot.
        proxies: Reverse proxies whose ``X-Forwarded-Host`` is trusted.
    """

    def __init__(self, allowed_hosts: Collection[str], proxies: Sequence[Network] = ()) -> None:
        # A browser may send a fully qualified name with its final dot.
        names = (*allowed_hosts, socket.gethostname(), socket.getfqdn())
        self._names = {name.lower().rstrip(".") for name in names}
        self._proxies = proxies
        self._last: dict[tuple[str, str], tuple[Refusal, float]] = {}  # by kind and origin, the newest last
        self._counts: dict[str, int] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer 403 with the reason and the setting to change. Log it once for each kind."""
        if not _is_public(request.path) and (refusal := self.refusal_of(request)) is not None:
            if refusal.kind not in self._counts:
                structlog.get_logger().warning(
                    "request refused", kind=refusal.kind, reason=refusal.reason, setting=refusal.setting
                )
            # Insert it anew: the first entry of the dictionary is the one to forget.
            self._last.pop((refusal.kind, refusal.origin), None)
            self._last[refusal.kind, refusal.origin] = refusal, time.monotonic()
            if len(self._last) > MAX_REMEMBERED:
                del self._last[next(iter(self._last))]
            self._counts[refusal.kind] = self._counts.get(refusal.kind, 0) + 1
            raise web.HTTPForbidden(text=f"{refusal.reason}\n", headers={"Cache-Control": "no-store"})
        return await handler(request)

    def refusal_of(self, request: web.Request) -> Refusal | None:
        """Return why a request is rejected, or None if it is allowed."""
        peername = None if request.transport is None else request.transport.get_extra_info("peername")
        forwarded = forwarded_host(peername[0] if peername else None, request.headers, self._proxies)
        origin = request.headers.get("Origin", "")
        # Rule 1.
        for host in filter(None, (request.host, forwarded)):
            name = host_name(host)
            if not self._is_own_name(name):
                reason = (
                    f"the page was asked for by the name {_quoted(name)}, which is not one of its own: "
                    f"add it to {HOST_SETTING} if it is"
                )
                return Refusal("host", reason, HOST_SETTING, origin[:MAX_QUOTED])
        # Rule 2.
        host = (forwarded or request.host).lower()
        site = request.headers.get("Sec-Fetch-Site")
        if origin and _netloc(origin) != host:
            # A proxy replaced Host. The browser itself says that the origins are the same, so check the name alone.
            if site == "same-origin" and self._is_own_name(host_name(_netloc(origin))):
                return None
            reason = (
                f"pages of another origin may not watch: the page is of {_quoted(origin)}, the request's Host is "
                f"{_quoted(host)}. If a reverse proxy changed Host, let it pass on the browser's: in nginx, "
                f"'{ORIGIN_SETTING}'"
            )
            return Refusal("origin", reason, ORIGIN_SETTING, origin[:MAX_QUOTED])
        # Rule 3.
        if site in {"cross-site", "same-site"} and request.headers.get("Sec-Fetch-Mode") != "navigate":
            return Refusal("embedded", "pages of another site may not embed this", "", origin[:MAX_QUOTED])
        return None

    def summary(self) -> list[dict[str, Any]]:
        """Return the last refusal of each kind and origin, ready for JSON, the newest first."""
        now_s = time.monotonic()
        return [
            {
                "kind": refusal.kind,
                "reason": refusal.reason,
                "setting": refusal.setting,
                "origin": refusal.origin,
                "count": self._counts[refusal.kind],
                "age_s": round(now_s - at_s, 3),
            }
            for refusal, at_s in reversed(self._last.values())
        ]

    def counts(self) -> dict[str, int]:
        """Return the number of refusals of each kind since the start."""
        return {"host": 0, "origin": 0, "embedded": 0} | self._counts

    def _is_own_name(self, name: str) -> bool:
        return bool(name) and (parse_address(name) is not None or "." not in name or name in self._names)


def _netloc(origin: str) -> str:
    """Return host and port of an origin in lower case; empty if it has none, as the origin ``null``."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_public(path: str) -> bool:
    return path == "/" or path.startswith("/page/")


def _quoted(text: str) -> str:
    """Return a client's text, truncated, with unprintable characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:MAX_QUOTED])
