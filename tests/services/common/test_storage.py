"""Objects in a folder and in a bucket: complete or missing, verified, and every failure reported in one sentence."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from services.common.reference import Address
from services.common.remote_config import StorageSection
from services.common.service import UnusableSetting
from services.common.storage import (
    ObjectDamaged,
    ObjectMissing,
    Storage,
    StorageError,
    StorageUnavailable,
    another_address,
)
from tests.s3 import SECRET_KEY, S3Server
from tests.support import ROOT, lacks

Result = TypeVar("Result")
FRAME = "frames/roof/7/42-0f3a.png"
OLD_S = 1_000_000_000.0
NOBODY = 65534


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server whose keys are in the environment."""
    with pytest.MonkeyPatch.context() as patched, S3Server(tmp_path_factory.mktemp("s3")) as server:
        patched.setenv("S3_SECRET", SECRET_KEY)
        patched.setenv("WRONG_SECRET", "wrong")
        yield server


def in_bucket(server: S3Server, **changed: Any) -> Storage:
    return Storage(StorageSection.model_validate(server.section | changed))


def in_folder(folder: Path) -> Storage:
    return Storage(StorageSection(url=f"file://{folder}"))


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return a storage in a folder, and then one in a bucket of a real server."""
    if request.param == "folder":
        return in_folder(tmp_path / "objects")
    return in_bucket(request.getfixturevalue("s3"), url=f"s3://frames/{tmp_path.name}")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


def refusal(kind: type[StorageError], work: Coroutine[Any, Any, object]) -> str:
    """Return the text of the raised error."""
    with pytest.raises(StorageError) as caught:
        asyncio.run(work)
    assert type(caught.value) is kind
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert "<?xml" not in sentence
    assert SECRET_KEY not in sentence
    return sentence


async def listed(storage: Storage, prefix: str) -> dict[str, int]:
    return {found.address: found.size_bytes async for found in storage.list(prefix)}


def address_of(data: bytes, **changed: Any) -> Address:
    fields: dict[str, Any] = {"address": FRAME, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return Address(**(fields | changed))


@pytest.mark.parametrize("durable", [False, True])
def test_an_object_is_fetched_unchanged(storage: Storage, durable: bool) -> None:
    async def work() -> None:
        for data in (b"", b"x", os.urandom(1 << 20)):
            await storage.put(FRAME, data, durable=durable)
            assert bytes(await storage.get(FRAME, max_bytes=len(data))) == data
            assert bytes(await storage.fetch(address_of(data))) == data

    run(work())


def test_a_put_replaces_files_left_by_a_dead_writer(storage: Storage) -> None:
    async def work() -> None:
        await storage.put(FRAME, b"one")
        await storage.put(FRAME, memoryview(b"another"))
        assert await listed(storage, "frames/roof/") == {FRAME: 7}

    run(work())


def test_a_list_contains_all_objects_below_a_prefix(storage: Storage) -> None:
    async def work() -> None:
        wanted = {f"frames/roof/{epoch}/{sequence}-0.png": sequence for epoch in (1, 2) for sequence in range(1, 30)}
        for address, size in wanted.items():
            await storage.put(address, bytes(size))
        for other in ("frames/roofs/1/1-0.png", "results/roof/1/1/m/0"):
            await storage.put(other, b"x")
        assert await listed(storage, "frames/roof/") == wanted
        assert len(await listed(storage, "frames/roof/1/")) == 29
        assert await listed(storage, "frames/none/") == {}

    run(work())


def test_a_deleted_object_is_gone_and_may_be_deleted_again(storage: Storage) -> None:
    async def work() -> None:
        await storage.put(FRAME, b"x")
        await storage.put(f"{FRAME}.3", b"x")
        await storage.delete([FRAME, "frames/roof/7/43-0.png", FRAME])
        assert await listed(storage, "frames/roof/") == {f"{FRAME}.3": 1}
        with pytest.raises(ObjectMissing):
            await storage.get(FRAME, max_bytes=9)

    run(work())


def test_has_compares_the_size_of_an_object(storage: Storage) -> None:
    async def work() -> None:
        await storage.put(FRAME, b"x")
        assert await storage.has(FRAME, 1)
        assert not await storage.has(FRAME, 2)
        assert not await storage.has(f"{FRAME}.3", 1)

    run(work())


def test_a_missing_object_has_an_error_of_its_own(storage: Storage) -> None:
    assert "no such object" in refusal(ObjectMissing, storage.get(FRAME, max_bytes=9))
    assert FRAME in refusal(ObjectMissing, storage.fetch(address_of(b"x")))


@pytest.mark.parametrize(
    "changed", [{"sha256": "0" * 64}, {"size_bytes": 4}, {"size_bytes": 6}, {"size_bytes": 0}], ids=str
)
def test_an_object_that_is_not_what_its_reference_says_is_damaged(storage: Storage, changed: dict[str, Any]) -> None:
    async def work() -> None:
        await storage.put(FRAME, b"12345")
        await storage.fetch(address_of(b"12345", **changed))

    assert "its reference says" in refusal(ObjectDamaged, work())


def test_an_object_that_is_too_large_is_not_read(storage: Storage) -> None:
    async def work() -> None:
        await storage.put(FRAME, bytes(100))
        await storage.get(FRAME, max_bytes=99)

    assert "has 100 bytes" in refusal(ObjectDamaged, work())


def test_another_address_is_tried_after_some_refusals() -> None:
    addresses = [another_address(FRAME, refusals) for refusals in range(6)]
    assert addresses[0] == FRAME
    assert len(set(addresses)) > 2
    assert all(address.startswith(FRAME) for address in addresses)


# Folders


def test_a_missing_folder_is_created(tmp_path: Path) -> None:
    run(in_folder(tmp_path / "a" / "b").put(FRAME, b"x"))
    assert (tmp_path / "a" / "b" / FRAME).read_bytes() == b"x"
    run(Storage(StorageSection(url=f"file://{tmp_path}/d%20e")).put(FRAME, b"x"))
    assert (tmp_path / "d e" / FRAME).read_bytes() == b"x"


def test_a_missing_storage_is_reported_with_the_setting() -> None:
    with pytest.raises(UnusableSetting, match=r"set storage\.url to file:///FOLDER or s3://BUCKET"):
        Storage(StorageSection())


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnusableSetting, match=f"storage.url file://{tmp_path}/file{below}: ") as caught:
        in_folder(Path(f"{tmp_path}/file{below}"))
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_an_inner_folder_is_reported(tmp_path: Path) -> None:
    storage = in_folder(tmp_path)
    (tmp_path / "frames").write_bytes(b"")
    assert "Not a directory" in refusal(StorageUnavailable, storage.put(FRAME, b"x"))


def test_a_folder_that_is_removed_meanwhile_is_created_again(tmp_path: Path) -> None:
    storage = in_folder(tmp_path / "objects")
    (tmp_path / "objects").rmdir()
    run(storage.put(FRAME, b"x", durable=True))
    assert run(listed(storage, "frames/roof/")) == {FRAME: 1}


@pytest.mark.root
def test_a_folder_without_write_permission_is_reported(tmp_path: Path) -> None:
    storage = in_folder(tmp_path / "objects")
    os.seteuid(NOBODY)
    try:
        told = refusal(StorageUnavailable, storage.put(FRAME, b"x"))
    finally:
        os.seteuid(0)
    assert told.startswith(f"{FRAME} is not written: ")
    assert "ermission denied" in told


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a file system of this size."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs"]
    mounted = subprocess.run(["mount", *options, str(folder)], check=False, capture_output=True, text=True)
    if mounted.returncode:
        lacks(f"{mounted.stderr.strip()}: a test needs a small file system: run it with the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.root
def test_a_full_folder_is_reported_and_keeps_no_partial_object(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        storage = in_folder(disk / "objects")
        run(storage.put(FRAME, bytes(500_000)))
        other = "frames/roof/7/43-0.png"
        assert "No space left" in refusal(StorageUnavailable, storage.put(other, bytes(900_000)))
        assert run(listed(storage, "frames/roof/")) == {FRAME: 500_000}
        run(storage.delete([FRAME]))
        run(storage.remove_staged("frames/roof", -60))
        run(storage.put(other, bytes(900_000), durable=True))


def test_a_failed_flush_to_the_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    assert "Input/output error" in refusal(StorageUnavailable, in_folder(tmp_path).put(FRAME, b"x", durable=True))


def test_files_of_a_dead_writer_are_removed_and_those_of_a_live_one_stay(tmp_path: Path) -> None:
    storage = in_folder(tmp_path)
    run(storage.put(FRAME, b"x"))
    place = (tmp_path / FRAME).parent
    for name in ("43-0.png#1", "44-0.png#12"):
        (place / name).write_bytes(b"half")
    os.utime(place / "43-0.png#1", (OLD_S, OLD_S))
    os.utime(tmp_path / FRAME, (OLD_S, OLD_S))
    assert run(listed(storage, "frames/roof/")) == {FRAME: 1}
    assert run(storage.remove_staged("frames/roof", 60)) == 1
    assert sorted(path.name for path in place.iterdir()) == ["42-0f3a.png", "44-0.png#12"]
    assert run(storage.remove_staged("frames/none", 60)) == 0


def test_empty_folders_are_removed_but_not_those_of_a_stream(tmp_path: Path) -> None:
    storage = in_folder(tmp_path)
    result = "results/roof/7/42/planted_1/0f3a"
    for address in (FRAME, "frames/roof/7/43-0.png", result):
        run(storage.put(address, b"x"))
    run(storage.delete([FRAME]))
    assert (tmp_path / "frames/roof/7").is_dir()
    run(storage.delete(["frames/roof/7/43-0.png", result]))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "frames", "frames/roof", "results", "results/roof",
    ]  # fmt: skip


def most_memory_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
def test_a_put_does_not_copy(tmp_path: Path) -> None:
    size = 32 << 20
    code = f"""
