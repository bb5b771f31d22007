"""The storage that all hosts share: a folder on a volume, or a bucket of an S3 server.

The client is obstore; docs/decisions/0005-the-relay-on-rabbitmq-and-obstore.md says why.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, GenericError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from services.common.credentials import MissingPassword
from services.common.reference import Address
from services.common.remote_config import StorageSection
from services.common.service import UnusableSetting

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig

CONNECT_TIMEOUT_S: Final = 3
REFUSALS: Final = 3
"""Error responses of the server after which another address is tried."""
_STAGED: Final = re.compile(r"#\d+$")
"""Suffix of the temporary files to which obstore writes objects in a folder before it renames them."""
_LISTED_AT_ONCE: Final = 500
_XML: Final = re.compile(r"<\?xml.*?<Code>(\w+)</Code>.*", re.DOTALL)
"""The XML body of an S3 server's error, and the error code in it."""
_REFUSED: Final = (UnauthenticatedError, PermissionDeniedError, PermissionError)


class StorageError(Exception):
    """An operation of the storage failed; the message says which, and why."""


class StorageUnavailable(StorageError):
    """The storage cannot be reached, is full, or failed. A retry may succeed."""

    def __init__(self, reason: str, *, answered: bool = False) -> None:
        super().__init__(reason)
        self.answered = answered
        """Whether the server answered with an error response."""


class ObjectMissing(StorageError):
    """The object does not exist."""


class ObjectDamaged(StorageError):
    """The object does not match its reference."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object found by :meth:`Storage.list`."""

    address: str
    size_bytes: int
    modified_s: float
    """Time of the last write, in seconds since 1970, by the clock of the storage."""


