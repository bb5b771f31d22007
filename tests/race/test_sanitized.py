"""The compiled steps under AddressSanitizer and UndefinedBehaviorSanitizer, in the tests of the ring and of the bus.

The tests run in a copy of this checkout whose compiled module is instrumented, so every process that they start has it.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.race.mutants import C_SOURCE, compile_steps, replace_tokens
from tests.support import ROOT, SHM, files_of, lacks

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

COPIED = ("framebus", "tests", "bench")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.so", "results")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g")
TESTS = ("tests/framebus/ring", "tests/framebus/bus", "tests/race/test_hostile.py")
LEFT_OUT_TESTS = (
    "--ignore=tests/framebus/bus/test_api_properties.py",  # long, and its arguments end in Python
    "--ignore=tests/framebus/bus/test_arrivals.py",  # long, and runs no C code
    "--ignore=tests/framebus/bus/test_trust.py",  # its publishers live too briefly for a process that starts so slowly
    "--ignore=tests/framebus/ring/test_backend.py",  # its processes, which start so slowly, take no step
    "--deselect=tests/framebus/ring/test_twins.py::test_the_stub_describes_the_compiled_module",  # long; mypy alone
)
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys", "-m", "not long")
HAND_OVERS = """
import socket, sys
from framebus.ring.frame_header import Description
from framebus.ring.layout import Geometry
from framebus.ring.message import Message
from framebus.ring.publisher_ring import PublisherRing
from framebus.ring.subscriber_ring import SubscriberRing

publisher = PublisherRing(sys.argv[1], Geometry.for_frames(4, 6))
reader = SubscriberRing(sys.argv[1]).reader
ours, theirs = socket.socketpair()
for _ in range(4):  # each slot
    claim = publisher.writer.claim(Description(2, 3, 1, "|u1", "gray").pack())
    publisher.writer.publish(claim, 1, 2, [ours], Message(bytes(25), 0, 8, 9, 17))
    lease = reader.take()
    del lease
ours.close()
theirs.close()
print("done")
"""


def runtime() -> str:
    """AddressSanitizer's library, which must come first in a process whose program was not built with it."""
    command = [*shlex.split(sysconfig.get_config_var("CC")), "-print-file-name=libasan.so"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        lacks("no C compiler: run 'make system-packages'")
    if not Path(found).is_file():
        lacks(f"the C compiler has no AddressSanitizer: install the libasan that belongs to {command[0]}")
    return found


class Answer(NamedTuple):
    """What a program came to."""

    status: int
    output: str
    reports: str
    """What the sanitizers found, in all processes."""


Run = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs Python with the steps of a source in C: ``run(source, *arguments)``."""
    preloaded = runtime()
    reports = Path(tempfile.mkdtemp(prefix="framebus-sanitizer-"))
    reports.chmod(0o1777)  # some tests act as other users, who may not enter pytest's folders
    for folder in COPIED:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=LEFT_OUT)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "FRAMEBUS_BACKEND": "c",
        "LD_PRELOAD": preloaded,
        # No search for leaks: CPython and numpy leave to the kernel what lives as long as the process. Reports go into
        # files, because a child's end may be what a test expects. UndefinedBehaviorSanitizer's can only go to standard
        # error, beside this library.
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports}/address",
        # By default Python cuts objects out of arenas, whose bytes stay valid when an object ends, so that
        # AddressSanitizer would see no use after free and no access behind an object.
        "PYTHONMALLOC": "malloc",
    }

    def run(source: str, *arguments: str) -> Answer:
        compile_steps(source, tmp_path / "framebus/ring/_ring_c.abi3.so", *SANITIZERS)
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550, check=False,
        )  # fmt: skip
        told = [path.read_text() for path in sorted(reports.iterdir())]
        told += [line for line in done.stderr.splitlines() if "runtime error: " in line]
        return Answer(done.returncode, done.stderr + done.stdout, "\n".join(told))

    yield run
    shutil.rmtree(reports)


def test_the_tests_of_ring_and_bus_find_no_fault(run: Run) -> None:
    done = run(C_SOURCE.read_text(), *PYTEST, *TESTS, *LEFT_OUT_TESTS)
    assert done.reports == ""
    assert done.status == 0, done.output
    assert " passed" in done.output.splitlines()[-1]


@pytest.fixture
def left_stream() -> Iterator[str]:
    """A stream name whose files a process may leave that ends as a sanitizer ends one."""
    name = f"test-{secrets.token_hex(6)}"
    yield name
    for file in files_of(name):
        (SHM / file).unlink()


def test_without_a_fault_the_hand_overs_find_none(run: Run, left_stream: str) -> None:
    assert run(C_SOURCE.read_text(), "-c", HAND_OVERS, left_stream) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("piece", "instead", "told"),
    [
        ("uint8_t held[MAX_SLOTS + 1];", "uint8_t held[1];", "runtime error: index"),
        ("(size_t)copy->length);", "(size_t)copy->length + 400);", "AddressSanitizer: heap-buffer-overflow"),
        (
            "Py_DECREF(type); } static int lease_buffer(",
            "Py_DECREF(type); self->slot = 0; } static int lease_buffer(",
            "AddressSanitizer: heap-use-after-free",
        ),
    ],
)
def test_a_fault_is_found(run: Run, left_stream: str, piece: str, instead: str, told: str) -> None:
    done = run(replace_tokens(C_SOURCE.read_text(), piece, instead), "-c", HAND_OVERS, left_stream)
    assert done.status != 0
    assert told in done.reports
