"""Combine the cameras' frames into frame sets of one instant.

The fastest live camera sets the pace: each of its frames becomes one panorama, so that the output has the cameras' rate
without drift. A frame of the pacing camera is due when every other live camera has reached its instant, so that no
nearer frame can arrive, or when it has waited long enough. Each other camera contributes the frame nearest in time.

Cameras may have any rate, from 60 frames a second to one every few seconds. The synchronizer does not wait for cameras
that are slower than the pacing one, or whose frames are known to arrive too late. Whether a camera is gone is judged by
its own period.

A frame that has been due for a whole period is replaced by a newer one, so that a slow consumer gets the newest frame
and latency does not accumulate. After a network stall, when several frames are due at once, up to three are still
delivered. Dropped frames are counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

QUEUE_FRAMES = 64
"""Most frames of a camera that are kept."""
KEPT_FRAMES = 16
"""Frames of each camera that are kept regardless of their age."""
STEPS_TO_BELIEVE = 3
"""Intervals between frames that are required for a reliable estimate of a camera's period."""
OWED_PAIRS = 3
"""Most sets that are still delivered when several are due at once."""
FIRST_PERIOD_NS = 40_000_000
"""Period that is assumed before the first interval: 25 frames a second."""
STEPS_TO_KNOW_PERIOD = 10
"""A camera with fewer intervals does not become the pacing one if another camera has this many."""
FASTER = 0.7
"""A camera becomes the pacing one if its period is shorter than the current pacing camera's by this factor."""
SLOWER = 1.5
"""The synchronizer does not wait for a camera whose period is longer than the pacing camera's by this factor: each of
its frames serves several sets."""
SHORTEST_STEP_NS, LONGEST_STEP_NS = 1_000_000, 30_000_000_000
"""Bounds of a plausible period: from a thousand frames a second to two a minute."""
GONE_PERIODS = 3
"""A camera counts as gone only after it missed this many of its own periods."""


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """A picture and its times."""

    captured_ns: int
    """When it was captured, CLOCK_MONOTONIC."""
    arrival_ns: int
    """When it arrived, CLOCK_MONOTONIC."""
    picture: T
    damaged: bool = False
    """Whether it was decoded from damaged data, or refers to a damaged picture."""


@dataclass(frozen=True, slots=True)
class FrameSet(Generic[T]):
    """The pictures of one panorama."""

    captured_ns: int
    """The oldest capture instant among the pictures that belong to this instant."""
    pictures: tuple[T | None, ...]
    """One for each camera; ``None`` if the camera is gone."""
    fresh: tuple[bool, ...]
    """Whether the camera's picture is of this instant; a late camera shows its previous picture."""
    skipped: int
    """Panoramas that were dropped since the previous set."""
    instant_ns: int
    """Capture instant of the camera that sets the pace, CLOCK_MONOTONIC."""
    skew_ns: tuple[int | None, ...]
    """Capture instant of each picture minus :attr:`instant_ns`; ``None`` if the camera is gone."""
    damaged: tuple[bool, ...]
    """Whether the camera's picture is damaged."""


class _Queue(Generic[T]):
    """The newest frames of one camera, and its period.

    Args:
        kept_ns: How long to keep frames for a camera with a longer delay.
    """

    def __init__(self, kept_ns: int) -> None:
        self.frames: deque[Timed[T]] = deque(maxlen=QUEUE_FRAMES)
        self.period_ns: float = FIRST_PERIOD_NS
        self.lag_ns: float = 0.0
        """Mean time from capture to arrival."""
        self.steps = 0
        self._kept_ns = kept_ns

    def add(self, frame: Timed[T]) -> None:
        if self.frames:
            step_ns = frame.captured_ns - self.frames[-1].captured_ns
            if step_ns <= 0:
                # The capture times restarted, so they cannot be compared with those of the earlier frames.
                self.frames.clear()
            elif SHORTEST_STEP_NS < step_ns < LONGEST_STEP_NS:
                self.steps += 1
                # The mean of the first eight intervals, and then a moving average.
                self.period_ns += (step_ns - self.period_ns) / min(self.steps, 8)
        lag_ns = frame.arrival_ns - frame.captured_ns
        self.lag_ns += (lag_ns - self.lag_ns) / min(self.steps + 1, 8)
        self.frames.append(frame)
        oldest_ns = frame.captured_ns - self._kept_ns - 2 * self.period_ns
        while len(self.frames) > KEPT_FRAMES and self.frames[0].captured_ns < oldest_ns:
            self.frames.popleft()

    def pace_ns(self, now_ns: int) -> float:
        """Return the period. Until the estimate is reliable, it is at least the time since the newest frame."""
        if self.steps >= STEPS_TO_BELIEVE:
            return self.period_ns
        return max(self.period_ns, now_ns - self.frames[-1].arrival_ns)

    def nearest(self, instant_ns: int) -> Timed[T]:
        return min(self.frames, key=lambda frame: abs(frame.captured_ns - instant_ns))


