"""The work on one frame of a queue: fetch it, detect its objects, store the result.

Every request to the storage is repeated while the storage is unavailable, until the frame's deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

import numpy.typing as npt
import structlog

from services.common import geometry
from services.common.detections import MAX_MESSAGE_BYTES, Detections, pack
from services.common.frame_codec import decode
from services.common.recording import RecordedFrame
from services.common.reference import RESULTS, FrameReference, ResultReference, check_address, result_prefix
from services.common.status import Stage
from services.common.storage import ObjectDamaged, ObjectMissing, Storage, StorageUnavailable, another_address
from services.detector.config import DetectorSection

RETRY_S: Final = (0.2, 5.0)
"""Shortest and longest wait before a retry."""
_RESULT_NAME: Final = re.compile(r"([0-9a-f]{16})(\.\d+)?")
"""Last part of a result's address: a prefix of its SHA-256, and a number if the first addresses failed."""

Look = Callable[[RecordedFrame], Detections]

log = structlog.get_logger()


class TooLate(Exception):
    """The deadline for this frame's result has passed."""


class FrameProcessor:
    """Fetches frames, has their objects detected, and stores the results. Owned by one event loop.

    Args:
        section: The detector's configuration.
        storage: Storage of frames and results.
        look: Detects the objects of a frame; called by the executor.
        executor: Runs ``look``, one frame at a time.
        model: Name and version of the model.
    """

    def __init__(
        self, section: DetectorSection, storage: Storage, look: Look, executor: Executor, *, model: str
    ) -> None:
        self.fetched = Stage()
        self.repeated = 0
        """Frames that were processed before."""
        self.reason = ""
        """Why no frame can be processed; empty while frames can be. The worker also sets it, to the broker's state."""
        self._section = section
        self._storage = storage
        self._look = look
        self._executor = executor
        self._model = model

    async def result(self, reference: FrameReference, *, redelivered: bool) -> ResultReference:
        """Return the reference to a frame's result, after the result has been stored.

        Args:
            reference: The frame.
            redelivered: Whether another worker may have stored its result already.

        Raises:
            TooLate: The frame's deadline has passed.
            BadReference, CannotDecode, ObjectDamaged, ObjectMissing: The frame cannot be processed, by any worker.
        """
        # A worker that died before it acknowledged may have stored a result. Return it, so that a frame has one result.
        if redelivered and (found := await self._found_before(reference)) is not None:
            return found
        check_deadline(reference)
        try:
            data = await self._patiently(reference, self._storage.fetch)
        except ObjectMissing:
            # The relay removes a frame's object once it has seen the result. A duplicate reference, sent by a relay
            # that was killed before the first one was confirmed, then arrives too late.
            if (found := await self._found_before(reference)) is not None:
                return found
            raise
        self.fetched.record(time.time() - reference.captured_wall_ns * 1e-9)
        loop = asyncio.get_running_loop()
        # Decode outside the detection's thread, which processes another prefetched frame meanwhile.
        pixels = await loop.run_in_executor(None, decode, data, reference)
        check_deadline(reference)
        detections = await loop.run_in_executor(self._executor, self._look, frame_of(pixels, reference))
        check_deadline(reference)
        body = pack(detections)
        sha256 = hashlib.sha256(body).hexdigest()
        prefix = self._prefix(reference)
        # The digest in the address ensures that no object is ever replaced by a different one.
        address = f"{prefix}{sha256[:16]}"
        refusals = 0

        async def put(_reference: FrameReference) -> str:
            nonlocal refusals
            chosen = another_address(address, refusals)
            try:
                await self._storage.put(chosen, body, durable=True)
            except StorageUnavailable as error:
                # A server that was killed while it wrote may refuse this address for good, so try another one after
                # some errors.
                refusals += error.answered
                raise
            return chosen

        return self._result_reference(reference, await self._patiently(reference, put), len(body), sha256)

    async def _found_before(self, reference: FrameReference) -> ResultReference | None:
        """Return the result that another worker stored before it died without publishing it, or None."""
        prefix = self._prefix(reference)

        async def find(_reference: FrameReference) -> tuple[str, memoryview] | None:
            async for found in self._storage.list(prefix):
                # Some servers list objects that are being written, or that a dead worker left incomplete.
                name = _RESULT_NAME.fullmatch(found.address.removeprefix(prefix))
                if name is None:
                    continue
                with contextlib.suppress(ObjectMissing, ObjectDamaged):
                    body = await self._storage.get(found.address, max_bytes=MAX_MESSAGE_BYTES)
                    if hashlib.sha256(body).hexdigest().startswith(name[1]):
                        return found.address, body
            return None

        found = await self._patiently(reference, find)
        if found is None:
            return None
        self.repeated += 1
        address, body = found
        return self._result_reference(
            reference, check_address(address, RESULTS), len(body), hashlib.sha256(body).hexdigest()
        )

    def _prefix(self, reference: FrameReference) -> str:
        """Return the prefix of the addresses of a frame's results."""
        return result_prefix(
            reference.stream, reference.epoch, reference.sequence, reference.captured_wall_ns, self._model
        )

    def _result_reference(
        self, reference: FrameReference, address: str, size_bytes: int, sha256: str
    ) -> ResultReference:
        return ResultReference(
            address=address,
            size_bytes=size_bytes,
            sha256=sha256,
            stream=reference.stream,
            epoch=reference.epoch,
            sequence=reference.sequence,
            captured_ns=reference.captured_ns,
            captured_wall_ns=reference.captured_wall_ns,
            model=self._model,
            group=self._section.group,
            instance=self._section.instance,
            frame_address=reference.address,
        )

    async def _patiently(self, reference: FrameReference, request: Any) -> Any:
        """Retry while the storage is unavailable, so that an outage of the storage loses no frame."""
        wait_s = RETRY_S[0]
        while True:
            try:
                answer = await request(reference)
            except StorageUnavailable as error:
                if not self.reason:
                    log.warning("storage unavailable", reason=str(error))
                self.reason = str(error)
                # With a deadline, an outage may take longer than the result is useful.
                check_deadline(reference)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])
            else:
                self.reason = ""
                return answer


def frame_of(pixels: npt.NDArray[Any], reference: FrameReference) -> RecordedFrame:
    """Return a frame that was fetched by reference."""
    return RecordedFrame(
        pixels,
        reference.sequence,
        reference.epoch,
        reference.captured_ns,
        None if reference.geometry is None else {geometry.KEY: reference.geometry},
        reference.pixel_format,
    )


def check_deadline(reference: FrameReference) -> None:
    """Raise :exc:`TooLate` if a frame's deadline has passed."""
    if reference.deadline_wall_ns is not None and time.time_ns() > reference.deadline_wall_ns:
        raise TooLate
