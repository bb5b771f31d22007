"""framebus: a zero-copy shared-memory frame pipeline for the containers of one host.

A :class:`Publisher` renders frames straight into a ring buffer in /dev/shm; any number of :class:`Subscriber` map them
read-only, in other processes and containers, without a copy.
"""

from framebus.bus import (
    Frame,
    FrameFormat,
    Loan,
    Publisher,
    PublisherStatistics,
    Subscriber,
    SubscriberStatistics,
)
from framebus.errors import (
    AlreadyInUse,
    Closed,
    FormatMismatch,
    FramebusError,
    FrameReleased,
    FrameTooLarge,
    InvalidArgument,
    InvalidMetadata,
    InvalidName,
    LayoutMismatch,
    LoanOutstanding,
    NoFreeSlot,
    NotEnoughSharedMemory,
    PermissionDenied,
    ReceiveTimeout,
    ResourceExhausted,
    StreamExists,
    StreamGone,
    StreamNotFound,
    SubscriberLimitReached,
    TooManyLeases,
    UnsupportedEnvironment,
    WrongThread,
)
from framebus.inspect.leftovers import remove_leftovers
from framebus.inspect.streams import StreamInfo, SubscriberInfo, streams
from framebus.ring import backend as _backend
from framebus.ring.frame_header import FrameHeader
from framebus.ring.record import SubscriberRecord
from framebus.shm.paths import companion_path, companion_paths

__version__ = "0.2.0"

backend: str = _backend.name()
"""Which steps of a hand-over are in use: ``c``, the compiled ones, or ``python``."""

__all__ = [
    "AlreadyInUse",
    "Closed",
    "FormatMismatch",
    "Frame",
    "FrameFormat",
    "FrameHeader",
    "FrameReleased",
    "FrameTooLarge",
    "FramebusError",
    "InvalidArgument",
    "InvalidMetadata",
    "InvalidName",
    "LayoutMismatch",
    "Loan",
    "LoanOutstanding",
    "NoFreeSlot",
    "NotEnoughSharedMemory",
    "PermissionDenied",
    "Publisher",
    "PublisherStatistics",
    "ReceiveTimeout",
    "ResourceExhausted",
    "StreamExists",
    "StreamGone",
    "StreamInfo",
    "StreamNotFound",
    "Subscriber",
    "SubscriberInfo",
    "SubscriberLimitReached",
    "SubscriberRecord",
    "SubscriberStatistics",
    "TooManyLeases",
    "UnsupportedEnvironment",
    "WrongThread",
    "backend",
    "companion_path",
    "companion_paths",
    "remove_leftovers",
    "streams",
]
