"""Start and stop, the same for every service."""

from __future__ import annotations

import _thread
import argparse
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from framebus import FramebusError
from services.common.config import CommonConfiguration, ConfigurationError, load
from services.common.logs import set_up_logs

C = TypeVar("C", bound=CommonConfiguration)

EXIT_USAGE = 2
"""Exit status of a configuration or environment that a restart does not mend."""
SUPERVISED = "FRAMEBUS_SUPERVISED"
"""Environment variable that is set for a service that must not outlive the process that started it."""
_PR_SET_PDEATHSIG = 1  # prctl(2)


class ServiceError(Exception):
    """The service cannot go on; its message is one sentence for the operator."""


def run(service: str, configuration_type: type[C], main: Callable[[C, threading.Event], None]) -> int:
    """Run a service until it ends or is told to stop.

    Args:
        service: Name in the logs and the status.
        configuration_type: The sections to read from the file of ``--config``.
        main: Called with the configuration and an event that SIGTERM and SIGINT set; it returns when that is set.

    Returns:
        Exit status: 0 when ``main`` returned, 1 when it gave up with an error in one sentence, 2 when the
        configuration is at fault.
    """
    parser = argparse.ArgumentParser(prog=f"python -m services.{service}")
    parser.add_argument("--config", type=Path, help="the YAML file of all services; without it the defaults hold")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    arguments = parser.parse_args()
    try:
        configuration = load(configuration_type, arguments.config)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    if arguments.check:
        return 0
    set_up_logs(service, configuration.log)
    log = structlog.get_logger()
    stop = threading.Event()

    def request_stop(_signal: int, _frame: object) -> None:
        # The main thread may be inside stop.wait() and hold the event's own lock: set it here, and it waits for itself.
        _thread.start_new_thread(stop.set, ())

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    if SUPERVISED in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    log.info("started")
    try:
        main(configuration, stop)
    except (ServiceError, FramebusError) as error:
        log.error("failed", reason=str(error))  # noqa: TRY400  one sentence, no traceback
        return 1
    log.info("stopped")
    return 0