class FrameSynchronizer(Generic[T]):
    """Combines the cameras' frames into sets. It is not thread-safe and reads no clock: the caller passes the time.

    Args:
        cameras: Number of cameras.
        tolerance_ns: Largest distance in time from the pacing camera's frame of a picture that counts as fresh.
        max_wait_ns: How long a frame waits for the other cameras.
        gone_after_ns: A camera whose newest frame is older than this, and than three of its periods, is left out.
    """

    def __init__(self, cameras: int, *, tolerance_ns: int, max_wait_ns: int, gone_after_ns: int) -> None:
        self.skipped = 0
        """Total number of dropped panoramas."""
        self._queues: list[_Queue[T]] = [_Queue(tolerance_ns + max_wait_ns) for _ in range(cameras)]
        self._tolerance_ns = tolerance_ns
        self._max_wait_ns = max_wait_ns
        self._gone_after_ns = gone_after_ns
        self._pace = 0
        self._last_instant_ns = 0
        self._last_pair_ns = 0

    def add(self, camera: int, frame: Timed[T]) -> None:
        """Add a camera's newest frame."""
        self._queues[camera].add(frame)

    def live(self, now_ns: int) -> list[int]:
        """Return the cameras that are not gone."""
        return [
            index
            for index, queue in enumerate(self._queues)
            if queue.frames
            and now_ns - queue.frames[-1].arrival_ns <= max(self._gone_after_ns, GONE_PERIODS * queue.period_ns)
        ]

    def next(self, now_ns: int) -> FrameSet[T] | None:
        """Return the pictures of the next panorama, or ``None`` if none is due at ``now_ns``."""
        live = self.live(now_ns)
        if not live:
            return None
        self._pace = self._choose_pace(live, now_ns)
        pace = self._queues[self._pace]
        # After a stall, several frames are due at once: leave some time between two sets.
        if now_ns - self._last_pair_ns < pace.period_ns * 0.4:
            return None
        # The half period prevents a second set of the same instant when another camera has become the pacing one.
        due = [
            (frame.captured_ns, due_ns)
            for frame in pace.frames
            if frame.captured_ns > self._last_instant_ns + pace.period_ns / 2
            and (due_ns := self._due_ns(frame, live, now_ns)) <= now_ns
        ]
        if not due:
            return None
        # A set that has been due for a whole period has been overtaken by the next one: the consumer is too slow.
        skipped = max(0, len(due) - OWED_PAIRS)
        while skipped < len(due) - 1 and now_ns - due[skipped][1] >= pace.period_ns:
            skipped += 1
        self.skipped += skipped
        instant_ns = due[skipped][0]
        self._last_instant_ns, self._last_pair_ns = instant_ns, now_ns
        return self._take(instant_ns, live, skipped)

    def _choose_pace(self, live: list[int], now_ns: int) -> int:
        # A camera that stalls must not stop the panorama until it counts as gone.
        stalled_ns = self._max_wait_ns
        running = [
            index
            for index in live
            if now_ns - self._queues[index].frames[-1].arrival_ns <= stalled_ns + 2 * self._queues[index].period_ns
        ] or live
        # The period of a new camera is a guess, which may be too short.
        known = [index for index in running if self._queues[index].steps >= STEPS_TO_KNOW_PERIOD] or running
        fastest = min(known, key=lambda index: (self._queues[index].period_ns, index))
        # Hysteresis: cameras of nearly the same rate would otherwise take turns, and their frames differ in time.
        if self._pace in running and self._queues[fastest].period_ns >= FASTER * self._queues[self._pace].period_ns:
            return self._pace
        return fastest

    def _due_ns(self, frame: Timed[T], live: list[int], now_ns: int) -> int:
        """Return when every other live camera reached the frame's instant, or when the wait for them ends."""
        pace = self._queues[self._pace]
        last_ns = frame.arrival_ns + self._max_wait_ns
        due_ns = frame.arrival_ns
        for index in live:
            queue = self._queues[index]
            # Its frames arrive later than the longest wait, so waiting for them would only delay each panorama.
            is_hopeless = queue.lag_ns - pace.lag_ns > self._max_wait_ns + pace.period_ns
            if queue.pace_ns(now_ns) < SLOWER * pace.period_ns and not is_hopeless:
                # A frame this close to the instant is the nearest one: the next one comes a whole period later.
                enough_ns = frame.captured_ns - max(pace.period_ns, queue.period_ns) / 2
                reached = (other.arrival_ns for other in queue.frames if other.captured_ns >= enough_ns)
                due_ns = max(due_ns, next(reached, last_ns))
        return min(due_ns, last_ns)

    def _take(self, instant_ns: int, live: list[int], skipped: int) -> FrameSet[T]:
        chosen: dict[int, Timed[T]] = {}
        for index in live:
            queue = self._queues[index]
            chosen[index] = queue.nearest(instant_ns)
            # Keep the chosen frame: a slow or late camera shows it again.
            while queue.frames[0] is not chosen[index]:
                queue.frames.popleft()
        skews_ns = {index: frame.captured_ns - instant_ns for index, frame in chosen.items()}
        fresh = {index for index, skew_ns in skews_ns.items() if abs(skew_ns) <= self._tolerance_ns}
        cameras = range(len(self._queues))
        return FrameSet(
            captured_ns=min((chosen[index].captured_ns for index in fresh), default=instant_ns),
            pictures=tuple(chosen[index].picture if index in chosen else None for index in cameras),
            fresh=tuple(index in fresh for index in cameras),
            skipped=skipped,
            instant_ns=instant_ns,
            skew_ns=tuple(skews_ns.get(index) for index in cameras),
            damaged=tuple(index in chosen and chosen[index].damaged for index in cameras),
        )
