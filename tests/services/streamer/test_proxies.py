"""The page behind reverse proxies, and after its files have changed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.sync_api import Browser, sync_playwright

from framebus import FrameFormat
from services.streamer.pagefiles import PAGE, PageFiles
from tests.services.streamer.proxies import SERVERS, UPGRADE, Nginx
from tests.services.streamer.support import HEIGHT, WIDTH, RunningPublisher, StreamerProcess
from tests.support import (
    CHROMIUM,
    CHROMIUM_ARGUMENTS,
    PATIENCE_S,
    ROOT,
    free_ports,
    lacks,
    needs_browser,
    own_stream,
    wait_until,
)

pytestmark = pytest.mark.slow

PATIENCE_MS = 20_000
Result = TypeVar("Result")
REFUSED = ["default Host", "$host"]
"""The servers that hide from the streamer by which host the browser reached the page."""
HINT = "proxy_set_header Host $http_host;"
SHOWS_A_PICTURE = """() => {
    const canvas = document.getElementById("picture");
    if (canvas?.width && canvas.getContext("2d").getImageData(canvas.width >> 1, canvas.height >> 1, 1, 1).data[3])
        return true;
    return [...document.images].some((image) => image.src.includes("stream.mjpg") && image.naturalWidth > 0);
}"""


@pytest.fixture(scope="module")
def streamer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamerProcess]:
    with (
        own_stream() as name,
        RunningPublisher(name, FrameFormat(HEIGHT, WIDTH), 25),
        StreamerProcess(name, tmp_path_factory.mktemp("streamer") / "log") as process,
    ):
        wait_until(lambda: process.events("attached"), "the streamer attaches")
        yield process


@pytest.fixture(scope="module")
def nginx(streamer: StreamerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with Nginx(tmp_path_factory.mktemp("nginx"), urlsplit(streamer.url).netloc, SERVERS) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield launched
        launched.close()


def origin(url: str) -> str:
    return "{0.scheme}://{0.netloc}".format(urlsplit(url))


def run(work: Coroutine[Any, Any, Result], url: str) -> Result:
    """Run a request in a thread, because the browser's library has its own event loop in this one."""

    async def whole() -> Result:
        try:
            return await work
        finally:
            if url.startswith("https:"):
                await asyncio.sleep(0.05)  # TLS connections are closed in the background

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, whole()).result()


def fetch(url: str, **headers: str) -> tuple[int, str, Mapping[str, str]]:
    async def ask() -> tuple[int, str, Mapping[str, str]]:
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers, ssl=False) as response:
            return response.status, await response.text(), response.headers

    return run(ask(), url)


def handshake(url: str, **headers: str) -> tuple[int, str]:
    """Return status and text of the answer to a WebSocket request; 101 only if a message follows."""

    async def ask() -> tuple[int, str]:
        upgrade = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}ws", headers=upgrade | headers, ssl=False) as response:
                if response.status != 101:
                    return response.status, await response.text()
            async with session.ws_connect(f"{url}ws", headers=headers, ssl=False) as socket_:
                return 101, str(json.loads((await socket_.receive()).data)["type"])

    return run(ask(), url)


@pytest.mark.parametrize("name", SERVERS)
def test_every_file_of_the_page_arrives_through_every_proxy(nginx: Nginx, name: str) -> None:
    url = nginx.url(name)
    status, page, headers = fetch(url)
    assert (status, headers["Cache-Control"]) == (200, "no-cache")
    found = set(re.findall(r'(?:src|href)="([^"]+\.(?:js|css|svg))"', page))
    assert found
    for part in found:
        # A module script comes with an Origin, which the streamer cannot compare behind every proxy.
        status, _, headers = fetch(urljoin(url, part), Origin=origin(url), **{"Sec-Fetch-Site": "same-origin"})
        assert (status, headers["Cache-Control"]) == (200, "no-cache"), part
    assert json.loads(fetch(f"{url}api/status")[1])["viewers"]["max"] == 16


@pytest.mark.long
@pytest.mark.parametrize("name", SERVERS)
def test_pictures_arrive_through_every_proxy(nginx: Nginx, name: str) -> None:
    async def scenario() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{nginx.url(name)}stream.mjpg") as response,
        ):
            assert response.status == 200
            received = b""
            while received.count(b"\xff\xd8\xff") < 5:
                received += await response.content.readany()

    run(asyncio.wait_for(scenario(), PATIENCE_S), nginx.url(name))


