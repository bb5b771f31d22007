"""The futex: a wake is seen across processes, and no event between the look and the sleep is lost."""

from __future__ import annotations

import subprocess
import sys
import threading

from framebus import segment as shm
from framebus.wake import Futex

WAITER = """
import sys
from framebus import segment as shm
from framebus.wake import Futex
segment = shm.attach(sys.argv[1])
futex = Futex(segment.address + 128)
print("ready", flush=True)
while segment.words32[32] == 0:
    futex.wait(0, 20.0)
print(segment.words32[32], flush=True)
"""


def test_a_wake_reaches_a_read_only_map_of_another_process(stream: str) -> None:
    segment = shm.create(f"framebus.{stream}.ring", 4096, 0o640)
    with subprocess.Popen([sys.executable, "-c", WAITER, segment.name], stdout=subprocess.PIPE) as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == b"ready\n"
        segment.words32[32] = 5
        Futex(segment.address + 128).wake()
        assert waiter.stdout.readline() == b"5\n"
    segment.unlink()


def test_a_word_that_has_changed_is_not_slept_on(stream: str) -> None:
    segment = shm.create(f"framebus.{stream}.ring", 4096, 0o640)
    segment.words32[32] = 1
    done = threading.Event()

    def wait() -> None:
        Futex(segment.address + 128).wait(0, 100.0)
        done.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert done.wait(10)
    thread.join()
    segment.unlink()
