"""The end of a process that has just used the storage."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from services.common import client_threads
from tests.support import ROOT

PR_SET_NAME = 15
LARGE_BYTES = 300_000_000
PROGRAM = """
import asyncio, sys
from services.common.remote_config import StorageSection
from services.common.storage import Storage

storage = Storage(StorageSection(url=f"file://{sys.argv[1]}"))
asyncio.run(storage.put("frames/one", b"pixels"))
"""
RUNS = 16
"""Without the wait, about one run in five was aborted."""


def run_as(name: str, data: bytes, named: threading.Event) -> None:
    """Work for a while without the interpreter's lock, in a thread of this name."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())
    named.set()
    hashlib.sha256(data)


@pytest.mark.parametrize(("name", "is_awaited"), [(client_threads.CLIENT_THREAD, True), ("another", False)])
def test_only_the_threads_of_the_client_are_awaited(name: str, is_awaited: bool) -> None:
    named = threading.Event()
    thread = threading.Thread(target=run_as, args=(name, bytes(LARGE_BYTES), named))
    thread.start()
    assert named.wait(10)
    client_threads.wait_until_idle()
    assert thread.is_alive() != is_awaited
    thread.join()


def test_a_thread_that_never_sleeps_delays_the_end_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_threads, "PATIENCE_S", 0.02)
    named = threading.Event()
    thread = threading.Thread(target=run_as, args=(client_threads.CLIENT_THREAD, bytes(LARGE_BYTES), named))
    thread.start()
    assert named.wait(10)
    client_threads.wait_until_idle()
    assert thread.is_alive()
    thread.join()


@pytest.mark.long
def test_programs_that_end_after_a_write_are_not_aborted(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ended = [subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False) for _ in range(RUNS)]
    assert [(end.returncode, end.stderr) for end in ended] == [(0, "")] * RUNS