import numpy as np, os, pathlib
from tests.services.common.test_storage import FRAME, in_folder, most_memory_kb, run
storage = in_folder(pathlib.Path({str(tmp_path)!r}))
run(storage.put(FRAME, b"x"))
data = np.ones({size}, np.uint8)
before = most_memory_kb()
run(storage.put(FRAME, data.data))
print(most_memory_kb() - before, flush=True)
os._exit(0)  # threads of obstore may outlive the interpreter, and abort it
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert int(told) < size // 1024 // 2
    assert (tmp_path / FRAME).stat().st_size == size


# Buckets


@pytest.fixture
def requests(s3: S3Server) -> Callable[..., list[Coroutine[Any, Any, object]]]:
    """Send one request of each kind to a storage with changed settings."""

    def make(**changed: Any) -> list[Coroutine[Any, Any, object]]:
        storage = in_bucket(s3, **changed)
        return [
            storage.put(FRAME, b"x"),
            storage.get(FRAME, max_bytes=9),
            listed(storage, "frames/roof/"),
            storage.delete([FRAME]),
        ]

    return make


@pytest.mark.slow
def test_wrong_keys_are_reported(requests: Callable[..., list[Coroutine[Any, Any, object]]]) -> None:
    for request in requests(secret_key_env="WRONG_SECRET"):
        told = refusal(StorageUnavailable, request)
        assert "s3://frames/site refuses it" in told
        assert "SignatureDoesNotMatch" in told


