"""Which frames of the cameras belong together.

One camera, the fastest that runs, sets the pace: each of its frames is one panorama, so the output has the cameras'
rate, without drift. A frame of it is due when every other live camera has reached its instant, so that no nearer frame
can come, or when it has waited long enough. Of the others the frame nearest in time is taken.

Cameras may be of any rate, from 60 frames a second to one in some seconds. A slower camera than the pacing one is not
waited for, nor is one whose frames are known to come too late; a camera counts as gone by its own period.

A frame that has been due for a whole period gives way to a newer one, so a slow consumer gets the newest, and the age
of what it gets does not grow. When the network was late and several frames are due at once, up to three are still
given. What is dropped is counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

QUEUE_FRAMES = 64
KEPT_FRAMES = 16
"""Of each camera, so many frames are kept however old they are."""
STEPS_TO_BELIEVE = 3
"""Before so many steps from frame to frame, a camera's period is a guess."""
OWED_PAIRS = 3
FIRST_PERIOD_NS = 40_000_000
STEPS_TO_KNOW_PERIOD = 10
FASTER = 0.7
"""A camera takes over the pace when its period is shorter than the pacing camera's by this factor."""
SLOWER = 1.5
"""A camera with a longer period than the pacing camera's by this factor is not waited for: a frame serves several."""
SHORTEST_STEP_NS, LONGEST_STEP_NS = 1_000_000, 30_000_000_000
"""Bounds of what may be a period: from a thousand frames a second to two a minute."""
GONE_PERIODS = 3
"""A camera is not gone before it missed so many of its own periods."""


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """A picture and its times."""

    captured_ns: int
    """When it was captured, CLOCK_MONOTONIC."""
    arrival_ns: int
    """When it arrived, CLOCK_MONOTONIC."""
    picture: T
    damaged: bool = False
    """Whether it was decoded from damaged data, or is built upon a picture that was."""


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
    instant_ns: int
    """Capture instant of the camera that sets the pace, CLOCK_MONOTONIC."""
    skew_ns: tuple[int | None, ...]
    """Capture instant of each picture less :attr:`instant_ns`; ``None`` where the camera is gone."""
    damaged: tuple[bool, ...]
    """Whether the camera's picture is damaged."""


class _Queue(Generic[T]):
    """The newest frames of one camera, and its pace.

    Args:
        kept_ns: How long frames may have to be kept for a later camera.
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
                self.frames.clear()
            elif SHORTEST_STEP_NS < step_ns < LONGEST_STEP_NS:
                self.steps += 1
                self.period_ns += (step_ns - self.period_ns) / min(self.steps, 8)
        lag_ns = frame.arrival_ns - frame.captured_ns
        self.lag_ns += (lag_ns - self.lag_ns) / min(self.steps + 1, 8)
        self.frames.append(frame)
        oldest_ns = frame.captured_ns - self._kept_ns - 2 * self.period_ns
        while len(self.frames) > KEPT_FRAMES and self.frames[0].captured_ns < oldest_ns:
            self.frames.popleft()

    def pace_ns(self, now_ns: int) -> float:
        """The period; of a camera of which little is known, at least the time since its newest frame."""
        if self.steps >= STEPS_TO_BELIEVE:
            return self.period_ns
        return max(self.period_ns, now_ns - self.frames[-1].arrival_ns)

    def nearest(self, instant_ns: int) -> Timed[T]:
        return min(self.frames, key=lambda frame: abs(frame.captured_ns - instant_ns))


class FrameSynchronizer(Generic[T]):
    """Puts the cameras' frames together. The caller guards it against other threads and tells it the time.

    Args:
        cameras: How many cameras there are.
        tolerance_ns: Largest distance in time from the pacing camera's frame.
        max_wait_ns: How long a frame waits for the other cameras.
        gone_after_ns: A camera whose newest frame is older than this, and than three of its periods, does not take
            part.
    """

    def __init__(self, cameras: int, *, tolerance_ns: int, max_wait_ns: int, gone_after_ns: int) -> None:
        self.skipped = 0
        """Panoramas that were dropped, in all."""
        self._queues: list[_Queue[T]] = [_Queue(tolerance_ns + max_wait_ns) for _ in range(cameras)]
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
            if queue.frames
            and now_ns - queue.frames[-1].arrival_ns <= max(self._gone_after_ns, GONE_PERIODS * queue.period_ns)
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
            and (due_ns := self._due_ns(frame, live, now_ns)) <= now_ns
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

    def _due_ns(self, frame: Timed[T], live: list[int], now_ns: int) -> int:
        """When every other live camera had reached the frame's instant, or the wait for them ends."""
        pace = self._queues[self._pace]
        last_ns = frame.arrival_ns + self._max_wait_ns
        due_ns = frame.arrival_ns
        for index in live:
            queue = self._queues[index]
            is_hopeless = queue.lag_ns - pace.lag_ns > self._max_wait_ns + pace.period_ns
            if queue.pace_ns(now_ns) < SLOWER * pace.period_ns and not is_hopeless:
                enough_ns = frame.captured_ns - max(pace.period_ns, queue.period_ns) / 2
                reached = (other.arrival_ns for other in queue.frames if other.captured_ns >= enough_ns)
                due_ns = max(due_ns, next(reached, last_ns))
        return min(due_ns, last_ns)

    def _take(self, instant_ns: int, live: list[int], skipped: int) -> FrameSet[T]:
        chosen: dict[int, Timed[T]] = {}
        for index in live:
            queue = self._queues[index]
            chosen[index] = queue.nearest(instant_ns)
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
