"""Merged containers: compares the cost of supervisord and of this project's supervisor, with the same services."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from bench.storage.figures import NOT_HERE, FigureTable, NotHere, take_turns
from bench.storage.form import Form
from bench.storage.mounts import command

NAME: Final = "supervisors"
VERSION: Final = "4.3.0"
SERVICES: Final = 4
PATIENCE_S: Final = 60.0
ROOT: Final = Path(__file__).resolve().parent.parent.parent
SLEEPER: Final = '''\
"""A service that serves its status and sleeps."""
from services.common.config import CommonConfiguration, Section
from services.common.service import Service
from services.common.status import StatusServer, status_document


class SleeperSection(Section):
    pass


def service(name):
    configuration = type(
        "Configuration", (CommonConfiguration,),
        {"__annotations__": {name: SleeperSection}, name: SleeperSection(), "__module__": __name__},
    )

    def run(configuration, stop):
        with StatusServer(configuration.stream.name, name, lambda: status_document(name, healthy=True)):
            stop.wait()

    return Service(name, configuration, run)


'''


def names() -> list[str]:
    """Return the names of the services that both supervise."""
    return [f"sleeper{number}" for number in range(SERVICES)]


def install_sleepers(folder: Path) -> None:
    """Write a distribution with the services into a folder that is on PYTHONPATH."""
    services = "\n".join(f'{one.upper()} = service("{one}")' for one in names())
    (folder / "bench_sleeper.py").write_text(SLEEPER + services)
    information = folder / "bench_sleeper-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-sleeper\nVersion: 1\n")
    entries = "\n".join(f"{one} = bench_sleeper:{one.upper()}" for one in names())
    (information / "entry_points.txt").write_text(f"[framebus.services]\n{entries}\n")


def supervisord(folder: Path) -> Path:
    """Install supervisord into an environment of its own; return its program.

    Raises:
        NotHere: supervisord cannot be installed.
    """
    environment = folder / "supervisord"
    command(sys.executable, "-m", "venv", str(environment))
    pip = [str(environment / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    # supervisor imports pkg_resources, which newer versions of setuptools do not have.
    command(*pip, f"supervisor=={VERSION}", "setuptools<81", timeout_s=300)
    return environment / "bin/supervisord"


def _ours(folder: Path, stream: str) -> list[str]:
    configuration = folder / "framebus.yaml"
    services = ", ".join(names())
    configuration.write_text(
        f"stream: {{name: {stream}}}\nlog: {{format: json}}\n"
        f"supervisor: {{services: [{services}], optional: [], restarts: 1000}}\n"
    )
    return [sys.executable, "-m", "services", "supervisor", "--config", str(configuration)]


def _theirs(folder: Path, stream: str, program: Path) -> list[str]:
    configuration = folder / "framebus.yaml"
    configuration.write_text(f"stream: {{name: {stream}}}\n")
    head = f"[supervisord]\nnodaemon=true\nuser=root\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={folder}/pid\n"
    programs = "".join(
        f"[program:{one}]\ncommand={sys.executable} -m services {one} --config {configuration}\nautorestart=true\n"
        for one in names()
    )
    (folder / "supervisord.conf").write_text(head + programs)
    return [str(program), "-c", str(folder / "supervisord.conf")]


@contextmanager
def running(arguments: list[str], path: Path) -> Iterator[psutil.Process]:
    """Run a supervisor. At the end, terminate it, and kill what is left of its processes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    here = psutil.Process(process.pid)
    try:
        yield here
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            # List the children first: after the supervisor's end they are no longer its children.
            family = here.children(recursive=True)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.kill()
        process.wait()


def _until(met: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not met():
        if time.monotonic() > deadline_s:
            raise NotHere(f"{what} did not appear within {PATIENCE_S:g} s")
        time.sleep(0.005)


def _serving(stream: str) -> set[str]:
    return {one for one in names() if Path(f"/dev/shm/framebus.{stream}.status.{one}.sock").exists()}


def _child(supervisor: psutil.Process, name: str) -> psutil.Process | None:
    for one in supervisor.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in one.cmdline() and one.status() != psutil.STATUS_ZOMBIE:
                return one
    return None


def one_round(arguments: list[str], path: Path, stream: str, form: Form) -> dict[str, float]:
    """Start a supervisor, leave it idle, and kill a service; return the figures of all three."""
    begun_s = time.perf_counter()
    with running(arguments, path) as supervisor:
        _until(lambda: len(_serving(stream)) == SERVICES, "the status of all services")
        figures = {"start of all, s": time.perf_counter() - begun_s}
        # Wait until the start is over, so that the figures at rest do not include it.
        time.sleep(2)
        cpu = supervisor.cpu_times()
        time.sleep(form.idle_s)
        now = supervisor.cpu_times()
        # CPU times are multiples of the kernel's clock tick, 10 ms.
        taken_s = max(0.0, now.user + now.system - cpu.user - cpu.system)
        figures["CPU at rest, ms/s"] = round(taken_s, 3) / form.idle_s * 1e3
        # The unique set size: pages that are shared with the services would be there without the supervisor.
        figures["memory of its own, MB"] = supervisor.memory_full_info().uss / 1e6
        victim = _child(supervisor, names()[0])
        if victim is None:
            raise NotHere("the first service does not run")
        begun_s = time.perf_counter()
        victim.send_signal(signal.SIGKILL)

        def is_back() -> bool:
            found = _child(supervisor, names()[0])
            return found is not None and found.pid != victim.pid

        _until(is_back, "the killed service")
        figures["new process after a kill, ms"] = (time.perf_counter() - begun_s) * 1e3
    return figures


def measure(form: Form, place: Path) -> list[FigureTable]:
    """Return the table that compares the supervisors."""
    found = FigureTable(
        f"Supervisors of {SERVICES} idle services",
        "this project's supervisor",
        text="CPU and memory are those of the supervisor alone, without the services.",
    )
    place.mkdir(parents=True)
    install_sleepers(place)
    ways: dict[str, Callable[[], dict[str, float]]] = {}

    def ours() -> dict[str, float]:
        stream = f"bench-{secrets.token_hex(4)}"
        return one_round(_ours(place, stream), place, stream, form)

    ways["this project's supervisor"] = ours
    try:
        program = supervisord(place)
    except NotHere as error:
        found.row("supervisord").note = f"{NOT_HERE}: pip could not install supervisor {VERSION}: {error}"
    else:

        def theirs() -> dict[str, float]:
            stream = f"bench-{secrets.token_hex(4)}"
            return one_round(_theirs(place, stream, program), place, stream, form)

        ways[f"supervisord {VERSION}"] = theirs
    take_turns(found, ways, form.hand_over_rounds)
    return [found]