class Storage:
    """The configured storage. All methods run in an event loop and are safe to cancel.

    Raises:
        UnusableSetting: The section names no storage, or one that is unusable.
    """

    def __init__(self, section: StorageSection) -> None:
        if section.url is None:
            raise UnusableSetting("no storage is named: set storage.url to file:///FOLDER or s3://BUCKET")
        self.url = section.url
        self._timeout_s = section.timeout_s
        self._folder: Path | None = None
        try:
            self._store: LocalStore | S3Store = self._open(section)
        except MissingPassword as error:
            raise UnusableSetting(f"storage: {error}") from None
        except (BaseError, OSError, ValueError) as error:
            raise UnusableSetting(f"storage.url {section.url}: {_reason(error)}") from None

    def _open(self, section: StorageSection) -> LocalStore | S3Store:
        parts = urlsplit(self.url)
        if parts.scheme == "file":
            self._folder = Path(unquote(parts.path))
            store = LocalStore(prefix=self._folder, mkdir=True)
            _share_with_group(self._folder)
            return store
        client: ClientConfig = {
            "timeout": timedelta(seconds=section.timeout_s),
            "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, section.timeout_s)),
            # Frames travel without TLS only if the operator has written http:.
            "allow_http": (section.endpoint or "").startswith("http:"),
        }
        if section.ca_file is not None:
            client["root_certificate"] = section.ca_file.read_bytes()
        keys: dict[str, Any] = {}
        if section.endpoint is not None:
            keys["endpoint"] = section.endpoint.rstrip("/")
        if (secret := section.secret_key()) is not None:
            keys |= {"access_key_id": section.access_key_id, "secret_access_key": secret}
        # Limit the library's silent retries: the services retry by themselves, and log it.
        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            region=section.region,
            client_options=client,
            retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=section.timeout_s)},
            **keys,
        )

    async def put(self, address: str, data: bytes | memoryview, *, durable: bool = False) -> None:
        """Write an object atomically, without copying the data.

        Args:
            address: Key of the object.
            data: Its bytes, which must not change until this returns.
            durable: Whether an object in a folder must survive a power failure. An S3 server ensures it in any case.

        Raises:
            StorageUnavailable: The object could not be written.
        """
        what = f"{address} is not written"
        try:
            # One request, so that readers see the whole object or none.
            await self._try(obstore.put_async(self._store, address, data, use_multipart=False), what)
            if durable and self._folder is not None:
                await self._try(asyncio.to_thread(_sync, self._folder / address), what)
        except ObjectMissing:  # a concurrent delete removed the empty folder
            raise StorageUnavailable(f"{what}: its folder is gone") from None

    async def get(self, address: str, *, max_bytes: int) -> memoryview:
        """Read an object.

        Raises:
            ObjectMissing: The object does not exist.
            ObjectDamaged: It is larger than ``max_bytes``.
            StorageUnavailable: It could not be read.
        """
        what = f"{address} is not read"
        found = await self._try(obstore.get_async(self._store, address), what)
        # Check the size before the body is read into memory.
        if found.meta["size"] > max_bytes:
            raise ObjectDamaged(f"{address} has {found.meta['size']} bytes, and its reference says {max_bytes}")
        # obstore's Bytes supports the buffer protocol, which type checkers know only from Python 3.12 on.
        return memoryview(cast("bytes", await self._try(found.bytes_async(), what)))

    async def fetch(self, reference: Address) -> memoryview:
        """Read the object of a reference, and verify its size and SHA-256.

        Raises:
            ObjectMissing, StorageUnavailable: As :meth:`get`.
            ObjectDamaged: Its size or SHA-256 differs from the reference.
        """
        data = await self.get(reference.address, max_bytes=reference.size_bytes)
        # In a thread, because hashing megabytes would block the event loop.
        found = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        if len(data) != reference.size_bytes or found != reference.sha256:
            raise ObjectDamaged(
                f"{reference.address} has {len(data)} bytes of SHA-256 {found[:12]}…, and its reference says "
                f"{reference.size_bytes} bytes of {reference.sha256[:12]}…"
            )
        return data

    async def delete(self, addresses: Sequence[str]) -> None:
        """Remove objects. Missing objects are ignored.

        Raises:
            StorageUnavailable: An object could not be removed.
        """
        for address in addresses:
            try:
                await self._try(obstore.delete_async(self._store, address), f"{address} is not removed")
            except ObjectMissing:
                continue
            if self._folder is not None:
                await asyncio.to_thread(_remove_empty_folders, self._folder, self._folder / address)

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield every object whose address begins with a prefix. The prefix must end with ``/``.

        Raises:
            StorageUnavailable: The objects could not be listed.
        """
        # In batches, so that a bucket with millions of results is never held in memory.
        batches = obstore.list(self._store, prefix=prefix, chunk_size=_LISTED_AT_ONCE)
        while True:
            try:
                batch = await self._try(batches.__anext__(), f"{prefix} is not listed")
            except StopAsyncIteration:
                return
            for found in batch:
                yield _listed(found)

    async def folders(self, prefix: str) -> tuple[Sequence[str], Sequence[Listed]]:
        """Return the next parts of the addresses that begin with a prefix, without the objects below them.

        Args:
            prefix: It must end with ``/``.

        Returns:
            The prefixes that are longer by one part, each with ``/`` at its end, and the objects that have no further
            part.

        Raises:
            StorageUnavailable: They could not be listed.
        """
        found = await self._try(
            obstore.list_with_delimiter_async(self._store, prefix=prefix), f"{prefix} is not listed"
        )
        return [f"{folder}/" for folder in found["common_prefixes"]], [_listed(one) for one in found["objects"]]

    async def remove_staged(self, prefix: str, older_than_s: float) -> int:
        """Remove what writers left in a folder that died while they wrote an object: temporary files, empty folders.

        Args:
            prefix: Prefix of the addresses to search.
            older_than_s: Least age of the files to remove; younger ones may belong to a live writer.

        Returns:
            Number of removed files. It is 0 for an S3 server, where one request writes an object atomically.
        """
        if self._folder is None:
            return 0
        return await asyncio.to_thread(_remove_staged, self._folder, self._folder / prefix, time.time() - older_than_s)

    async def _try(self, request: Any, what: str) -> Any:
        try:
            async with asyncio.timeout(2 * self._timeout_s):  # the client may retry once by itself
                return await request
        except TimeoutError:
            raise StorageUnavailable(f"{what}: {self.url} does not answer") from None
        except (BaseError, OSError) as error:
            reason = _reason(error)
            if "NoSuchBucket" in reason:
                raise StorageUnavailable(f"{what}: there is no bucket {self.url}: create it") from None
            if isinstance(error, (NotFoundError, FileNotFoundError)):
                raise ObjectMissing(f"{what}: there is no such object in {self.url}") from None
            # For a failed list, obstore raises a generic error, so look for the status code in its text.
            if isinstance(error, _REFUSED) or "status code: 403" in reason or "status code: 401" in reason:
                raise StorageUnavailable(f"{what}: {self.url} refuses it: {reason}") from None
            # A server that answers with an error may fail at this address only, as another_address() explains.
            raise StorageUnavailable(f"{what}: {reason}", answered="status code: 5" in reason) from None


def _listed(found: ObjectMeta) -> Listed:
    return Listed(found["path"], found["size"], found["last_modified"].timestamp())


def another_address(address: str, refusals: int) -> str:
    """Return the address for the next attempt to write an object, after ``refusals`` error responses.

    A server that was killed during a write may fail at that address until it is repaired, but work at all others.
    """
    return address if refusals < REFUSALS else f"{address}.{refusals}"


def _reason(error: Exception) -> str:
    """Return the message of an obstore error, without the debug output that follows it."""
    text = _XML.sub(r"\1", str(error).partition("\n\nDebug source")[0])
    return " ".join(text.split())[:300] if isinstance(error, (GenericError, BaseError)) or text else repr(error)


def _share_with_group(folder: Path) -> None:
    """If the folder has the setgid bit, allow its group to write everything that this process creates from now on.

    Services of several users remove each other's objects, which requires write access to folders that others created.
    obstore creates folders and files with the process's umask, so change the umask. The setgid bit marks a folder as
    shared by its group; for other folders, the umask stays as it is.
    """
    if folder.stat().st_mode & stat.S_ISGID:
        umask = os.umask(0o077)
        os.umask(umask & ~stat.S_IRWXG)


def _sync(path: Path) -> None:
    """Flush an object and its directory entry to the disk."""
    # The file's data and the folder's entry are separate: without the second, the object may be gone after a power cut.
    for place, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        try:
            descriptor = os.open(place, flags)
        except FileNotFoundError:
            return  # a consumer has already removed it
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_empty_folders(root: Path, path: Path) -> None:
    """Remove the empty folders above a deleted object, but keep those of its kind and stream."""
    for folder in path.parents:
        if len(folder.relative_to(root).parts) <= 2:
            return
        try:
            folder.rmdir()
        except OSError:  # not empty, or already gone
            return


def _remove_staged(root: Path, folder: Path, before_s: float) -> int:
    removed = 0
    # From the innermost folders outwards, so that a folder is empty when its turn comes.
    for place, _folders, names in os.walk(folder, topdown=False):
        for name in filter(_STAGED.search, names):
            path = Path(place, name)
            try:
                if path.stat().st_mtime < before_s:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue  # its writer has renamed it, or another sweep has removed it
        _remove_empty_folders(root, Path(place, "any"))
    return removed
