"""Limit the data in flight to a viewer that sends no acknowledgements: MJPEG, in particular through a reverse proxy.

A proxy reads pictures as fast as they arrive, until its buffers and those of its kernel are full. These hold megabytes,
which are old when the viewer receives them. The streamer can only observe the receive window of the proxy's kernel.

1. The next picture is sent only after the receiver has read the last one, which its receive window shows. The window is
   known as of the newest acknowledgement; to provoke another one, a few bytes without meaning are sent.
2. If a receiver does not read for :data:`STALLED_S`, the buffers behind it are full. They hold the same amount at the
   ends of two such stalls, so the bytes sent in between give the throughput of the line.
3. The throughput gives the amount in flight, which is allowed to drain. From then on, pictures are sent at slightly
   less than the throughput, for as long as the connection lasts, because an increase cannot be observed.

Behind a default nginx that is read at 250 kB/s, pictures were 36 to 40 s old after a minute. With this limit they are
at most 16 s old, and less than 0.6 s from the 30th second on.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Final

STALLED_S: Final = 1.0
"""Time without reading after which the buffers behind the receiver count as full."""
JUDGED_S: Final = 4.0
"""Least time between two stalls for a measurement of the throughput."""
WAITED_SHARE: Final = 0.35
"""Least share of the time spent waiting for a valid measurement of the throughput."""
USED_SHARE: Final = 0.85
"""Share of the measured throughput that is used."""
ON_ITS_WAY_S: Final = 0.5
"""Data in flight that need not drain, as a time at the measured throughput."""
LONGEST_PAUSE_S: Final = 60.0
"""Longest pause to let the buffers drain."""
LOOK_S: Final = 0.01
"""Interval of reading the window."""
FIRST_PROBE_S: Final = 0.02
"""Wait before the first bytes that provoke an acknowledgement."""
PROBE_S: Final = 0.2
"""Interval between further ones."""

_SND_WND: Final = (struct.Struct("I"), 228)
"""tcpi_snd_wnd in struct tcp_info of linux/tcp.h: the window that the receiver advertises, in bytes."""


class Backlog:
    """Limits the data in flight to one viewer.

    Args:
        connection: The viewer's socket. If it is None, use the duration of the writes alone.
        probe: Sends some bytes that the viewer ignores.
        tell: Called with whether the viewer must read before more data is sent.
    """

    def __init__(
        self, connection: socket.socket | None, probe: Callable[[], Awaitable[None]], tell: Callable[[bool], None]
    ) -> None:
        self.bytes_per_second: float | None = None
        """Limit of the rate; None until the throughput has been measured."""
        self._socket = connection
        self._probe = probe
        self._tell = tell
        self._window_bytes = 0
        """The receiver's window when it had last read all data."""
        self._began_s = time.monotonic()
        self._sent_bytes = 0
        self._mark: tuple[float, int] | None = None
        """End of the last stall, and the bytes sent by then."""
        self._waited_s = 0.0
        """Time spent waiting since the mark."""

    async def clear(self, sent_bytes: int, started_s: float) -> float:
        """Wait until the next picture may be sent.

        Args:
            sent_bytes: Size of the picture that has just been written.
            started_s: When its write began, by ``time.monotonic``.

        Returns:
            Seconds for which the picture occupied the line.

        Raises:
            ConnectionError: The viewer disconnected.
        """
        await self._until_read(sent_bytes)  # step 1
        self._sent_bytes += sent_bytes
        now_s = time.monotonic()
        took_s = now_s - started_s
        self._waited_s += took_s
        pause_s = self._judge(now_s) if took_s >= STALLED_S else 0.0
        # Step 3: once the throughput is known, a picture occupies the line for at least its share of it.
        if self.bytes_per_second is not None:
            took_s = max(took_s, sent_bytes / self.bytes_per_second)
        await asyncio.sleep(max(pause_s, started_s + took_s - now_s, 0.0))
        if pause_s:  # the buffers have drained, so count anew
            self._began_s, self._sent_bytes = time.monotonic(), 0
        return took_s

    def _judge(self, now_s: float) -> float:
        """Measure the throughput at the end of a stall (step 2). Return how long to pause."""
        pause_s = 0.0
        if self._mark is not None:
            marked_s, marked_bytes = self._mark
            judged_s = now_s - marked_s
            if judged_s < JUDGED_S:
                return 0.0  # keep the mark, and measure at a later stall
            # Mostly waiting means that the line was the limit; otherwise the publisher was.
            if self._waited_s >= WAITED_SHARE * judged_s:
                carried = (self._sent_bytes - marked_bytes) / judged_s
                self.bytes_per_second = carried * USED_SHARE
                # What was sent since the beginning would take this much longer than the time that has passed.
                behind_s = self._sent_bytes / carried - (now_s - self._began_s)
                pause_s = min(max(behind_s - ON_ITS_WAY_S, 0.0), LONGEST_PAUSE_S)
        self._mark = None if pause_s else (now_s, self._sent_bytes)
        self._waited_s = 0.0
        return pause_s

    async def _until_read(self, sent_bytes: int) -> None:
        """Wait until the receiver has read most of the last picture."""
        probe_at_s = time.monotonic() + FIRST_PROBE_S
        while (window := self._window()) is not None:
            if window >= self._window_bytes - sent_bytes // 2:
                self._window_bytes = window
                break
            self._tell(True)
            if time.monotonic() > probe_at_s:
                probe_at_s = time.monotonic() + PROBE_S
                await self._probe()
            await asyncio.sleep(LOOK_S)
        self._tell(False)

    def _window(self) -> int | None:
        """Return the receiver's window in bytes, or None if it is unknown or the connection is closed."""
        if self._socket is None:
            return None
        field, at = _SND_WND
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, at + field.size)
        except OSError:
            return None
        return int(field.unpack_from(info, at)[0]) if len(info) == at + field.size else None
