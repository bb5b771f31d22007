"""The storage that all hosts share: a folder on a volume, or a bucket of an S3 server.

The client is obstore; docs/decisions/0005-the-relay-on-rabbitmq-and-obstore.md says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
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

from services.common.client_threads import end_when_idle
from services.common.credentials import MissingPassword
from services.common.object_folder import ObjectFolder
from services.common.reference import Address
from services.common.remote_config import StorageSection
from services.common.service import UnusableSetting

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig

CONNECT_TIMEOUT_S: Final = 3
REFUSALS: Final = 3
"""Error responses of the server after which another address is tried."""
_LISTED_AT_ONCE: Final = 500
_DELETED_AT_ONCE: Final = 32
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
    """The configured storage. All methods but :meth:`write` run in an event loop and are safe to cancel.

    Raises:
        UnusableSetting: The section names no storage, or one that is unusable.
    """

    def __init__(self, section: StorageSection) -> None:
        if section.url is None:
            raise UnusableSetting("no storage is named: set storage.url to file:///FOLDER or s3://BUCKET")
        self.url = section.url
        self._timeout_s = section.timeout_s
        self._folder: ObjectFolder | None = None
        end_when_idle()
        try:
            self._store: LocalStore | S3Store = self._open(section)
        except MissingPassword as error:
            raise UnusableSetting(f"storage: {error}") from None
        except (BaseError, OSError, ValueError) as error:
            raise UnusableSetting(f"storage.url {section.url}: {_reason(error)}") from None

    def _open(self, section: StorageSection) -> LocalStore | S3Store:
        parts = urlsplit(self.url)
        if parts.scheme == "file":
            self._folder = ObjectFolder(Path(unquote(parts.path)))
            store = LocalStore(prefix=self._folder.root, mkdir=True)
            self._folder.share_with_group()
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
            data: Its bytes, which must not change until this returns, or for longer if it is cancelled.
            durable: Whether an object in a folder must survive a power failure. An S3 server ensures it in any case.

        Raises:
            StorageUnavailable: The object could not be written.
        """
        what = f"{address} is not written"
        try:
            if durable and self._folder is not None:
                # Not by obstore: it would write in one thread, and the flush would require another one.
                await self._try(asyncio.to_thread(self._folder.write, address, data, durable=True), what)
            else:
                # One request, so that readers see the whole object or none.
                await self._try(obstore.put_async(self._store, address, data, use_multipart=False), what)
        except ObjectMissing:  # a concurrent delete removed the empty folder
            raise StorageUnavailable(f"{what}: its folder is gone") from None

    @property
    def is_folder(self) -> bool:
        """Whether the storage is a folder, so that :meth:`write` is possible."""
        return self._folder is not None

    def write(self, address: str, data: bytes | memoryview, *, durable: bool = False) -> None:
        """Write an object to a folder as :meth:`put` does, but in the calling thread, which waits for the disk.

        Raises:
            StorageUnavailable: The object could not be written.
        """
        assert self._folder is not None
        try:
            self._folder.write(address, data, durable=durable)
        except OSError as error:
            raise StorageUnavailable(f"{address} is not written: {_reason(error)}") from None

    async def has(self, address: str, size_bytes: int) -> bool:
        """Return whether an object of this size exists.

        Raises:
            StorageUnavailable: The storage failed.
        """
        try:
            found = await self._try(obstore.head_async(self._store, address), f"{address} is not looked up")
        except ObjectMissing:
            return False
        return bool(found["size"] == size_bytes)

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
            StorageUnavailable: An object could not be removed. Others may have been.
        """
        if self._folder is not None:
            # All in one call: for each object, obstore's hand-over to a thread costs several times the removal.
            await self._try(asyncio.to_thread(self._folder.remove, addresses), "objects are not removed")
            return
        # One request for each object, because not every S3 server knows the request that removes several.
        for first in range(0, len(addresses), _DELETED_AT_ONCE):
            removals = map(self._delete, addresses[first : first + _DELETED_AT_ONCE])
            for failure in await asyncio.gather(*removals, return_exceptions=True):
                if failure is not None:
                    raise failure

    async def _delete(self, address: str) -> None:
        with contextlib.suppress(ObjectMissing):
            await self._try(obstore.delete_async(self._store, address), f"{address} is not removed")

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
        return await asyncio.to_thread(self._folder.remove_staged, prefix, time.time() - older_than_s)

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
