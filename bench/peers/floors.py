"""What no hand-over can beat: a bare wake-up and a bare message between two Python processes, without any frame.

Both sides have a private array of the frame's size; only the stamp crosses.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgpack
import numpy as np
import zmq

from bench.peers import OPEN_TIMEOUT_S, Peer, Pixels, Receiver, Sender, Setting
from framebus.wake import Futex

STAMP_BYTES: Final = 64
WORD: Final = STAMP_BYTES
"""Where the futex word is, behind the stamp."""
MAX_SLICE_S: Final = 0.05


@contextmanager
def shared_file(setting: Setting, suffix: str, size: int) -> Iterator[str]:
    """A file of zeros in shared memory, removed at the end. Yields its path."""
    path = Path(f"/dev/shm/{setting.channel}.{suffix}")
    path.write_bytes(bytes(size))
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


class StampPage:
    """A shared page with a stamp and a futex word."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(fd, mmap.PAGESIZE)
        finally:
            os.close(fd)
        self.stamp = np.frombuffer(self._map, np.uint8, STAMP_BYTES)
        self.words = memoryview(self._map).cast("I")
        self.futex = Futex(ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + WORD)


class FutexSender(Sender):
    def __init__(self, setting: Setting) -> None:
        self._page = StampPage(setting.handles)
        self._pixels = np.zeros(setting.shape, np.uint8)
        self._start = self._pixels.reshape(-1)[:STAMP_BYTES]

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        page = self._page
        page.stamp[:] = self._start
        page.words[WORD // 4] = (page.words[WORD // 4] + 1) & 0xFFFFFFFF
        page.futex.wake()


class FutexReceiver(Receiver):
    def __init__(self, setting: Setting) -> None:
        self._page = StampPage(setting.handles)
        self._pixels = np.zeros(setting.shape, np.uint8)
        self._start = self._pixels.reshape(-1)[:STAMP_BYTES]
        self._seen = self._page.words[WORD // 4]

    def receive(self, timeout_s: float) -> Pixels:
        page = self._page
        deadline_s = time.monotonic() + timeout_s
        while page.words[WORD // 4] == self._seen:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            page.futex.wait(self._seen, min(MAX_SLICE_S, left_s))
        self._seen = page.words[WORD // 4]
        self._start[:] = page.stamp
        return self._pixels


class BusyReceiver(FutexReceiver):
    def receive(self, timeout_s: float) -> Pixels:
        words, seen = self._page.words, self._seen
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while words[WORD // 4] == seen:
            if time.monotonic_ns() >= deadline_ns:
                raise TimeoutError
        self._seen = words[WORD // 4]
        self._start[:] = self._page.stamp
        return self._pixels


class BareFutex(Peer):
    name = "floor-futex"
    title = "floor: bare futex wake"
    how = "No frame: a 64-byte stamp in a shared page, and one futex wake."
    exact = False

    @contextmanager
    def prepare(self, setting: Setting) -> Iterator[str]:
        with shared_file(setting, "floor", mmap.PAGESIZE) as path:
            yield path

    def sender(self, setting: Setting) -> Sender:
        return FutexSender(setting)

    def receiver(self, setting: Setting, index: int) -> Receiver:
        del index
        return FutexReceiver(setting)


class BareWord(BareFutex):
    name = "floor-busy"
    title = "floor: bare word"
    how = "No frame: a 64-byte stamp in a shared page, and a word that the receiver looks at again and again."

    def receiver(self, setting: Setting, index: int) -> Receiver:
        del index
        return BusyReceiver(setting)


class MessageSender(Sender):
    """Sends what framebus's notification has in it, and the stamp instead of the times."""

    def __init__(self, setting: Setting) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.XPUB_VERBOSE, 1)
        self._socket.bind(f"ipc:///dev/shm/{setting.channel}.floor")
        for _ in range(setting.receivers):
            if not self._socket.poll(int(OPEN_TIMEOUT_S * 1000)):
                raise TimeoutError("no subscriber came")
            self._socket.recv()
        self._pack = msgpack.Packer().pack
        self._channel, self._shape = setting.channel, setting.shape
        self._pixels = np.zeros(setting.shape, np.uint8)
        self._start = self._pixels.reshape(-1)[:STAMP_BYTES].view(np.uint64)

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        fields = (self._channel, *self._shape, "|u1", "bgr", *self._start[:5].tolist())
        self._socket.send(self._pack(fields), zmq.NOBLOCK)

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


class MessageReceiver(Receiver):
    def __init__(self, setting: Setting) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RECONNECT_IVL, 20)
        self._socket.subscribe(b"")
        self._socket.connect(f"ipc:///dev/shm/{setting.channel}.floor")
        self._pixels = np.zeros(setting.shape, np.uint8)
        self._start = self._pixels.reshape(-1)[:STAMP_BYTES].view(np.uint64)

    def receive(self, timeout_s: float) -> Pixels:
        if not self._socket.poll(int(timeout_s * 1000)):
            raise TimeoutError
        self._start[:5] = msgpack.unpackb(self._socket.recv())[6:]
        return self._pixels

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


class BareMessage(Peer):
    name = "floor-zmq"
    title = "floor: bare pyzmq message"
    how = "No frame: one PUB/SUB message as large as a notification, over a Unix socket."
    distribution = "pyzmq"
    module = "zmq"
    exact = False

    @contextmanager
    def prepare(self, setting: Setting) -> Iterator[None]:
        try:
            yield None
        finally:
            Path(f"/dev/shm/{setting.channel}.floor").unlink(missing_ok=True)

    def sender(self, setting: Setting) -> Sender:
        return MessageSender(setting)

    def receiver(self, setting: Setting, index: int) -> Receiver:
        del index
        return MessageReceiver(setting)


PEERS = (BareFutex(), BareWord(), BareMessage())
