"""The examples, by the commands of their README files. test_packaging.py runs them with the wheel, the chain too."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.examples import runs
from tests.examples.runs import EXAMPLES
from tests.examples.terminals import Desk, terminal_commands
from tests.support import ROOT

Run = Callable[[Desk], None]
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith("__"))


@pytest.mark.slow
def test_a_subscriber_prints_the_publishers_frames_until_it_is_gone(desk: Desk) -> None:
    runs.publisher_and_subscriber(desk)


@pytest.mark.slow
@pytest.mark.parametrize("run", [runs.subscriber_first, runs.event_loops], ids=["subscriber first", "event loops"])
def test_an_example_that_needs_only_framebus_works(run: Run, desk: Desk) -> None:
    run(desk)


@pytest.mark.slow
@pytest.mark.parametrize("run", [runs.opencv, runs.onnxruntime], ids=["opencv", "onnxruntime"])
def test_an_example_that_uses_a_library_works(run: Run, desk: Desk) -> None:
    run(desk)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="no torch here: pip install torch")
def test_the_torch_example_works(desk: Desk) -> None:
    runs.torch(desk)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("publish_subscribe/publish.py a/b", "'a/b' is not a valid name of a stream"),
        ("opencv/capture.py no-such-file.mp4", "no picture comes from 'no-such-file.mp4'"),
    ],
)
def test_a_wrong_call_prints_one_sentence(command: str, sentence: str, desk: Desk) -> None:
    output, errors = desk.open(f"python examples/{command}").ended(status=1)
    assert output == ""
    assert sentence in errors
    assert "Traceback" not in errors


def test_a_second_publisher_names_the_first(desk: Desk) -> None:
    publish, _ = terminal_commands(runs.page("publish_subscribe"))
    first = desk.open(publish, "camera")
    first.line()
    _, errors = desk.open(publish, "camera").ended(status=1)
    assert errors.count("\n") == 1
    assert desk.name("camera") in errors
    first.interrupt()


def test_the_index_lists_every_folder() -> None:
    listed = re.findall(r"^\| \[([\w-]+)\]\(([\w-]+)\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _ in listed) == FOLDERS
    assert all(name == target for name, target in listed)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_has_terminals_and_no_program_without_one(folder: str) -> None:
    commands = terminal_commands(runs.page(folder))
    assert len(commands) >= 2
    for word in " ".join(commands).split():
        if word.startswith("examples/") and word != "examples/c-reader/reader":  # make builds this program
            assert (ROOT / word).is_file(), word
    compose = "".join(file.read_text() for file in (EXAMPLES / folder).glob("*.yaml"))
    named = {Path(word).name for word in [*" ".join(commands).split(), *re.findall(r"[\w.]+\.py", compose)]}
    assert {path.name for path in (EXAMPLES / folder).glob("*.py")} <= named
