"""Logs: one line for each event, whichever library logs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
import logging, sys, warnings
from services.common.config import LogSection
from services.common.logs import set_up_logs
import structlog
set_up_logs("sample", LogSection(level=sys.argv[1], format=sys.argv[2]))
log = structlog.get_logger()
{body}
"""


def lines_of(body: str, level: str = "info", log_format: str = "json") -> list[str]:
    """Return the lines that a program with this body logs."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), level, log_format],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=20,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_an_event_is_one_json_object() -> None:
    (line,) = lines_of("log.info('frame refused', reason='a\\nb', size=[1, 2])")
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "frame refused",
        "level": "info",
        "service": "sample",
        "reason": "a\nb",
        "size": [1, 2],
    }


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_level_hides_what_is_less_severe(level: str) -> None:
    levels = ["debug", "info", "warning", "error"]
    body = "\n".join(f"log.{name}('{name}')" for name in levels)
    assert [json.loads(line)["event"] for line in lines_of(body, level)] == levels[levels.index(level) :]


def test_the_text_format_is_readable() -> None:
    (line,) = lines_of("log.warning('late', frames=3)", log_format="text")
    assert "late" in line
    assert "frames=3" in line
    assert "\x1b" not in line


def test_records_of_libraries_have_the_same_format() -> None:
    body = """
logging.getLogger('aiohttp').info('hidden')
logging.getLogger('aiohttp').warning('100 %% of %s', 'it')
warnings.simplefilter('default')
warnings.warn('old')
"""
    first, second = map(json.loads, lines_of(body))
    assert (first["event"], first["logger"], first["level"]) == ("100 % of it", "aiohttp", "warning")
    assert (second["logger"], second["service"]) == ("py.warnings", "sample")


def test_an_exception_is_one_line() -> None:
    body = """
try:
    1 / 0
except ZeroDivisionError:
    log.exception('bad frame')
    logging.getLogger('asyncio').exception('bad task')
"""
    for line in lines_of(body):
        assert "ZeroDivisionError" in json.loads(line)["exception"]


def test_no_logger_writes_a_password() -> None:
    body = """
url = 'rtsp://user:hunter2@host/x?hunter2'
log.warning(f'lost {url}', url=url, urls=[url, {'of': url}], **{url: 1})
logging.getLogger('av').warning('cannot open %s', url)
try:
    raise OSError(111, 'refused', url)
except OSError:
    log.exception('failed')
"""
    for log_format in ("json", "text"):
        text = "\n".join(lines_of(body, log_format=log_format))
        assert "rtsp://***@host/x?***" in text
        assert "hunter2" not in text
