"""Ways to find people are compared in turns."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from bench.slices import Look, compared, in_turns, row


def test_each_way_looks_at_each_picture_as_often_and_the_first_time_does_not_count() -> None:
    calls: dict[str, list[int]] = {"a": [], "b": []}
    order: list[str] = []

    def way(name: str) -> Callable[[int], Look]:
        def look(number: int) -> Look:
            order.append(name)
            calls[name].append(number)
            first = len(calls[name]) <= 3
            return Look(np.full((1, 4), number, np.float32), 99.0 if first else 1.0, 1.0)

        return look

    looks = in_turns({name: way(name) for name in calls}, 3, 20)
    assert calls == {"a": [0, 1, 2] * 21, "b": [0, 1, 2] * 21}
    assert [[look.boxes[0, 0] for look in several] for several in looks.values()] == [[0, 1, 2] * 20] * 2
    assert all(look.cpu_s == 1.0 for several in looks.values() for look in several)
    firsts = order[::2]
    assert set(firsts) == {"a", "b"}, "neither way is always first"


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_the_ratio_of_times_is_that_of_neighbouring_turns(factor: float) -> None:
    # The machine becomes ten times slower, which both ways feel alike.
    theirs = np.geomspace(1.0, 10.0, 40)
    ours = factor * theirs * np.resize([1.1, 1 / 1.1], 40)
    told = [float(number) for number in re.findall(r"\d+\.\d+", compared(ours.tolist(), theirs.tolist()))]
    assert told[0] == pytest.approx(factor, abs=1e-3)
    assert told[1] < factor < told[2]


def test_recall_and_precision_count_people_and_boxes() -> None:
    people = np.array([[0, 0, 10, 20], [50, 0, 60, 20]], np.float32)
    found = np.array([[0, 0, 10, 20], [200, 0, 210, 20], [300, 0, 310, 20], [400, 0, 410, 20]], np.float32)
    assert row([Look(found, 0.002, 0.003)], [people]) == "0.50 | 0.25 | 2 | 3"
