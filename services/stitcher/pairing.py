"""Which frames of the cameras belong together.

One camera, the fastest that runs, sets the pace: each of its frames is one panorama, so the output has the cameras'
rate, without drift. A frame of it is due when every other live camera has reached its instant, so that no nearer frame
can come, or when it has waited long enough. Of the others the frame nearest in time is taken.

A frame that has been due for a whole period gives way to a newer one, so a slow consumer gets the newest, and the age
of what it gets does not grow. When the network was late and several frames are due at once, up to three are still
given. What is dropped is counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

QUEUE_FRAMES = 16
OWED_PAIRS = 3
FIRST_PERIOD_NS = 40_000_000
STEPS_TO_KNOW_PERIOD = 10
FASTER = 0.7
"""A camera takes over the pace when its period is shorter than the pacing camera's by this factor."""
SLOWER = 1.5
"""A camera with a longer period than the pacing camera's by this factor is not waited for: a frame serves several."""


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """A picture and its times."""

    captured_ns: int
    """When it was captured, CLOCK_MONOTONIC."""
    arrival_ns: int
    """When it arrived, CLOCK_MONOTONIC."""
    picture: T


@dataclass(frozen=True, slots=True)
class FrameSet(Generic[T]):
    """The pictures of one panorama."""

    captured_ns: int
    """The oldest capture instant among the pictures that belong to this instant."""
    pictures: tuple[T | None, ...]
    """One a camera; ``None`` where the camera is gone."""
    fresh: tuple[bool, ...]
    """Whether the camera's picture is of this instant; a late camera shows its previous picture."""
    skipped: int
    """Panoramas that were dropped since the previous set."""


class _Queue(Generic[T]):
    def __init__(self) -> None:
        self.frames: deque[Timed[T]] = deque(maxlen=QUEUE_FRAMES)
        self.period_ns: float = FIRST_PERIOD_NS
        self.steps = 0

    def add(self, frame: Timed[T]) -> None:
        if self.frames:
            step_ns = frame.captured_ns - self.frames[-1].captured_ns
            if step_ns <= 0:
                self.frames.clear()
            elif 1_000_000 < step_ns < 1_000_000_000:
                self.steps += 1
                self.period_ns += (step_ns - self.period_ns) / min(self.steps, 8)
        self.frames.append(frame)

    def nearest(self, instant_ns: int) -> Timed[T]:
        return min(self.frames, key=lambda frame: abs(frame.captured_ns - instant_ns))


class FrameSynchronizer(Generic[T]):
    """Puts the cameras' frames together. The caller guards it against other threads and tells it the time.

    Args:
        cameras: How many cameras there are.
        tolerance_ns: Largest distance in time from the pacing camera's frame.
        max_wait_ns: How long a frame waits for the other cameras.
        gone_after_ns: A camera whose newest frame is older than this does not take part.
    """

    def __init__(self, cameras: int, *, tolerance_ns: int, max_wait_ns: int, gone_after_ns: int) -> None:
        self.skipped = 0
        """Panoramas that were dropped, in all."""
        self._queues: list[_Queue[T]] = [_Queue() for _ in range(cameras)]
        self._tolerance_ns = tolerance_ns
        self._max_wait_ns = max_wait_ns
        self._gone_after_ns = gone_after_ns
        self._pace = 0
        self._last_instant_ns = 0
        self._last_pair_ns = 0

    def add(self, camera: int, frame: Timed[T]) -> None:
        """Take a camera's newest frame."""
        self._queues[camera].add(frame)

    def live(self, now_ns: int) -> list[int]:
        """The cameras that had a frame lately."""
        return [
            index
            for index, queue in enumerate(self._queues)
            if queue.frames and now_ns - queue.frames[-1].arrival_ns <= self._gone_after_ns
        ]

    def next(self, now_ns: int) -> FrameSet[T] | None:
        """The pictures of the next panorama, or ``None`` when none is due at ``now_ns``."""
        live = self.live(now_ns)
        if not live:
            return None
        self._pace = self._choose_pace(live, now_ns)
        pace = self._queues[self._pace]
        if now_ns - self._last_pair_ns < pace.period_ns * 0.4:
            return None
        due = [
            (frame.captured_ns, due_ns)
            for frame in pace.frames
            if frame.captured_ns > self._last_instant_ns + pace.period_ns / 2
            and (due_ns := self._due_ns(frame, live)) <= now_ns
        ]
        if not due:
            return None
        skipped = max(0, len(due) - OWED_PAIRS)
        while skipped < len(due) - 1 and now_ns - due[skipped][1] >= pace.period_ns:
            skipped += 1
        self.skipped += skipped
        instant_ns = due[skipped][0]
        self._last_instant_ns, self._last_pair_ns = instant_ns, now_ns
        return self._take(instant_ns, live, skipped)

    def _choose_pace(self, live: list[int], now_ns: int) -> int:
        stalled_ns = self._max_wait_ns
        running = [
            index
            for index in live
            if now_ns - self._queues[index].frames[-1].arrival_ns <= stalled_ns + 2 * self._queues[index].period_ns
        ] or live
        known = [index for index in running if self._queues[index].steps >= STEPS_TO_KNOW_PERIOD] or running
        fastest = min(known, key=lambda index: (self._queues[index].period_ns, index))
        if self._pace in running and self._queues[fastest].period_ns >= FASTER * self._queues[self._pace].period_ns:
            return self._pace
        return fastest

    def _due_ns(self, frame: Timed[T], live: list[int]) -> int:
        """When every other live camera had reached the frame's instant, or the wait for them ends."""
        last_ns = frame.arrival_ns + self._max_wait_ns
        pace_ns = self._queues[self._pace].period_ns
        due_ns = frame.arrival_ns
        for index in live:
            queue = self._queues[index]
            if queue.period_ns < SLOWER * pace_ns:
                enough_ns = frame.captured_ns - max(pace_ns, queue.period_ns) / 2
                reached = (other.arrival_ns for other in queue.frames if other.captured_ns >= enough_ns)
                due_ns = max(due_ns, next(reached, last_ns))
        return min(due_ns, last_ns)

    def _take(self, instant_ns: int, live: list[int], skipped: int) -> FrameSet[T]:
        pictures: list[T | None] = [None] * len(self._queues)
        fresh = [False] * len(self._queues)
        captured_ns = instant_ns
        for index in live:
            queue = self._queues[index]
            chosen = queue.nearest(instant_ns)
            while queue.frames[0] is not chosen:
                queue.frames.popleft()
            pictures[index] = chosen.picture
            if abs(chosen.captured_ns - instant_ns) <= self._tolerance_ns:
                fresh[index] = True
                captured_ns = min(captured_ns, chosen.captured_ns)
        return FrameSet(captured_ns, tuple(pictures), tuple(fresh), skipped)