@pytest.mark.parametrize("name", ["$http_host", "sub-path"])
def test_a_websocket_works_if_the_proxy_passes_host_on(nginx: Nginx, name: str) -> None:
    url = nginx.url(name)
    assert handshake(url, Origin=origin(url)) == (101, "state")
    status, text = handshake(url, Origin="http://evil.example")
    assert status == 403
    assert "another origin" in text


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_setting(streamer: StreamerProcess, nginx: Nginx, name: str) -> None:
    url = nginx.url(name)
    for _ in range(2):
        status, text = handshake(url, Origin=origin(url))
        assert status == 403
        assert HINT in text
    refusals = json.loads(fetch(f"{url}api/status")[1])["refusals"]
    (told,) = [told for told in refusals if (told["kind"], told["origin"]) == ("origin", origin(url))]
    assert told["setting"] == HINT
    assert HINT in told["reason"]
    assert len([event for event in streamer.events("request refused") if event["kind"] == "origin"]) == 1
    # A browser that says of its own accord that page and WebSocket are of one origin need not be refused.
    assert handshake(url, Origin=origin(url), **{"Sec-Fetch-Site": "same-origin"}) == (101, "state")
    assert handshake(url, Origin="http://evil.example", **{"Sec-Fetch-Site": "same-origin"})[0] == 403
    assert handshake(url, Origin=origin(url), **{"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_without_upgrade_the_answer_is_426(nginx: Nginx) -> None:
    url = nginx.url("no Upgrade")
    assert handshake(url, Origin=origin(url)) == (426, "this is a WebSocket\n")


def test_host_and_client_are_taken_from_a_trusted_proxy(stream: str, tmp_path: Path) -> None:
    forwarding = f"location / {{ proxy_pass http://UPSTREAM; {UPGRADE} proxy_set_header X-Forwarded-Host $http_host; }}"
    with (
        StreamerProcess(
            stream, tmp_path / "log", trusted_proxies='["127.0.0.0/8"]', allowed_hosts='["cam.example.org"]'
        ) as streamer,
        Nginx(tmp_path, urlsplit(streamer.url).netloc, {"forwarding": forwarding}) as nginx,
    ):
        url = nginx.url("forwarding")
        assert handshake(url, Origin=origin(url)) == (101, "state")
        assert handshake(url, Origin="https://cam.example.org", Host="cam.example.org") == (101, "state")
        status, text = handshake(url, Origin="https://evil.example", Host="evil.example")
        assert status == 403
        assert "streamer.allowed_hosts" in text


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize("name", SERVERS)
def test_a_browser_shows_the_page_through_every_proxy(nginx: Nginx, browser: Browser, name: str) -> None:
    page = browser.new_page()
    try:
        page.set_default_timeout(PATIENCE_MS)
        page.goto(nginx.url(name))
        page.wait_for_function(SHOWS_A_PICTURE)
        if name in REFUSED:
            page.get_by_text(HINT).first.wait_for()
    finally:
        page.close()


def write_page(folder: Path, version: str) -> None:
    """Write a page that shows the version of each of its parts."""
    (folder / "index.html").write_text(
        f'<!doctype html><script type="module" src="page/main.js"></script><p id="index">{version}</p><p id="main"></p>'
    )
    (folder / "main.js").write_text(
        f'import {{ part }} from "./part.js"; document.getElementById("main").textContent = `{version} ${{part}}`;'
    )
    (folder / "part.js").write_text(f'export const part = "{version}";')
    for path in folder.iterdir():
        os.utime(path, (0, 0))  # like the files of an image that is built reproducibly


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the files of a folder as those of a page, in a thread; yield the page's URL."""
    files = PageFiles(folder)

    async def index(request: web.Request) -> web.Response:
        return files.answer(request, "index.html")

    async def part(request: web.Request) -> web.Response:
        return files.answer(request, request.match_info["name"])

    async def serve(started: Future[str], stop: asyncio.Event) -> None:
        application = web.Application()
        application.add_routes([web.get("/", index), web.get("/page/{name:.+}", part)])
        async with TestServer(application) as server:
            started.set_result(str(server.make_url("/")))
            await stop.wait()

    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), Future[str]()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(started, stop)))
    thread.start()
    try:
        yield started.result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_a_file_has_an_etag_of_its_content(tmp_path: Path) -> None:
    write_page(tmp_path, "old")
    with served(tmp_path) as url:
        tag = fetch(f"{url}page/main.js")[2]["ETag"]
        known = {"If-None-Match": f'"another", {tag}'}
        status, text, headers = fetch(f"{url}page/main.js", **known)
        assert (status, text, headers["ETag"], headers["Cache-Control"]) == (304, "", tag, "no-cache")
        write_page(tmp_path, "new")
        status, text, headers = fetch(f"{url}page/main.js", **known)
        assert (status, "new" in text, headers["ETag"] != tag) == (200, True, True)
        for outside in ("..%2fpagefiles.py", "%2e%2e/pagefiles.py", "none.js"):
            assert fetch(f"{url}page/{outside}")[0] == 404


