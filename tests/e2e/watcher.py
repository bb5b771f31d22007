"""A viewer that reconnects whenever the page's server goes, and records the arrival of pictures and boxes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass
from itertools import pairwise

import aiohttp

from services.streamer.messages import split_frame_message

RETRY_S = 0.05


@dataclass(frozen=True)
class Seen:
    """A picture, or the boxes of a picture."""

    at_s: float
    """When it came, ``time.monotonic()``."""
    epoch: str
    sequence: int
    objects: int = 0
    """How many boxes."""


class Watcher:
    """Watches a page's WebSocket in a thread of its own, as a context."""

    def __init__(self, url: str) -> None:
        self.pictures: list[Seen] = []
        self.boxes: list[Seen] = []
        self.reasons: list[str] = []
        """Why the stream was not live, as the page said, each change."""
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._watch()))

    def pauses_s(self, since_s: float) -> tuple[float, float]:
        """Return the longest time without a picture, and without boxes, since ``since_s`` (``time.monotonic()``)."""
        return _longest_s(self.pictures, since_s), _longest_s(self.boxes, since_s)

    async def _watch(self) -> None:
        async with aiohttp.ClientSession() as session:
            while not self._stop.is_set():
                try:
                    async with session.ws_connect(f"{self._url}/ws", max_msg_size=1 << 24) as connection:
                        await self._receive(connection)
                except (aiohttp.ClientError, OSError, TimeoutError):
                    await asyncio.sleep(RETRY_S)

    async def _receive(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        while not self._stop.is_set():
            try:
                message = await connection.receive(timeout=0.5)
            except TimeoutError:
                continue
            now_s = time.monotonic()
            if message.type == aiohttp.WSMsgType.BINARY:
                head, _ = split_frame_message(message.data)
                self.pictures.append(Seen(now_s, head["epoch"], head["sequence"]))
                await connection.send_str(json.dumps({"ack": head["sequence"]}))
            elif message.type == aiohttp.WSMsgType.TEXT:
                content = json.loads(message.data)
                if content["type"] == "detections":
                    self.boxes.append(Seen(now_s, content["epoch"], content["sequence"], len(content["objects"])))
                elif content.get("reason"):
                    self.reasons.append(content["reason"])
            else:
                return

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()


def _longest_s(seen: list[Seen], since_s: float) -> float:
    before = [one.at_s for one in seen if one.at_s < since_s][-1:]
    after = [one.at_s for one in seen if one.at_s >= since_s]
    return max((later - earlier for earlier, later in pairwise([*(before or [since_s]), *after, time.monotonic()])))
