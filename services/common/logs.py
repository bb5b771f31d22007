"""Structured logs: one line for each event, to standard error."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import textwrap
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import structlog

from services.common.config import LogSection, in_one_line
from services.common.masking import mask_value

_HIDDEN = ("event", "service", "level", "timestamp", "logger", "exception", "exc_info")


def set_up_logs(service: str, section: LogSection) -> None:
    """Send every event of this process to standard error, as JSON or text, bound to the service's name."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer() if section.format == "json" else _Short()
    # Libraries use the standard library's logging; forward their warnings, so that all lines have the same form.
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            _name(service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _mask,  # after the exception has become text, which may hold a URL
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[section.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(_StandardError()),  # type: ignore[arg-type]  # a file in parts
    )


def short_line(event: Mapping[str, Any]) -> str:
    """Format an event as one short line for people: time of day, service, camera, event, reason.

    Redundant values, such as a camera's URL beside its name, are omitted. A traceback is reduced to its last line.
    """
    # Empty values are dropped, so that the line holds only what the operator can use.
    told = {key: value for key, value in event.items() if key not in _HIDDEN and value not in (None, "", [], {})}
    camera, reason = told.pop("camera", None), told.pop("reason", None)
    if camera is not None:
        told.pop("url", None)
    words = [f"{time_of_day(event.get('timestamp'))} {event.get('service', '?')}: "]
    words.append(f"{camera}: {event.get('event')}" if camera is not None else str(event.get("event")))
    exception = str(event.get("exception") or "").strip()
    words.extend(f": {why}" for why in (reason, exception.rpartition("\n")[2]) if why)
    if (next_s := told.pop("next_try_s", None)) is not None:
        words.append(f", next try in {next_s:g} s")
    if told:
        words.append(f" ({', '.join(f'{key}={_short_value(value)}' for key, value in told.items())})")
    return in_one_line("".join(words))


def time_of_day(timestamp: Any = None) -> str:
    """Return the local time of day of an ISO timestamp, of now without one, as ``HH:MM:SS``."""
    try:
        moment = datetime.fromisoformat(str(timestamp)) if timestamp else datetime.now().astimezone()
    except ValueError:
        moment = datetime.now().astimezone()
    return f"{moment.astimezone():%H:%M:%S}"


def _short_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_short_value, value)) if len(value) == 1 else f"[{', '.join(map(_short_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Short:
    """Renders short lines: cut to the terminal's width, with the traceback below where there is no terminal."""

    def __call__(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> str:
        line = short_line(event)
        if not sys.stderr.isatty():
            return "\n".join(filter(None, (line, str(event.get("exception") or ""))))
        width = shutil.get_terminal_size().columns
        if event.get("level") not in ("error", "critical"):
            return line[: width - 1]
        # Wrap instead of cutting: the operator must be able to read the whole reason for which a service ends.
        return "\n".join(textwrap.wrap(line, width - 1, subsequent_indent="  "))


class _StandardError:
    """Standard error that drops output once its reader has closed the pipe."""

    def write(self, text: str) -> int:
        # A service must not end because the program that read its log has ended.
        with contextlib.suppress(OSError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def _name(service: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("service", service)
        return event

    return add


def _mask(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Mask passwords in events of services and libraries."""
    masked: structlog.typing.EventDict = mask_value(event)
    return masked


class _Forward(logging.Handler):
    """Hands the records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None
        )
