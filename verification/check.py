"""Breadth-first search of a model's reachable states, with the shortest trace to a violation of a property."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    """A model that can be searched."""

    def initial(self) -> State:
        """Return the initial state."""

    def steps(self, state: State) -> Iterable[tuple[str, State]]:
        """Yield every possible next step: its name, and the state after it."""

    def broken(self, state: State) -> str | None:
        """Return the property that the state violates, if any."""

    def is_good(self, state: State) -> bool:
        """Return whether the processes have made progress here. Such a state must be reachable from every state."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a search."""

    states: int
    """States reached."""
    steps: int
    """Steps taken between them."""
    depth: int
    """Steps from the initial state to the farthest."""
    broken: str | None
    """The property that is violated; ``None`` if all hold in every reachable state."""
    trace: tuple[str, ...]
    """The shortest path to the violation."""


def search(model: Model[State], *, limit: int = 2_000_000) -> Outcome:
    """Visit every reachable state, or stop at the first that violates a property.

    If no state does, check whether a good state is reachable from every state. If not, a process waits forever.

    Args:
        model: The model to search.
        limit: Maximum number of states to visit.

    Raises:
        MemoryError: There are more than ``limit`` states: the model's bounds are too wide.
    """
    start = model.initial()
    # States are numbered in the order in which they are found. A number takes less memory than a state.
    numbers = {start: 0}
    states = [start]
    came_from = [(-1, "")]
    followers: list[list[int]] = []
    depth, level_end = 0, 1
    steps = 0
    for number, state in _growing(states):
        # States are found level by level, so the level of a state is its distance from the initial state.
        if number == level_end:
            depth, level_end = depth + 1, len(states)
        if (broken := model.broken(state)) is not None:
            return Outcome(len(states), steps, depth, broken, _trace(came_from, number))
        reached = []
        for name, after in model.steps(state):
            steps += 1
            known = numbers.setdefault(after, len(states))
            if known == len(states):
                states.append(after)
                came_from.append((number, name))
                if known >= limit:
                    raise MemoryError(f"more than {limit} states")
            reached.append(known)
        followers.append(reached)
    stuck = _first_stuck(followers, [model.is_good(state) for state in states])
    if stuck is not None:
        return Outcome(len(states), steps, depth, "no process waits forever", _trace(came_from, stuck))
    return Outcome(len(states), steps, depth, None, ())


def _growing(states: list[State]) -> Iterator[tuple[int, State]]:
    number = 0
    while number < len(states):
        yield number, states[number]
        number += 1


def _trace(came_from: list[tuple[int, str]], number: int) -> tuple[str, ...]:
    names = []
    while number > 0:
        number, name = came_from[number]
        names.append(name)
    return tuple(reversed(names))


def _first_stuck(followers: list[list[int]], good: list[bool]) -> int | None:
    """Return the first state from which no good state can be reached."""
    before: list[list[int]] = [[] for _ in followers]
    for number, reached in enumerate(followers):
        for after in reached:
            before[after].append(number)
    # Search backwards from the good states, which visits each step once.
    alive = list(good)
    todo = [number for number, is_good in enumerate(good) if is_good]
    while todo:
        for earlier in before[todo.pop()]:
            if not alive[earlier]:
                alive[earlier] = True
                todo.append(earlier)
    return next((number for number, is_alive in enumerate(alive) if not is_alive), None)
