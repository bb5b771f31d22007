"""Start child processes of the simulator, which end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from services.common.config import LogSection
from services.common.logs import set_up_logs
from services.common.parent import end_with_parent
from services.common.service import SUPERVISED

ROOT = Path(__file__).parents[2]


def start(
    module: str, arguments: list[str], log_section: LogSection, stdout: int | None = None
) -> subprocess.Popen[str]:
    """Run a module of this project with this interpreter.

    Args:
        module: Dotted name of the module.
        arguments: Its command line, to which ``--log`` is added.
        log_section: Configuration of its log.
        stdout: See :class:`subprocess.Popen`.
    """
    # The child finds this project even if it is not installed and the working directory is another one.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments, "--log", log_section.model_dump_json()],
        env={**os.environ, "PYTHONPATH": path, SUPERVISED: str(os.getpid())},
        stdout=stdout,
        text=True,
    )


def set_up(log_section: LogSection) -> None:
    """Prepare this process, which :func:`start` started.

    Signals end it immediately, because it has nothing to clean up, and the kernel kills it when the parent dies.
    """
    # The parent's number comes from the environment: if it has died already, getppid() returns another process.
    end_with_parent(signal.SIGKILL, int(os.environ.get(SUPERVISED, os.getppid())))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    set_up_logs("simulator", log_section)
