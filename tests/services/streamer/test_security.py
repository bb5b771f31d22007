"""Which requests are answered and which are refused."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from services.streamer.addresses import client_address, group_of
from services.streamer.security import HEADERS, Gatekeeper, add_headers

HERE = "127.0.0.1:8080"
LOOPBACK = (ip_network("127.0.0.0/8"),)
BEHIND = {"Host": HERE, "X-Forwarded-Host": "camera.example.org"}


def answer(
    headers: dict[str, str], path: str = "/data", keeper: Gatekeeper | None = None
) -> tuple[int, str, dict[str, str]]:
    """Return status, text and headers of an answer of a guarded site."""

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def ask() -> tuple[int, str, dict[str, str]]:
        guard = keeper or Gatekeeper(["camera.example.org"])
        application = web.Application(middlewares=[guard.middleware])
        application.on_response_prepare.append(add_headers)
        application.router.add_get("/{path:.*}", hello)
        async with TestClient(TestServer(application)) as client:
            response = await client.get(path, headers=headers)
            return response.status, await response.text(), dict(response.headers)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "host",
    [HERE, "127.0.0.1", "[::1]:8080", "[fe80::1]", "localhost:8080", "streamer", "camera.example.org", "10.1.2.3:81"],
)
def test_requests_to_own_names_are_answered(host: str) -> None:
    assert answer({"Host": host})[:2] == (200, "hello")


@pytest.mark.parametrize("host", ["evil.example:8080", "127.0.0.1.evil.example", "camera.example.org.evil", "[1"])
def test_a_foreign_name_that_points_here_is_refused(host: str) -> None:
    status, text, _ = answer({"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"})
    assert status == 403
    assert "streamer.allowed_hosts" in text


@pytest.mark.parametrize("origin", [f"http://{HERE}", f"https://{HERE}"])
def test_requests_of_the_own_origin_are_answered(origin: str) -> None:
    assert answer({"Host": HERE, "Origin": origin})[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:9999", "null", "file://", "http://127.0.0.1", "http://["]
)
@pytest.mark.parametrize("site", ["", "same-site", "cross-site"])
def test_a_foreign_origin_is_refused(origin: str, site: str) -> None:
    status, text, _ = answer({"Host": HERE, "Origin": origin} | ({"Sec-Fetch-Site": site} if site else {}))
    assert status == 403
    assert "proxy_set_header Host $http_host;" in text


@pytest.mark.parametrize("host", [HERE, "127.0.0.1"])
def test_behind_a_proxy_that_changes_host_the_browser_vouches_for_the_origin(host: str) -> None:
    origin = {"Host": host, "Origin": "http://127.0.0.1:18310"}
    assert answer(origin)[0] == 403
    assert answer(origin | {"Sec-Fetch-Site": "same-origin"})[0] == 200
    # A site whose name was made to point to the proxy is of the same origin for the browser.
    assert answer(origin | {"Origin": "http://evil.example:18310", "Sec-Fetch-Site": "same-origin"})[0] == 403
    assert answer(origin | {"Origin": "null", "Sec-Fetch-Site": "same-origin"})[0] == 403


def test_the_host_is_taken_from_a_trusted_proxy() -> None:
    trusting = Gatekeeper(["camera.example.org"], LOOPBACK)
    origin = {"Origin": "https://camera.example.org"}
    assert answer(BEHIND | origin)[0] == 403
    assert answer(BEHIND | origin, keeper=trusting)[0] == 200
    assert answer(BEHIND | {"X-Forwarded-Host": "evil.example, camera.example.org"} | origin, keeper=trusting)[0] == 200
    assert answer(BEHIND | {"Origin": f"http://{HERE}"}, keeper=trusting)[0] == 403


@pytest.mark.parametrize(("host", "forwarded"), [(HERE, "evil.example"), ("evil.example", "camera.example.org")])
def test_both_hosts_must_be_own_names(host: str, forwarded: str) -> None:
    trusting = Gatekeeper(["camera.example.org"], LOOPBACK)
    status, text, _ = answer({"Host": host, "X-Forwarded-Host": forwarded}, keeper=trusting)
    assert status == 403
    assert "evil.example" in text


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": HERE, "Origin": "http://127.0.0.1:18310"},
        {"Host": "evil.example"},
        {"Host": HERE, "Sec-Fetch-Site": "same-site"},
    ],
)
def test_the_page_itself_is_served_to_every_origin(path: str, headers: dict[str, str]) -> None:
    assert answer(headers, path)[0] == 200


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("same-site", "cors", 403),
        ("cross-site", "navigate", 200),
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
    ],
)
def test_another_site_may_link_but_not_embed(site: str, mode: str, status: int) -> None:
    assert answer({"Host": HERE, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode})[0] == status


@pytest.mark.parametrize("host", [HERE, "evil.example"])
def test_every_answer_carries_the_security_headers(host: str) -> None:
    headers = answer({"Host": host})[2]
    assert HEADERS.items() <= headers.items()


def test_a_refusal_is_logged_once_for_each_kind_and_counted() -> None:
    keeper = Gatekeeper([])
    with capture_logs() as log:
        for _ in range(3):
            answer({"Host": HERE, "Origin": "http://127.0.0.1:18310"}, keeper=keeper)
            answer({"Host": "evil.example"}, keeper=keeper)
    assert [(entry["kind"], entry["setting"]) for entry in log] == [
        ("origin", "proxy_set_header Host $http_host;"),
        ("host", "streamer.allowed_hosts"),
    ]
    assert keeper.counts() == {"host": 3, "origin": 3, "embedded": 0}
    assert [(told["kind"], told["count"], told["origin"]) for told in keeper.summary()] == [
        ("host", 3, ""),
        ("origin", 3, "http://127.0.0.1:18310"),
    ]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "192.0.2.7", "10.0.0.1"),  # the headers of an untrusted peer are ignored
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "192.0.2.7:1234", "192.0.2.7"),
        ("127.0.0.1", "[2001:db8::1]:1234", "2001:db8::1"),
        ("127.0.0.1", "192.0.2.66, 192.0.2.7, 127.0.0.9", "192.0.2.7"),  # the address claimed by the client is first
        ("127.0.0.1", "192.0.2.7, rubbish", "127.0.0.1"),
    ],
)
def test_the_client_behind_a_trusted_proxy_is_found(peer: str, forwarded: str, client: str) -> None:
    assert client_address(peer, {"X-Forwarded-For": forwarded}, LOOPBACK) == client


def test_addresses_of_one_network_count_as_one_client() -> None:
    assert group_of("2001:db8::1") == group_of("2001:db8::ffff:1") != group_of("2001:db8:0:1::1")
    assert group_of("::ffff:192.0.2.7") == group_of("192.0.2.7") != group_of("192.0.2.8")
    assert group_of("fe80::1%eth0") == group_of("fe80::2")
