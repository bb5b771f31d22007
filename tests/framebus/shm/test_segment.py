"""Shared-memory files: created whole or not at all, attached without harm, locked by the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from framebus.errors import LayoutMismatch, NotEnoughSharedMemory, PermissionDenied, StreamNotFound
from framebus.shm import locks, space
from framebus.shm import segment as shm
from tests.support import SHM, faults_of_reading


@pytest.fixture
def name(stream: str) -> str:
    return f"framebus.{stream}.ring"


def test_create_allocates_every_page_with_the_mode_asked_for(name: str) -> None:
    old = os.umask(0o077)
    try:
        segment = shm.create(name, 1 << 20, 0o640)
    finally:
        os.umask(old)
    status = os.stat(SHM / name)
    assert (status.st_mode & 0o777, status.st_size) == (0o640, 1 << 20)
    assert status.st_blocks * 512 >= 1 << 20
    segment.unlink()


def test_create_refuses_a_name_that_is_taken(name: str) -> None:
    segment = shm.create(name, 4096, 0o640)
    segment.buffer[0] = 7
    with pytest.raises(FileExistsError):
        shm.create(name, 4096, 0o640)
    assert segment.buffer[0] == 7
    segment.unlink()


def test_a_too_large_segment_leaves_no_file_and_says_what_to_set(name: str) -> None:
    size = 1 << 50
    with pytest.raises(
        NotEnoughSharedMemory, match=r"^/dev/shm has \d+ MiB free, .* needs 1073741824 MiB: set shm_size"
    ):
        shm.create(name, size, 0o640)
    assert not (SHM / name).exists()


def test_reading_prefaulted_pages_does_not_fault(name: str) -> None:
    part = 4 * space.MIB
    owner = shm.create(name, 3 * part, 0o640)
    reader = shm.attach(name)
    reader.prefault(part, part)
    before, prefaulted, after = np.frombuffer(reader.buffer, np.uint8).reshape(3, part)
    assert faults_of_reading(prefaulted) < 32  # the kernel may have taken some pages back
    assert faults_of_reading(before) > 32
    assert faults_of_reading(after) > 32
    owner.unlink()


def test_attach_does_not_create_or_resize(name: str) -> None:
    with pytest.raises(StreamNotFound):
        shm.attach(name)
    assert not (SHM / name).exists()
    segment = shm.create(name, 8192, 0o640)
    other = shm.attach(name)
    assert os.stat(SHM / name).st_size == other.size == 8192
    with pytest.raises(TypeError):
        other.buffer[0] = 1
    segment.buffer[100] = 9
    assert other.buffer[100] == 9
    segment.unlink()


@pytest.mark.parametrize("content", [b"", b"short"])
def test_attach_refuses_a_file_that_is_too_short(name: str, content: bytes) -> None:
    (SHM / name).write_bytes(content)
    with pytest.raises(LayoutMismatch, match="not a ring"):
        shm.attach(name, min_bytes=4096)
    (SHM / name).unlink()


def test_attach_refuses_a_file_with_holes(name: str) -> None:
    with (SHM / name).open("wb") as file:
        file.truncate(1 << 20)
    with pytest.raises(LayoutMismatch, match="holes"):
        shm.attach(name)
    (SHM / name).unlink()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_attach_rejects_a_path_that_is_not_a_regular_file(name: str, make: Callable[[str], None]) -> None:
    path = str(SHM / name)
    make(path)
    with pytest.raises(LayoutMismatch):
        shm.attach(name)
    os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


def test_locks_conflict_between_opens_and_end_with_the_segment(name: str) -> None:
    writer = shm.create(name, 4096, 0o640)
    reader = shm.attach(name)
    assert writer.try_lock(locks.write_lock(5))
    assert not reader.try_lock(locks.read_lock(5))
    assert reader.is_locked(locks.read_lock(5))
    assert reader.try_lock(locks.read_lock(6))
    assert not writer.try_lock(locks.write_lock(6))
    del reader
    assert writer.try_lock(locks.write_lock(6))
    writer.unlock(locks.unlock(5))
    assert shm.attach(name).try_lock(locks.read_lock(5))
    writer.unlink()


def test_a_killed_holder_frees_its_lock(name: str) -> None:
    segment = shm.create(name, 4096, 0o640)
    code = (
        "import sys; from framebus.shm import locks, segment as s; "
        f"a = s.attach({name!r}); print(a.try_lock(locks.read_lock(9)), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert not segment.try_lock(locks.write_lock(9))
        holder.kill()
        holder.wait()
        assert segment.try_lock(locks.write_lock(9))
    segment.unlink()


def test_a_forked_child_neither_holds_nor_frees_its_parents_locks(name: str) -> None:
    segment = shm.create(name, 4096, 0o640)
    holder = shm.attach(name)
    assert holder.try_lock(locks.read_lock(3))
    command, release = locks.write_lock(3), locks.unlock(3)
    child = os.fork()
    if child == 0:
        holder.unlock(release)
        os._exit(0 if holder.fd == -1 and segment.fd == -1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not segment.try_lock(command)
    holder.close()
    assert segment.try_lock(command)
    segment.unlink()


def test_the_publisher_lock_has_one_holder_and_survives_an_unlink_race(stream: str) -> None:
    name = f"framebus.{stream}.lock"
    first = locks.PublisherLock.acquire(name)
    assert first is not None
    assert (SHM / name).stat().st_mode & 0o777 == 0o600
    assert locks.PublisherLock.acquire(name) is None
    (SHM / name).unlink()
    second = locks.PublisherLock.acquire(name)
    assert second is not None
    first.close()
    assert locks.PublisherLock.acquire(name) is None
    second.close()
    third = locks.PublisherLock.acquire(name)
    assert third is not None
    third.close()
    (SHM / name).unlink()


@pytest.mark.root
def test_a_file_of_another_user_is_an_error_that_names_the_user(stream: str) -> None:
    path = SHM / f"framebus.{stream}.lock"
    path.touch()
    os.chown(path, 12345, 12346)
    with pytest.raises(PermissionDenied, match=r"belongs to user 12345 .* group 12346"):
        locks.PublisherLock.acquire(path.name)
    path.unlink()


@pytest.mark.root
def test_a_ring_closed_to_this_group_names_the_group_to_run_with(name: str) -> None:
    segment = shm.create(name, 4096, 0o640)
    os.chown(SHM / name, 0, 12346)
    code = (
        "import os; from framebus import PermissionDenied; from framebus.shm import segment as s\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        f"try: s.attach({name!r})\nexcept PermissionDenied as error: print(error)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "run this process with group 12346" in answer.stdout
    segment.unlink()


def test_is_current_tells_a_replaced_file(name: str) -> None:
    segment = shm.create(name, 4096, 0o640)
    assert segment.is_current()
    other = shm.create(f"{name}.new", 4096, 0o640)
    other.rename(name)
    assert other.is_current()
    assert not segment.is_current()
    segment.unlink()
    assert (SHM / name).exists()
    other.unlink()
    assert not other.is_current()
