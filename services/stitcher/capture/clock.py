"""Convert the clocks in a camera's stream to CLOCK_MONOTONIC.

A frame always arrives after its capture. Therefore the smallest ``arrival - time`` of the last seconds equals the
clock's offset plus the camera's shortest delay. Jitter only ever adds to the delay, so the minimum filters it out.

Three clocks can give a frame's capture time. The first one that is trustworthy is used:

- the sender's clock: RTCP sender reports give the wall time at the camera. :mod:`services.stitcher.capture.sender`
  compares cameras.
- the presentation times (pts), if they advance like a wall clock. Some are synthetic: FFmpeg numbers the pictures of
  MJPEG over HTTP at 25 a second, regardless of the real rate. Until a pts has proven right, it may place a frame only
  shortly before its arrival.
- the arrival, filtered: jitter up to 100 ms is smoothed.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Literal

from services.stitcher.capture.sender import SenderClocks

Source = Literal["sender", "pts", "arrival"]

WINDOW_NS = 5_000_000_000
"""Length of a window. The least offset is that of two windows, in which a drift of 100 parts per million costs 1 ms."""
JUMP_NS = 1_000_000_000
"""If a stream's time advances by this much more than the wall clock from packet to packet, a new clock began. A
presentation time may step back by less than this, because of B-frames; a decoding time may not step back at all."""
UNPROVEN_LAG_NS = 200_000_000
"""Longest time before its arrival at which an unproven pts may place a frame."""
BIN_NS, BIN_PACKETS, LONGEST_BIN_NS = 1_000_000_000, 8, 4_000_000_000
"""The least offset of a bin is compared with that of the next one. A bin ends when it has lasted the first duration and
has this many packets, or after the last duration with fewer packets."""
SLOPES_TO_JUDGE, SLOPES_KEPT = 3, 5
"""Least number of slopes from bin to bin for a verdict, and number of the newest slopes whose median is judged."""
RUNS_WRONG, RUNS_RIGHT = 0.03, 0.02
"""Relative error of a clock's rate above which it is wrong, and below which it is right; in between, the earlier
verdict holds."""
SMOOTHED_NS = 100_000_000
"""Largest jitter of arrivals that is smoothed."""
STEPS = 32
"""Packets that a period is estimated from."""


class StreamClock:
    """A clock in a stream, judged by the arrival times of the packets that it stamps. Owned by one thread."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, because the next time may be of another clock."""
        self.runs_right: bool | None = None
        """Whether it advances like a wall clock; ``None`` until that is known."""
        self._last: tuple[int, int] | None = None
        self._window_start_ns = 0
        self._minimum_ns = 0
        self._previous_minimum_ns: int | None = None
        self._bin: tuple[int, int] = (0, 0)
        self._bin_packets = 0
        self._closed_bin: tuple[int, int] | None = None
        self._slopes: deque[float] = deque(maxlen=SLOPES_KEPT)
        self._steps_ns: deque[int] = deque(maxlen=STEPS)

    def add(self, time_ns: int, arrival_ns: int, order_ns: int | None = None) -> bool:
        """Record a packet's time.

        Args:
            time_ns: The packet's time by this clock.
            arrival_ns: When the packet arrived, CLOCK_MONOTONIC.
            order_ns: The decoding time, if there is one. It always increases, whereas B-frames arrive after later
                frames.

        Returns:
            Whether a new clock began.
        """
        jumped = self._has_jumped(time_ns if order_ns is None else order_ns, arrival_ns, ordered=order_ns is not None)
        if jumped:
            self.reset()
        offset_ns = arrival_ns - time_ns
        # The offset is that of the presentation, but jumps and steps are those of the decoding order.
        now_ns = time_ns if order_ns is None else order_ns
        if self._last is None:
            self._window_start_ns, self._minimum_ns = arrival_ns, offset_ns
            self._bin, self._bin_packets = (arrival_ns, offset_ns), 0
        else:
            self._steps_ns.append(abs(now_ns - self._last[0]))
            # Keep the minimum of the previous window, so that a new one does not begin with a delayed packet's offset.
            if arrival_ns - self._window_start_ns > WINDOW_NS:
                self._previous_minimum_ns = self._minimum_ns
                self._window_start_ns, self._minimum_ns = arrival_ns, offset_ns
        self._last = (now_ns, arrival_ns)
        self._minimum_ns = min(self._minimum_ns, offset_ns)
        self._judge(offset_ns, arrival_ns)
        return jumped

    @property
    def offset_ns(self) -> int:
        """Least ``arrival - time`` of the last one or two windows."""
        if self._previous_minimum_ns is None:
            return self._minimum_ns
        return min(self._minimum_ns, self._previous_minimum_ns)

    @property
    def period_ns(self) -> int:
        """Median time from packet to packet, by this clock; 0 while there is none."""
        return round(median(self._steps_ns)) if self._steps_ns else 0

    def _has_jumped(self, order_ns: int, arrival_ns: int, *, ordered: bool) -> bool:
        if self._last is None:
            return False
        step_ns = order_ns - self._last[0]
        # A camera that restarts begins at another time, and time stamps may wrap around.
        back_ns = 0 if ordered else -JUMP_NS
        ahead_ns = max(JUMP_NS, 3 * self.period_ns // 2)  # frames of a slow camera may arrive together after a stall
        return step_ns <= back_ns or step_ns > arrival_ns - self._last[1] + ahead_ns

    def _judge(self, offset_ns: int, arrival_ns: int) -> None:
        """Compare the least offsets of successive bins: constant if the clock is right, increasing if it is slow.

        A network stall or a permanent increase of the delay causes a single step, which the median ignores.
        """
        # Compare minima, because a single offset contains the packet's jitter.
        started_ns, least_ns = self._bin
        lasted_ns = arrival_ns - started_ns
        if not (lasted_ns >= BIN_NS and self._bin_packets >= BIN_PACKETS) and lasted_ns < LONGEST_BIN_NS:
            self._bin, self._bin_packets = (started_ns, min(least_ns, offset_ns)), self._bin_packets + 1
            return
        if self._closed_bin is not None:
            before_ns, before_least_ns = self._closed_bin
            self._slopes.append((least_ns - before_least_ns) / (started_ns - before_ns))
        self._closed_bin = self._bin
        self._bin, self._bin_packets = (arrival_ns, offset_ns), 1
        if len(self._slopes) >= SLOPES_TO_JUDGE:
            slope = abs(median(self._slopes))
            if slope > RUNS_WRONG:
                self.runs_right = False
            elif slope < RUNS_RIGHT or self.runs_right is None:
                # Between the bounds, a clock without an earlier verdict counts as right.
                if self.runs_right is False:  # the recorded offsets are from the time when the clock ran wrong
                    self._window_start_ns, self._minimum_ns = arrival_ns, min(offset_ns, least_ns)
                    self._previous_minimum_ns = None
                self.runs_right = True


class CaptureClock:
    """Estimates when a camera's frames were captured. Owned by one thread.

    Args:
        best: Best clock that may be used; ``sender`` allows all.
        held_packets: Number of packets by which FFmpeg delays a packet: a parser waits for the start of the next frame.
        delay_ns: Configured delay of the camera's pictures, compared with the other cameras.
        senders: Comparison of the cameras' sender clocks, and this camera's name; ``None`` ignores sender clocks.
    """

    def __init__(
        self,
        best: Source = "pts",
        *,
        held_packets: int = 0,
        delay_ns: int = 0,
        senders: tuple[SenderClocks, str] | None = None,
    ) -> None:
        self.resets = 0
        """How often the presentation times restarted."""
        self.source: Source = "arrival"
        """Clock that gave the newest frame's capture time."""
        self.held_packets = held_packets
        self._best = best
        self._delay_ns = delay_ns
        self._senders = senders if best == "sender" else None
        self._newest_ns = 0
        self._pts = StreamClock()
        self._sender = StreamClock()
        self._sender_less_pts_ns: int | None = None
        self._arrivals: deque[int] = deque(maxlen=STEPS)
        self._smooth_ns: int | None = None

    def reset(self) -> None:
        """Forget the offsets, because the next packet comes from another connection."""
        self._pts.reset()
        self._forget_sender()
        self._arrivals.clear()
        self._smooth_ns = None

    @property
    def period_ns(self) -> int:
        """Mean time between the last packets; 0 before the second one."""
        if len(self._arrivals) < 2:
            return 0
        return (self._arrivals[-1] - self._arrivals[0]) // (len(self._arrivals) - 1)

    def observe(
        self, arrival_ns: int, pts_ns: int | None = None, dts_ns: int | None = None, sender_ns: int | None = None
    ) -> None:
        """Record a packet's times, in order of arrival.

        Args:
            arrival_ns: When the packet arrived, CLOCK_MONOTONIC.
            pts_ns: Its presentation time, of any origin.
            dts_ns: Its decoding time.
            sender_ns: The sender's wall time when it was captured.
        """
        self._arrivals.append(arrival_ns)
        if pts_ns is None:
            return
        if self._pts.add(pts_ns, arrival_ns, dts_ns):
            self.resets += 1
            self._forget_sender()
        if sender_ns is not None and self._senders is not None:
            self._sender.add(sender_ns, arrival_ns)
            self._sender_less_pts_ns = sender_ns - pts_ns

    def captured_ns(self, pts_ns: int | None, arrival_ns: int) -> int:
        """Return the capture time of a frame, CLOCK_MONOTONIC. It increases strictly and never exceeds the arrival.

        Args:
            pts_ns: Presentation time of the frame, of any origin.
            arrival_ns: When the packet that completed it arrived, CLOCK_MONOTONIC.
        """
        smooth_ns = self._smooth(arrival_ns)
        self.source, found_ns, held_ns = "arrival", smooth_ns, self.held_packets * self.period_ns
        if pts_ns is not None and self._best != "arrival" and self._pts.runs_right is not False:
            # The stream's own period is exact, whereas arrivals may come in bursts.
            held_ns = self.held_packets * self._pts.period_ns
            self.source, found_ns = "pts", pts_ns + self._pts.offset_ns
            if self._pts.runs_right is None:
                # Without bound and verdict, MJPEG over HTTP at 10 fps, which FFmpeg numbers at 25, was 4.8 s old.
                found_ns = max(found_ns, arrival_ns - UNPROVEN_LAG_NS)
            if self._senders is not None and self._sender_less_pts_ns is not None and self._sender.runs_right:
                clocks, name = self._senders
                # Compare the cameras without what their parsers hold back, which is not a delay of the network.
                offset_ns = clocks.offset_ns(name, self._sender.offset_ns - held_ns, arrival_ns) + held_ns
                self.source, found_ns = "sender", pts_ns + self._sender_less_pts_ns + offset_ns
        found_ns = min(found_ns, arrival_ns) - held_ns - self._delay_ns
        # A correction of the offset may move a frame before its predecessor, but the synchronizer requires an order.
        self._newest_ns = max(found_ns, self._newest_ns + 1)
        return self._newest_ns

    def _forget_sender(self) -> None:
        self._sender.reset()
        self._sender_less_pts_ns = None

    def _smooth(self, arrival_ns: int) -> int:
        """Return the arrival without its jitter.

        Jitter only ever delays a packet, so follow early packets at once and late ones slowly.
        """
        period_ns = self.period_ns
        if self._smooth_ns is None:
            self._smooth_ns = arrival_ns
        else:
            expected_ns = self._smooth_ns + period_ns
            late_ns = arrival_ns - expected_ns
            # Beyond the bound it is not jitter but a stall or a lasting delay: follow at that distance.
            bound_ns = min(SMOOTHED_NS, period_ns)
            self._smooth_ns = arrival_ns if late_ns <= 0 else expected_ns + max(late_ns // 32, late_ns - bound_ns)
        return self._smooth_ns
