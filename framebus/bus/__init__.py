"""The public API: :class:`Publisher`, :class:`Subscriber`, and the frames that they exchange."""

from framebus.bus.formats import FrameFormat
from framebus.bus.frames import Frame
from framebus.bus.loans import Loan
from framebus.bus.publisher import Publisher
from framebus.bus.statistics import PublisherStatistics, SubscriberStatistics
from framebus.bus.subscriber import Subscriber

__all__ = [
    "Frame",
    "FrameFormat",
    "Loan",
    "Publisher",
    "PublisherStatistics",
    "Subscriber",
    "SubscriberStatistics",
]
