"""Services of another distribution: a folder and one line make one, and a fault of it is reported in one sentence."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.__main__ import main
from services.common.config import ConfigurationError, declared_services
from services.common.service import EXIT_USAGE, Service, find_service
from services.common.status import StatusServer, read_statuses
from services.detector.entry import SERVICE as DETECTOR
from services.streamer.entry import SERVICE as STREAMER
from services.supervisor.entry import SERVICE as SUPERVISOR
from services.supervisor.process import environment_for
from tests.services.site import BAKER, Site
from tests.support import ROOT

pytestmark = pytest.mark.slow

PATIENCE_S = 30.0
"""A loaded machine is slow; nothing here waits so long unless it fails."""
SERVICES = ("detector", "relay", "simulator", "stitcher", "streamer", "supervisor")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    return Site(folder)


@pytest.fixture
def bakery(site: Site) -> Site:
    site.install("bakery", "baker = baker:SERVICE", baker=BAKER)
    return site


@pytest.fixture
def site_here(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Put the same folder on the path of this process."""
    monkeypatch.syspath_prepend(site.folder)
    declared_services.cache_clear()
    yield site
    declared_services.cache_clear()
    sys.modules.pop("baker", None)


Faults = Callable[..., list[str]]


@pytest.fixture
def faults(capsys: pytest.CaptureFixture[str]) -> Faults:
    """Returns the errors that ``python -m services`` prints for an unusable configuration; it runs in this process."""

    def run(*arguments: str) -> list[str]:
        assert main(arguments) == EXIT_USAGE
        output, errors = capsys.readouterr()
        assert output == ""
        return errors.splitlines()

    return run


CHECK = ("-m", "services.supervisor", "--check")
WHAT_IT_IMPORTS = """
import sys
{program}
print(*sorted({{"aiohttp", "av", "cv2", "onnxruntime"}} & sys.modules.keys()))
import services.detector.service, services.streamer.service
print(*sorted({{"aiohttp", "av", "cv2", "onnxruntime"}} & sys.modules.keys()))
"""


def test_reading_the_configuration_imports_nothing_that_works_on_frames(site: Site) -> None:
    step = "load(Path({config!r}))"
    program = "from pathlib import Path\nfrom services.common.service import find_service\n" + "\n".join(
        f"find_service({service!r}).{step.format(config=str(ROOT / 'config/framebus.yaml'))}" for service in SERVICES
    )
    done = site.run("-c", WHAT_IT_IMPORTS.format(program=program))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "\naiohttp cv2 onnxruntime\n", "running a service does import it"


def test_the_services_of_this_distribution_are_declared() -> None:
    assert tuple(declared_services()) == SERVICES


@pytest.mark.long
def test_a_foreign_services_section_is_accepted_and_checked(bakery: Site, tmp_path: Path) -> None:
    config = tmp_path / "framebus.yaml"
    config.write_text("stream: {slots: 8}\nbaker:\n  loaves: 5\n")
    for arguments in (CHECK, ("-m", "services", "baker", "--check"), ("-m", "services.streamer", "--check")):
        done = bakery.run(*arguments, "--config", str(config))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), arguments
    config.write_text("stream: {slots: 8}\nbaker:\n  loaves: many\n  rolls: 1\nstreamer:\n  port: x\n")
    faults = bakery.faults(*CHECK, "--config", str(config))
    assert [fault.partition(": Input")[0].partition(": Extra")[0] for fault in faults] == [
        f"{config}:6: streamer.port",
        f"{config}:3: baker.loaves",
        f"{config}:4: baker.rolls",
    ]
    faults = bakery.faults("-m", "services", "baker", "--check", "--config", str(config))
    assert [fault.partition(": ")[0] for fault in faults] == [f"{config}:3", f"{config}:4"]


