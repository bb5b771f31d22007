"""Who may look."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from services.streamer.security import HEADERS, add_headers, refuse_strangers

HERE = "127.0.0.1:8080"


def answer(headers: dict[str, str]) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of an answer of a guarded site."""

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def ask() -> tuple[int, str, dict[str, str]]:
        application = web.Application(middlewares=[refuse_strangers(["camera.example.org"])])
        application.on_response_prepare.append(add_headers)
        application.router.add_get("/", hello)
        async with TestClient(TestServer(application)) as client:
            response = await client.get("/", headers=headers)
            return response.status, await response.text(), dict(response.headers)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "host",
    [HERE, "127.0.0.1", "[::1]:8080", "[fe80::1]", "localhost:8080", "streamer", "camera.example.org", "10.1.2.3:81"],
)
def test_own_names_are_answered(host: str) -> None:
    assert answer({"Host": host})[:2] == (200, "hello")


@pytest.mark.parametrize("host", ["evil.example:8080", "127.0.0.1.evil.example", "camera.example.org.evil", "[1"])
def test_a_foreign_name_that_points_here_is_refused(host: str) -> None:
    status, text, _ = answer({"Host": host})
    assert status == 403
    assert "streamer.allowed_hosts" in text


@pytest.mark.parametrize("origin", [f"http://{HERE}", f"https://{HERE}"])
def test_the_own_origin_is_answered(origin: str) -> None:
    assert answer({"Host": HERE, "Origin": origin})[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:9999", "null", "file://", "http://127.0.0.1"]
)
def test_a_foreign_origin_is_refused(origin: str) -> None:
    assert answer({"Host": HERE, "Origin": origin})[0] == 403


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
