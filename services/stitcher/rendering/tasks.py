"""The tasks that a panorama is rendered in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait


def run_all(pool: Executor | None, tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks in the pool's threads, or in this one; return when all have ended.

    Raises:
        Exception: What a task raised.
    """
    if pool is None:
        for task in tasks:
            task()
        return
    # All must have ended before an error leaves: the slot may be another frame's after that.
    futures = [pool.submit(task) for task in tasks]
    wait(futures)
    for future in futures:
        future.result()
