"""Follows docs/tutorial.md and checks its promises; the interpreter may be that of another environment."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Final

from tests.examples.terminals import Desk, Terminal, blocks
from tests.support import ROOT, wait_until

PAGE: Final = ROOT / "docs/tutorial.md"
STREAM: Final = "tutorial"
SAVED: Final = re.compile(r"^Save this as `([\w.]+)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_BLOCKS: Final = [block.splitlines() for block in blocks(PAGE, "sh")]
AT_ONCE: Final = " --interval 0.1"
"""What the tests give ``framebus top`` in addition, which otherwise counts frames for a second."""
FRAME: Final = re.compile(r"life (\d+), frame (\d+), red (\d+), \{'shift': (\d+)\}, skipped (\d+)")
OPENING: Final = re.compile(r"publishing as process (\d+), life (\d+)")


def run(desk: Desk) -> None:
    """Work through the page."""
    folder = desk.folder
    programs = dict(SAVED.findall(PAGE.read_text()))
    assert list(programs) == ["publish.py", "subscribe.py"]
    for name, program in programs.items():
        (folder / name).write_text(desk.rename(program, STREAM))
    _install, publish, subscribe, look, be_slow, look_again, kill, restart, leave, _demo = COMMAND_BLOCKS

    publisher, identity, life = start_publisher(desk, publish)
    subscriber = open_one(desk, subscribe)
    check_frames(subscriber.lines(5), life)
    look_from_outside(desk, look, folder)
    check_frames(subscriber.interrupt().splitlines(), life)

    subscriber = open_one(desk, be_slow)
    slow = check_frames(subscriber.lines(4), life)
    assert all(skipped > 2 for _, skipped in slow[1:])
    top = desk.run(look_again[0] + AT_ONCE, STREAM)
    assert f"{desk.name(STREAM)}  (publisher)" in top

    kill_it, list_it = kill
    assert kill_it == "kill -9 PID"
    os.kill(identity, signal.SIGKILL)
    publisher.ended(status=-signal.SIGKILL)
    wait_until(lambda: line_of(desk, list_it).split()[1:2] == ["gone"], "a stream that is gone")

    publisher, identity, next_life = start_publisher(desk, restart)
    assert next_life != life
    lines = [subscriber.line()]
    while not lines[-1].startswith(f"life {next_life},"):
        lines.append(subscriber.line())
    before = [line for line in lines if line.startswith(f"life {life},")]
    resumed = check_frames(lines[-1:], next_life)[0][0]
    assert resumed > max([*(sequence for sequence, _ in slow), *(one for one, _ in check_frames(before, life))])
    subscriber.interrupt()
    assert publisher.interrupt() == ""
    assert line_of(desk, leave[0]) == ""


def open_one(desk: Desk, block: list[str]) -> Terminal:
    """Start the one command of a block."""
    (command,) = block
    return desk.open(command)


def start_publisher(desk: Desk, block: list[str]) -> tuple[Terminal, int, int]:
    """Start the publisher; return its terminal, its process and its life."""
    publisher = open_one(desk, block)
    said = OPENING.fullmatch(publisher.line())
    assert said is not None
    assert int(said[1]) == publisher.process.pid
    return publisher, int(said[1]), int(said[2])


def check_frames(lines: list[str], life: int) -> list[tuple[int, int]]:
    """Check lines of the subscriber; return each frame's sequence, and the number of frames skipped before it."""
    frames: list[tuple[int, int]] = []
    for line in lines:
        found = FRAME.fullmatch(line)
        assert found is not None, line
        epoch, sequence, red, shift, skipped = map(int, found.groups())
        assert epoch == life
        assert red == shift == (sequence - 1) % 256
        if frames:
            assert sequence == frames[-1][0] + skipped + 1
        frames.append((sequence, skipped))
    return frames


def look_from_outside(desk: Desk, block: list[str], folder: Path) -> None:
    """Run the four commands of that section."""
    list_it, top, inspect, snapshot = block
    name = desk.name(STREAM)
    assert line_of(desk, list_it).split()[1:3] == ["live", "1280x720x3"]
    shown = desk.run(top + AT_ONCE)
    assert re.search(rf"^{name} +\(publisher\)\s", shown, re.MULTILINE), shown
    assert "\n  watcher: newest, wake zmq, " in desk.run(inspect, STREAM)
    desk.run(snapshot, STREAM)
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def line_of(desk: Desk, command: str) -> str:
    """Return the line of ``framebus list`` on the tutorial's stream, if there is one."""
    lines = desk.run(command).splitlines()
    return next((line for line in lines if line.split()[:1] == [desk.name(STREAM)]), "")