@pytest.mark.slow
def test_a_missing_bucket_is_reported(requests: Callable[..., list[Coroutine[Any, Any, object]]]) -> None:
    for request in requests(url="s3://missing/site"):
        assert "there is no bucket s3://missing/site: create it" in refusal(StorageUnavailable, request)


@pytest.mark.slow
def test_an_unreachable_server_is_reported(requests: Callable[..., list[Coroutine[Any, Any, object]]]) -> None:
    for request in requests(endpoint="http://127.0.0.1:1", timeout_s=0.3):
        assert "http://127.0.0.1:1" in refusal(StorageUnavailable, request)


@pytest.mark.slow
def test_a_server_that_hangs_times_out(
    s3: S3Server, requests: Callable[..., list[Coroutine[Any, Any, object]]]
) -> None:
    s3.signal(signal.SIGSTOP)
    try:
        for request in requests(timeout_s=0.3):
            refusal(StorageUnavailable, request)
    finally:
        s3.signal(signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"secret_key_env": "NOT_SET_ANYWHERE"}, "the environment variable NOT_SET_ANYWHERE"),
        ({"ca_file": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"ca_file": "/etc/hostname"}, "No certificates found"),
    ],
)
def test_an_unusable_setting_is_reported(s3: S3Server, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UnusableSetting, match=told) as caught:
        in_bucket(s3, **changed)
    assert "\n" not in str(caught.value)


def test_an_array_can_be_stored(storage: Storage) -> None:
    pixels = np.arange(12, dtype=np.uint8)
    run(storage.put(FRAME, pixels.data))
    assert bytes(run(storage.get(FRAME, max_bytes=12))) == pixels.tobytes()