@pytest.mark.usefixtures("bakery", "site_here")
def test_the_environment_overrides_a_foreign_services_section(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEBUS_BAKER__LOAVES", "many")
    (fault,) = faults("supervisor", "--check")
    assert fault.startswith("FRAMEBUS_BAKER__LOAVES: baker.loaves: Input should be a valid integer")


def test_the_section_of_a_service_that_is_not_installed_is_a_fault(faults: Faults, tmp_path: Path) -> None:
    config = tmp_path / "framebus.yaml"
    config.write_text("baker: {loaves: 5}\nsupervisor:\n  services: [streamer, baker, supervisor]\n")
    unknown, *listed = faults("supervisor", "--check", "--config", str(config))
    assert unknown == f"{config}:1: no such section; there are stream, log, broker, storage, {', '.join(SERVICES)}"
    reason = "no such service is installed; there are detector, relay, simulator, stitcher, streamer"
    assert listed == [f"{config}:3: supervisor.services.{place}: {reason}" for place in (1, 2)]


def status_of(stream: str) -> dict[str, Any] | None:
    return read_statuses(stream).get("baker")


def wait_until(condition: Callable[[], bool], what: str, log: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"in vain waited until {what}: {log.read_text()}"
        time.sleep(0.05)


@contextlib.contextmanager
def supervised(site: Site, stream: str, log: Path, **settings: str) -> Iterator[psutil.Popen]:
    with log.open("wb") as output:
        process = psutil.Popen(
            [sys.executable, "-m", "services.supervisor"],
            cwd=ROOT,
            env={**site.environment, "FRAMEBUS_STREAM__NAME": stream, **settings},
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, log.read_text()


def starts(log: Path) -> list[str]:
    """Return the services that have started, in order."""
    return [json.loads(line)["service"] for line in log.read_text().splitlines() if '"started"' in line]


@pytest.mark.long
def test_the_supervisor_awaits_restarts_and_stops_foreign_services(site: Site, stream: str, tmp_path: Path) -> None:
    hot, log = tmp_path / "hot", tmp_path / "log"
    wait = f"    while not stop.wait(0.02) and not pathlib.Path({str(hot)!r}).exists(): pass\n"
    oven = "import pathlib\n" + BAKER.replace("baker", "oven").replace(", run)", ", run, awaited=True)")
    oven = oven.replace("    with Status", f"{wait}    with Status")
    site.install("bakery", "baker = baker:SERVICE\noven = oven:SERVICE", baker=BAKER, oven=oven)
    settings = {
        "FRAMEBUS_SUPERVISOR__SERVICES": "[oven, baker]",
        "FRAMEBUS_SUPERVISOR__STATUS_INTERVAL_S": "0.2",
        "FRAMEBUS_BAKER__LOAVES": "7",
        "FRAMEBUS_STITCHER__THREADS": "1",
    }

    def baker() -> psutil.Process:
        (process,) = (child for child in supervisor.children() if "baker" in child.cmdline())
        return process

    with supervised(site, stream, log, **settings) as supervisor:
        wait_until(lambda: starts(log) == ["supervisor", "oven"], "the first has started", log)
        lines = len(log.read_text().splitlines())
        wait_until(lambda: len(log.read_text().splitlines()) > lines + 3, "the supervisor has looked again", log)
        assert starts(log) == ["supervisor", "oven"]
        hot.touch()
        wait_until(lambda: status_of(stream) is not None, "the second serves its status", log)
        status = status_of(stream)
        assert status is not None
        assert (status["service"], status["healthy"], status["details"]) == ("baker", True, {"loaves": 7})
        first = baker()
        assert first.environ()["FRAMEBUS_BAKER__LOAVES"] == "7"
        assert "FRAMEBUS_STITCHER__THREADS" not in first.environ(), "the settings of other services are hidden"
        first.kill()
        wait_until(lambda: status_of(stream) is None, "it is gone", log)
        wait_until(lambda: status_of(stream) is not None, "it serves its status again", log)
        assert baker().pid != first.pid
    assert status_of(stream) is None
    assert "baker ended by signal SIGKILL; starting it again in 0.5 s" in log.read_text()
    assert starts(log) == ["supervisor", "oven", "baker", "baker"]


def test_a_service_is_asked_for_its_status_by_the_name_that_it_serves(stream: str) -> None:
    night = {"FRAMEBUS_STREAM__NAME": stream, "FRAMEBUS_DETECTOR__INSTANCE": "night"}
    detector = find_service("detector")
    configuration = detector.load(None, night)
    assert detector.status(configuration) is None
    with StatusServer(stream, "detector-night", lambda: {"service": "detector-night"}):
        assert detector.status(configuration) == {"service": "detector-night"}
        assert detector.status(detector.load(None, night | {"FRAMEBUS_DETECTOR__INSTANCE": "detector"})) is None


def test_the_settings_of_a_foreign_service_are_hidden_from_the_others(site_here: Site) -> None:
    settings = {f"FRAMEBUS_{name}__X": "1" for name in ("BAKER", "STITCHER", "STREAMER", "LOG", "MILLER")}
    assert "FRAMEBUS_BAKER__X" in environment_for("streamer", settings), "the section is unknown without it"
    site_here.install("bakery", "baker = baker:SERVICE", baker=BAKER)
    declared_services.cache_clear()
    hidden = {"FRAMEBUS_BAKER__X", "FRAMEBUS_STITCHER__X"}
    assert environment_for("streamer", settings).keys() == settings.keys() - hidden


ABSENT = "AttributeError: module 'baker' has no attribute 'SERVICE'"
BROKEN = {
    "an import error": ("import flour", "ModuleNotFoundError: No module named 'flour'"),
    "another error of its own": ("raise ValueError('a\\nb')", "ValueError: a\\nb"),
    "a syntax error": ("def", "SyntaxError: invalid syntax (baker.py, line 1)"),
    "a program": ("raise SystemExit(0)", "SystemExit: 0"),
    "no such attribute": ("", ABSENT),
    "something else": ("SERVICE = 5", "it is not a Service, but of type int"),
    "another name": (BAKER.replace('Service("baker"', 'Service("cook"'), "it is named 'cook'"),
    "no section": (
        BAKER.replace("    baker: BakerSection", "    cook: BakerSection"),
        "its BakerConfiguration has no section 'baker'",
    ),
}


@pytest.mark.parametrize(("module", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_distribution_is_reported_in_one_sentence(site_here: Site, module: str, reason: str) -> None:
    site_here.install("bakery", "baker = baker:SERVICE", baker=module)
    sentence = f"the service 'baker' of bakery 1.0 (baker:SERVICE) cannot be loaded: {reason}"
    with pytest.raises(ConfigurationError) as caught:
        find_service("baker")
    assert str(caught.value) == sentence
    with pytest.raises(ConfigurationError) as caught:
        find_service("supervisor").load(None, {})
    assert str(caught.value) == sentence
    assert find_service("streamer").load(None, {}).streamer.port == 8080, "services that do not need it still work"


@pytest.mark.parametrize("arguments", [("supervisor", "--check"), ("baker",)])
def test_a_broken_distribution_shows_no_traceback(site_here: Site, faults: Faults, arguments: tuple[str, ...]) -> None:
    site_here.install("bakery", "baker = baker:SERVICE", baker="")
    assert faults(*arguments) == [f"the service 'baker' of bakery 1.0 (baker:SERVICE) cannot be loaded: {ABSENT}"]


@pytest.mark.parametrize("service", [DETECTOR, STREAMER, SUPERVISOR], ids=lambda service: service.name)
def test_a_service_name_that_is_taken_is_reported_in_one_sentence(
    site_here: Site, capsys: pytest.CaptureFixture[str], service: Service[Any]
) -> None:
    site_here.install("bakery", "detector = baker:SERVICE", baker=BAKER)
    assert service.main(["--check"]) == EXIT_USAGE
    (sentence,) = capsys.readouterr().err.splitlines()
    first = "the service 'detector' of bakery 1.0 (baker:SERVICE)"
    assert sentence.startswith("the service 'detector' of framebus-services ")
    assert sentence.endswith(f" (services.detector.entry:SERVICE) has the name of {first}: uninstall one of them")


@pytest.mark.parametrize("name", ["stream", "log", "source", "Baker", "a-b", "a__b", "9"])
def test_a_name_that_no_section_can_have_is_reported_in_one_sentence(site_here: Site, name: str) -> None:
    site_here.install("bakery", f"{name} = baker:SERVICE", baker=BAKER)
    with pytest.raises(ConfigurationError) as caught:
        find_service("streamer")
    assert str(caught.value) == (
        f"the service {name!r} of bakery 1.0 (baker:SERVICE) cannot be used: a service's name is lower-case letters, "
        "digits and single underscores, and none of stream, log, broker, storage, source"
    )


def test_without_any_service_the_sentence_names_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.config.entry_points", lambda group: ())
    declared_services.cache_clear()
    with pytest.raises(ConfigurationError, match=r"^no service is installed: install framebus-services, [^\n]*$"):
        find_service("streamer")
    declared_services.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage: python -m services NAME [--config FILE] [--check]"),
        (("--check",), "usage: python -m services NAME [--config FILE] [--check]"),
        (("cook",), f"no service 'cook' is installed; there are {', '.join(SERVICES)}"),
    ],
)
def test_a_missing_service_is_reported(faults: Faults, arguments: tuple[str, ...], message: str) -> None:
    assert faults(*arguments) == [message]
