"""Run the tasks of a panorama in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait


def run_all(pool: Executor | None, tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks in the pool's threads, or in this thread if it is None. Block until all tasks have ended.

    Raises:
        Exception: The first exception of a task.
    """
    if pool is None:
        for task in tasks:
            task()
        return
    # Wait for all tasks before raising: afterwards the slot may hold another frame, into which they would write.
    futures = [pool.submit(task) for task in tasks]
    wait(futures)
    for future in futures:
        future.result()