@needs_browser
@pytest.mark.long
def test_changed_files_are_never_mixed_with_old_ones(browser: Browser, tmp_path: Path) -> None:
    write_page(tmp_path, "old")
    with served(tmp_path) as url, contextlib.closing(browser.new_context()) as context:
        reloaded, navigated = context.new_page(), context.new_page()
        for page in (reloaded, navigated):
            page.goto(url)
            page.wait_for_function("document.getElementById('main').textContent === 'old old'")
        write_page(tmp_path, "new")
        reloaded.reload()
        navigated.goto(url)
        context.new_page().goto(url)
        for page in context.pages:
            page.wait_for_function("document.getElementById('main').textContent === 'new new'")
            assert page.locator("#index").text_content() == "new"


def test_the_version_follows_the_files(tmp_path: Path) -> None:
    copy = tmp_path / "page"
    shutil.copytree(PAGE, copy)
    files = PageFiles(copy)
    before = files.version
    assert before == PageFiles().version
    assert files.refresh() == before
    (copy / "main.js").write_text("// another\n")
    assert files.refresh() != before


@pytest.mark.long
def test_pictures_read_slowly_through_a_proxy_do_not_grow_older(stream: str, tmp_path: Path) -> None:
    """Pictures in the buffers before the reader grow old. The streamer notices it, and then keeps the buffers short."""
    bytes_per_second, seconds = 250_000, 60.0
    ages_s: list[tuple[float, float]] = []
    connected_s = 0.0
    with (
        RunningPublisher(stream, FrameFormat(688, 4896), 25, noisy=True),
        StreamerProcess(stream, tmp_path / "log") as streamer,
        Nginx(tmp_path, urlsplit(streamer.url).netloc, {"default Host": SERVERS["default Host"]}) as nginx,
    ):
        began_s = time.monotonic()
        while time.monotonic() - began_s < seconds:
            connected_s = time.monotonic() - began_s
            port = urlsplit(nginx.url("default Host")).port or 0
            with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
                client.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
                ages_s += read_slowly(client, began_s, began_s + seconds, bytes_per_second)
    # Without a bound they are 36 s old by the end, and get older.
    assert max(age_s for _, age_s in ages_s) < 25, ages_s
    # A proxy that read nothing for eight seconds was disconnected. Once the rate is known, the pictures are fresh.
    late = [age_s for passed_s, age_s in ages_s if passed_s > max(seconds - 10, connected_s + 45)]
    assert all(age_s < 5 for age_s in late), ages_s


