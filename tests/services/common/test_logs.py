"""Logs: one line for each event, whichever library logs it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from services.common.config import LogSection
from services.common.logs import set_up_logs
from tests.support import ROOT

LEVELS = ("debug", "info", "warning", "error")
PROGRAM = """
import logging, warnings
from services.common.config import LogSection
from services.common.logs import set_up_logs
set_up_logs("sample", LogSection())
logging.getLogger('aiohttp').info('hidden')
logging.getLogger('aiohttp').warning('100 %% of %s', 'it')
warnings.simplefilter('default')
warnings.warn('old')
"""
Lines = Callable[..., list[str]]
log = structlog.get_logger()


@pytest.fixture
def lines_of(capsys: pytest.CaptureFixture[str]) -> Lines:
    """Returns the lines that a function logs."""

    def run(body: Callable[[], object], **section: str) -> list[str]:
        set_up_logs("sample", LogSection.model_validate(section))
        body()
        output, errors = capsys.readouterr()
        assert output == ""
        return errors.splitlines()

    return run


def test_an_event_is_one_json_object(lines_of: Lines) -> None:
    (line,) = lines_of(lambda: log.info("frame refused", reason="a\nb", size=[1, 2]))
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "frame refused",
        "level": "info",
        "service": "sample",
        "reason": "a\nb",
        "size": [1, 2],
    }


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_hides_what_is_less_severe(lines_of: Lines, level: str) -> None:
    def body() -> None:
        for name in LEVELS:
            getattr(log, name)(name)

    assert tuple(json.loads(line)["event"] for line in lines_of(body, level=level)) == LEVELS[LEVELS.index(level) :]


def test_the_text_format_is_readable(lines_of: Lines) -> None:
    (line,) = lines_of(lambda: log.warning("late", frames=3), format="text")
    assert "late" in line
    assert "frames=3" in line
    assert "\x1b" not in line


@pytest.mark.slow
def test_records_of_libraries_have_the_same_format() -> None:
    """In a process, because pytest captures warnings by itself."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT, timeout=20
    )
    assert done.stdout == ""
    first, second = map(json.loads, done.stderr.splitlines())
    assert (first["event"], first["logger"], first["level"]) == ("100 % of it", "aiohttp", "warning")
    assert (second["logger"], second["service"]) == ("py.warnings", "sample")


def test_an_exception_is_one_line(lines_of: Lines) -> None:
    def body() -> None:
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            log.exception("bad frame")
            logging.getLogger("asyncio").exception("bad task")

    lines = lines_of(body)
    assert len(lines) == 2
    for line in lines:
        assert "ZeroDivisionError" in json.loads(line)["exception"]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_logger_writes_a_password(lines_of: Lines, log_format: str) -> None:
    def body() -> None:
        url: Any = "rtsp://user:hunter2@host/x?hunter2"
        log.warning(f"lost {url}", url=url, urls=[url, {"of": url}], **{url: 1})
        logging.getLogger("av").warning("cannot open %s", url)
        try:
            raise OSError(111, "refused", url)  # noqa: TRY301  so that it has a traceback
        except OSError:
            log.exception("failed")

    text = "\n".join(lines_of(body, format=log_format))
    assert "rtsp://***@host/x?***" in text
    assert "hunter2" not in text
