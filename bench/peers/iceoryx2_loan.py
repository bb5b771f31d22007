"""iceoryx2: loaned shared memory, where the receiver waits on an event listener or polls."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import numpy as np

from bench.peers import Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import shared_files_removed, temporary_folder, wait_until

BUFFER_FRAMES: Final = 2
BORROWED_FRAMES: Final = 2


class Port:
    """A node with the service of the frames and, if ``events`` is set, that of the events."""

    def __init__(self, config: Config, *, events: bool) -> None:
        import iceoryx2

        self.iceoryx2: Any = iceoryx2
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        # Its own prefix and folder, so that the files that it leaves behind can be told from those of other programs.
        node_config = iceoryx2.config.default()
        node_config.global_cfg.prefix = iceoryx2.FileName.new(f"{config.channel}_")
        node_config.global_cfg.root_path = iceoryx2.Path.new(config.handles)
        self.node: Any = iceoryx2.NodeBuilder.new().config(node_config).create(iceoryx2.ServiceType.Ipc)
        self._array: Any = ctypes.c_uint8 * config.frame_bytes
        self._shape = config.shape
        name = iceoryx2.ServiceName.new(config.channel)
        # The sender, the receivers, and one to spare.
        nodes = config.receivers + 2
        self.frames: Any = (
            self.node.service_builder(name)
            .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
            .max_subscribers(config.receivers)
            .max_publishers(1)
            .max_nodes(nodes)
            .subscriber_max_buffer_size(BUFFER_FRAMES)
            .subscriber_max_borrowed_samples(BORROWED_FRAMES)
            .history_size(0)
            # A full buffer drops its oldest frame instead of blocking the sender.
            .enable_safe_overflow(True)
            .open_or_create()
        )
        self.events: Any = None
        if events:
            self.events = (
                self.node.service_builder(name)
                .event()
                .max_listeners(config.receivers)
                .max_notifiers(1)
                .max_nodes(nodes)
                .open_or_create()
            )

    def pixels(self, sample: Any) -> Pixels:
        """Return an array on a sample's payload."""
        return np.frombuffer(self._array.from_address(sample.payload_ptr), np.uint8).reshape(self._shape)


class LoanSender(Sender):
    def __init__(self, config: Config, *, events: bool) -> None:
        self._port = Port(config, events=events)
        self._bytes = config.frame_bytes
        self._publisher: Any = self._port.frames.publisher_builder().initial_max_slice_len(self._bytes).create()
        self._notifier: Any = self._port.events.notifier_builder().create() if events else None
        self._sample: Any = None
        subscribers = self._port.frames.dynamic_config
        # Without a history, frames sent before a subscriber attached would be lost.
        wait_until(lambda: subscribers.number_of_subscribers >= config.receivers, "a subscriber")

    def loan(self) -> Pixels:
        self._sample = self._publisher.loan_slice_uninit(self._bytes)
        return self._port.pixels(self._sample)

    def publish(self) -> None:
        self._sample.assume_init().send()
        if self._notifier is not None:
            self._notifier.notify()

    def close(self) -> None:
        for part in (self._notifier, self._publisher):
            if part is not None:
                part.delete()


class LoanReceiver(Receiver):
    def __init__(self, config: Config, *, events: bool) -> None:
        self._port = Port(config, events=events)
        self._subscriber: Any = self._port.frames.subscriber_builder().buffer_size(BUFFER_FRAMES).create()
        self._listener: Any = self._port.events.listener_builder().create() if events else None
        self._sample: Any = None

    def receive(self, timeout_s: float) -> Pixels:
        sample = None
        deadline_s = time.monotonic() + timeout_s
        while True:
            # Keep only the newest frame, as a subscriber of framebus does by default.
            while (newer := self._subscriber.receive()) is not None:
                if sample is not None:
                    sample.delete()
                sample = newer
            if sample is not None:
                self._sample = sample
                return self._port.pixels(sample)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            if self._listener is not None:
                self._listener.timed_wait(self._port.iceoryx2.Duration.from_millis(int(left_s * 1000) + 1))

    def release(self) -> None:
        self._sample.delete()
        self._sample = None

    def close(self) -> None:
        for part in (self._listener, self._subscriber):
            if part is not None:
                part.delete()


class Iceoryx2(Peer):
    distribution = "iceoryx2"
    module = "iceoryx2"
    events: ClassVar[bool]

    @contextmanager
    def prepare(self, config: Config) -> Iterator[str]:
        with temporary_folder() as folder, shared_files_removed(f"{config.channel}_*"):
            yield str(folder)

    def sender(self, config: Config) -> Sender:
        return LoanSender(config, events=self.events)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return LoanReceiver(config, events=self.events)


class Listening(Iceoryx2):
    name = "iceoryx2-listener"
    title = "iceoryx2, listener"
    how = "No copy. The receiver waits on iceoryx2's event listener."
    events = True


class Busy(Iceoryx2):
    name = "iceoryx2-busy"
    title = "iceoryx2, busy"
    how = "No copy. The receiver polls without a pause, which takes a whole core."
    events = False


PEERS = (Listening(), Busy())
