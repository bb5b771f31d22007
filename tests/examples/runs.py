"""Follows the README files of the examples, and checks what they print.

Each run takes a desk, whose interpreter may be that of another environment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tests.examples.terminals import Desk, terminal_commands
from tests.support import ROOT

EXAMPLES: Final = ROOT / "examples"
BAR: Final = re.compile(r"frame (\d+): number (\d+), bar at (\d+), skipped (\d+)")


def page(folder: str) -> Path:
    """Return an example's README."""
    return EXAMPLES / folder / "README.md"


def check_bars(lines: list[str]) -> None:
    """Check that the sequences rise, and that each picture belongs to its metadata."""
    newest = 0
    for line in lines:
        found = BAR.fullmatch(line)
        assert found is not None, line
        sequence, number, bar, skipped = map(int, found.groups())
        assert number == sequence - 1
        assert bar == number * 8 % 1280
        assert newest in (0, sequence - skipped - 1)
        newest = sequence


def publisher_and_subscriber(desk: Desk) -> None:
    """Interrupt the publisher, and check that the subscriber says that it is gone."""
    publish, subscribe = terminal_commands(page("publish_subscribe"))
    publisher = desk.open(publish, "camera")
    assert publisher.line() == f"publishing {desk.name('camera')}"
    subscriber = desk.open(subscribe, "camera")
    lines = subscriber.lines(5)
    assert publisher.interrupt() == ""
    output, errors = subscriber.ended(status=1)
    check_bars(lines + output.splitlines())
    assert errors.startswith(f"the publisher of '{desk.name('camera')}'")
    assert errors.count("\n") == 1


def subscriber_first(desk: Desk) -> None:
    """Start the subscriber first; interrupt it, and then the publisher."""
    publish, subscribe = terminal_commands(page("publish_subscribe"))
    subscriber = desk.open(subscribe, "camera")
    publisher = desk.open(publish, "camera")
    lines = subscriber.lines(5)
    check_bars(lines + subscriber.interrupt().splitlines())
    publisher.line()
    publisher.interrupt()


def event_loops(desk: Desk) -> None:
    """Check that both streams arrive in one loop, and that both sides end on Ctrl-C."""
    publish, subscribe = terminal_commands(page("asyncio"))
    publisher = desk.open(publish, "left", "right")
    publisher.lines(2)
    subscriber = desk.open(subscribe, "left", "right")
    seen: set[str] = set()
    while seen != {desk.name("left"), desk.name("right")}:
        found = re.fullmatch(r"(\S+) (\d+): brightness (\d+)", subscriber.line())
        assert found is not None
        assert int(found[3]) == (int(found[2]) - 1) % 256
        seen.add(found[1])
    subscriber.interrupt()
    publisher.interrupt()


def chain(desk: Desk) -> None:
    """Check that pictures and metadata pass two stages, and that the end of the source ends all stages."""
    source, halve, negate, report = terminal_commands(page("chain"))
    publisher = desk.open(source, "camera")
    stages = [desk.open(halve, "camera", "half"), desk.open(negate, "half", "negative")]
    end = desk.open(report, "negative")
    ages = []
    for line in end.lines(5):
        found = re.fullmatch(r"number (\d+): bar at (\d+), captured (\d+\.\d) ms ago", line)
        assert found is not None, line
        number, bar = int(found[1]), int(found[2])
        assert bar == number * 8 % 1280 // 2
        ages.append(float(found[3]))
    assert min(ages) > 0
    publisher.line()
    publisher.interrupt()
    for stage, gone in zip([*stages, end], ("camera", "half", "negative"), strict=True):
        assert stage.ended(status=1)[1].startswith(f"the publisher of '{desk.name(gone)}'")


def opencv(desk: Desk) -> None:
    """Check that a file's pictures reach the subscriber, and differ."""
    capture, motion = terminal_commands(page("opencv"))
    publisher = desk.open(capture, "camera")
    publisher.line()
    watcher = desk.open(motion, "camera")
    changes = [re.fullmatch(r"frame \d+: (\d+\.\d)% changed", line) for line in watcher.lines(4)]
    assert all(change is not None and 0 < float(change[1]) < 50 for change in changes)
    watcher.interrupt()
    publisher.interrupt()


def onnxruntime(desk: Desk) -> None:
    """Check that the network finds people in the footage."""
    capture, detect = terminal_commands(page("onnxruntime"))
    publisher = desk.open(capture, "camera")
    publisher.line()
    detector = desk.open(detect, "camera")
    cells = [re.fullmatch(r"frame \d+: a person in (\d+) cells, skipped \d+", line) for line in detector.lines(3)]
    assert all(found is not None and int(found[1]) > 0 for found in cells)
    detector.interrupt()
    publisher.interrupt()


def torch(desk: Desk) -> None:
    """Check that the mean is that of a picture with one white column."""
    publish, average = terminal_commands(page("torch"))
    publisher = desk.open(publish, "camera")
    publisher.line()
    subscriber = desk.open(average, "camera")
    for line in subscriber.lines(3):
        assert line.endswith(": blue 0.001, green 0.001, red 0.001"), line
    subscriber.interrupt()
    publisher.interrupt()


WITH_FRAMEBUS_ALONE: Final = (publisher_and_subscriber, subscriber_first, event_loops, chain)
"""Runs that need framebus and nothing else."""
