"""The futex wakes other processes, and never sleeps on a word that has changed."""

from __future__ import annotations

import subprocess
import sys
import threading

from framebus.shm import segment as shm
from framebus.shm.futex import sleep_while, wake_all

WAITER = """
import sys
from framebus.shm import segment as shm
from framebus.shm.futex import sleep_while
segment = shm.attach(sys.argv[1])
print("ready", flush=True)
while segment.words32[32] == 0:
    sleep_while(segment.address + 128, 0, 20_000_000_000)
print(segment.words32[32], flush=True)
"""


def test_a_wake_reaches_a_read_only_map_of_another_process(stream: str) -> None:
    segment = shm.create(f"framebus.{stream}.ring", 4096, 0o640)
    with subprocess.Popen([sys.executable, "-c", WAITER, segment.name], stdout=subprocess.PIPE) as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == b"ready\n"
        segment.words32[32] = 5
        wake_all(segment.address + 128)
        assert waiter.stdout.readline() == b"5\n"
    segment.unlink()


def test_a_word_that_has_changed_is_not_slept_on(stream: str) -> None:
    segment = shm.create(f"framebus.{stream}.ring", 4096, 0o640)
    segment.words32[32] = 1
    done = threading.Event()

    def wait() -> None:
        sleep_while(segment.address + 128, 0, 100_000_000_000)
        done.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert done.wait(10)
    thread.join()
    segment.unlink()
