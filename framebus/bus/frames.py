"""A frame that a subscriber holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import msgpack
import numpy as np
import numpy.typing as npt

from framebus.bus.formats import FrameFormat, Pixels, chroma, luma
from framebus.errors import FrameReleased, LayoutMismatch
from framebus.ring.frame_header import FrameHeader
from framebus.ring.leases import Lease
from framebus.ring.subscriber_ring import read_metadata


class Frame:
    """A frame that the subscriber holds. The publisher cannot reuse its slot while the frame, or any view on it, lives.

    A frame can be used as an array without a copy: by numpy (``numpy.asarray(frame)``), by consumers of DLPack and,
    from Python 3.12 on, of the buffer protocol. Objects that share its memory hold the slot too.
    """

    __slots__ = {  # with the descriptions that help() shows
        "_lease": "",
        "_metadata": "",
        "_pixels": "",
        "header": "The slot's header, which describes the frame.",
        "skipped": "Frames missed since the previous one.",
    }

    def __init__(self, lease: Lease) -> None:
        self._lease: Lease | None = lease
        self._pixels: Pixels | None = None
        self._metadata: Mapping[str, Any] | None = None
        self.header: FrameHeader = lease.header
        """The slot's header, which describes the frame."""
        self.skipped: int = lease.skipped
        """Frames missed since the previous one."""

    @property
    def pixels(self) -> Pixels:
        """Read-only, C-contiguous array on the slot itself, of the format's shape.

        Raises:
            FrameReleased: The frame was released, or belongs to the parent process.
        """
        lease = self._lease
        if lease is None or lease.is_inherited:  # hot path: avoids a call
            lease = self._held()
        # One array for each frame: its base is the lease, so every view on it holds the slot.
        if self._pixels is None:
            self._pixels = np.asarray(lease)
        return self._pixels

    @property
    def luma(self) -> Pixels:
        """Read-only view on the luma of a frame in ``nv12`` or ``i420``, of shape ``(height, width)``.

        Raises:
            FrameReleased: The frame was released, or belongs to the parent process.
            InvalidArgument: The frame is not in ``nv12`` or ``i420``.
        """
        return luma(self.pixels, self.format)

    @property
    def chroma(self) -> Pixels:
        """Read-only view on the chroma: ``(height // 2, width // 2, 2)`` in ``nv12``, ``(2, …)`` first in ``i420``.

        Raises:
            FrameReleased: The frame was released, or belongs to the parent process.
            InvalidArgument: The frame is not in ``nv12`` or ``i420``.
        """
        return chroma(self.pixels, self.format)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The map that the publisher attached to the frame.

        Raises:
            FrameReleased: The frame was released before its metadata was read, or belongs to the parent process.
            LayoutMismatch: The metadata is not a msgpack map.
        """
        if self._metadata is None:  # parsed lazily, because many subscribers never read it
            self._metadata = _unpack_metadata(read_metadata(self._held()))
        return self._metadata

    @property
    def sequence(self) -> int:
        """Number of the frame: the first is 1, and each published frame increments it."""
        return self.header.sequence

    @property
    def epoch(self) -> int:
        """Random number that identifies the publisher instance that published the frame."""
        return self.header.epoch

    @property
    def captured_ns(self) -> int:
        """When the frame was captured, CLOCK_MONOTONIC."""
        return self.header.captured_ns

    @property
    def captured_wall_ns(self) -> int:
        """When the frame was captured, nanoseconds since 1970."""
        return self.header.captured_wall_ns

    @property
    def published_ns(self) -> int:
        """When the frame was published, CLOCK_MONOTONIC."""
        return self.header.published_ns

    @property
    def pixel_format(self) -> str:
        """What the channels mean, as the publisher labels them."""
        return self.header.pixel_format

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of :attr:`pixels`."""
        return self.header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values of :attr:`pixels`."""
        return np.dtype(self.header.dtype)

    @property
    def format(self) -> FrameFormat:
        """Format of the frame. A publisher that is opened with it accepts frames like this one."""
        return FrameFormat.from_header(self.header)

    def release(self) -> None:
        """Release the frame. Its slot becomes free when the last view on its pixels goes."""
        self._pixels = None
        self._lease = None

    def _held(self) -> Lease:
        lease = self._lease
        if lease is None:
            raise FrameReleased("the frame was released; keep a view on its pixels, or a copy, to use them longer")
        if lease.is_inherited:
            raise FrameReleased(
                "the frame belongs to the parent process, which may let its slot be written again at any time: copy "
                "what a child needs before the fork, or subscribe in the child"
            )
        return lease

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Pixels:
        pixels = self.pixels
        if dtype is None or np.dtype(dtype) == pixels.dtype:
            return pixels.copy() if copy else pixels
        # numpy 2 passes copy=False if a program must not get a copy.
        if copy is False:
            raise ValueError(f"a frame of {pixels.dtype} cannot be an array of {np.dtype(dtype)} without a copy")
        return pixels.astype(dtype)

    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Export the pixels as a DLPack capsule that is marked as read-only.

        Raises:
            BufferError: The consumer's DLPack is older than 1.0 and does not support read-only memory: pass it
                ``frame.pixels.copy()``.
        """
        pixels = self.pixels.copy() if copy else self.pixels
        try:
            return pixels.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=None)
        except TypeError:
            raise BufferError("numpy before 2.1 cannot export read-only pixels by DLPack: update it, or copy") from None

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU

    def __buffer__(self, flags: int) -> memoryview:
        return self.pixels.data

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a frame is a slot that this process holds, and cannot be pickled: send frame.pixels.copy(), or let the "
            "other process subscribe to the stream"
        )

    def __enter__(self) -> Frame:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()

    def __repr__(self) -> str:
        lease = self._lease
        state = "released" if lease is None else "of the parent process" if lease.is_inherited else "held"
        header = self.header
        return f"<Frame {header.sequence} {header.shape} {self.dtype.name} {header.pixel_format} {state}>"


def _unpack_metadata(packed: memoryview) -> Mapping[str, Any]:
    try:
        # The slot is untrusted, so invalid bytes must become an error of framebus.
        content = msgpack.unpackb(packed) if packed else {}
    except (ValueError, msgpack.UnpackException) as error:
        raise LayoutMismatch(f"the frame's metadata is not msgpack: {error}") from None
    if not isinstance(content, dict):
        raise LayoutMismatch("the frame's metadata is not a map")
    return content
