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
from framebus.curve import CurveServer
from framebus.directory import StreamInfo, SubscriberInfo, remove_leftovers, streams
from framebus.errors import (
    Closed,
    FramebusError,
    FrameReleased,
    FrameTooLarge,
    InvalidKey,
    InvalidName,
    LayoutMismatch,
    LoanOutstanding,
    NotEnoughSharedMemory,
    PermissionDenied,
    ReceiveTimeout,
    RingFull,
    StreamExists,
    StreamGone,
    StreamNotFound,
    TooManyLeases,
    UnprotectedEndpoint,
    WrongThread,
)
from framebus.segment import companion_path, companion_paths

__version__ = "0.1.0"

__all__ = [
    "Closed",
    "CurveServer",
    "Frame",
    "FrameFormat",
    "FrameReleased",
    "FrameTooLarge",
    "FramebusError",
    "InvalidKey",
    "InvalidName",
    "LayoutMismatch",
    "Loan",
    "LoanOutstanding",
    "NotEnoughSharedMemory",
    "PermissionDenied",
    "Publisher",
    "PublisherStatistics",
    "ReceiveTimeout",
    "RingFull",
    "StreamExists",
    "StreamGone",
    "StreamInfo",
    "StreamNotFound",
    "Subscriber",
    "SubscriberInfo",
    "SubscriberStatistics",
    "TooManyLeases",
    "UnprotectedEndpoint",
    "WrongThread",
    "companion_path",
    "companion_paths",
    "remove_leftovers",
    "streams",
]