def read_slowly(
    client: socket.socket, began_s: float, end_s: float, bytes_per_second: int
) -> list[tuple[float, float]]:
    """Read until ``end_s`` or the connection's end; return when pictures came, and how old they were, in seconds."""
    ages_s = []
    first_s, received, unread = time.monotonic(), 0, b""
    while (now_s := time.monotonic()) < end_s:
        wanted = int((now_s - first_s) * bytes_per_second) - received
        if wanted <= 0:
            time.sleep(0.01)
            continue
        part = client.recv(min(16384, wanted))
        if not part:
            break
        received, unread = received + len(part), unread + part
        if found := list(re.finditer(rb"X-Captured-Ms: ([\d.]+)\r\n", unread)):
            ages_s.append((now_s - began_s, time.monotonic() - float(found[-1][1]) / 1e3))
            unread = unread[found[-1].end() :]
    return ages_s


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for cam.example.org and its key, in one file."""
    folder = tmp_path_factory.mktemp("certificate")
    if shutil.which("openssl") is None:
        lacks("no openssl here: run 'make system-packages'")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    files = ["-subj", "/CN=cam.example.org", "-keyout", str(folder / "key"), "-out", str(folder / "certificate")]
    subprocess.run(["openssl", "req", "-x509", *curve, *files], check=True, capture_output=True)
    both = folder / "both"
    both.write_bytes((folder / "certificate").read_bytes() + (folder / "key").read_bytes())
    return both


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamerProcess]:
    """Run a streamer with the settings of the document."""
    document = (ROOT / "docs" / "deployment.md").read_text()
    settings = yaml.safe_load(document.split("### Behind a reverse proxy", 1)[1].split("```yaml\n")[1].split("```")[0])
    values = {name: json.dumps(value) for name, value in settings["streamer"].items()}
    assert set(values) == {"allowed_hosts", "trusted_proxies"}
    with StreamerProcess(
        f"test-{secrets.token_hex(6)}", tmp_path_factory.mktemp("documented") / "log", **values
    ) as process:
        yield process


def snippet(heading: str, language: str) -> str:
    """Return the code block below a heading of the document."""
    section = (ROOT / "docs" / "deployment.md").read_text().split(f"#### {heading}\n", 1)[1]
    return section.split(f"```{language}\n", 1)[1].split("```", 1)[0]


def check_documented(url: str, streamer: StreamerProcess) -> None:
    """Check that the page, its files and its WebSocket work under the host name of the document."""
    host = {"Host": "cam.example.org"}
    assert "main.js" in fetch(url, **host)[1]
    assert fetch(f"{url}page/main.js", **host, Origin="https://cam.example.org")[0] == 200
    assert handshake(url, **host, Origin="https://cam.example.org") == (101, "state")
    assert handshake(url, **host, Origin="https://evil.example")[0] == 403
    assert handshake(url, Host="evil.example", Origin="https://evil.example")[0] == 403
    assert streamer.process.poll() is None


@pytest.mark.long
@pytest.mark.parametrize(("heading", "name"), [("at the root of a host", "root"), ("under a path", "sub-path")])
def test_the_documented_nginx_works(
    documented: StreamerProcess, certificate: Path, tmp_path: Path, heading: str, name: str
) -> None:
    text = snippet(f"nginx: {heading}", "nginx")
    for documented_part, real in (
        ("listen 443 ssl", "listen LISTEN ssl"),
        ("127.0.0.1:8080", "UPSTREAM"),
        ("/etc/ssl/cam.example.org.pem", str(certificate)),
        ("/etc/ssl/cam.example.org.key", str(certificate)),
    ):
        assert documented_part in text
        text = text.replace(documented_part, real)
    with Nginx(tmp_path, urlsplit(documented.url).netloc, {name: text}) as nginx:
        check_documented(nginx.url(name, "https"), documented)


@pytest.mark.long
def test_the_documented_caddy_works(documented: StreamerProcess, certificate: Path, tmp_path: Path) -> None:
    program = shutil.which("caddy")
    if program is None:
        lacks("no caddy here: run 'make system-packages'")
    port = free_ports(1)
    text = snippet("Caddy", "caddy").replace("127.0.0.1:8080", urlsplit(documented.url).netloc)
    # Without a name in the handshake, as here, Caddy chooses no certificate by itself.
    text = text.replace("cam.example.org {", f":{port} {{\n    tls {certificate} {certificate}")
    (tmp_path / "Caddyfile").write_text(f"{{\n    admin off\n    auto_https disable_redirects\n}}\n{text}")
    caddy = subprocess.Popen(
        [program, "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"],
        stderr=subprocess.DEVNULL,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
    )
    try:

        def listens() -> bool:
            assert caddy.poll() is None
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, "Caddy listens")
        check_documented(f"https://127.0.0.1:{port}/cams/", documented)
    finally:
        caddy.terminate()
        caddy.wait(PATIENCE_S)
