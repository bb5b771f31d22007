"""The parts that need neither root nor an engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.storage import drivers, engine, union
from bench.storage.figures import NotHere
from bench.storage.mounts import command, kernel_knows, mounted_below, work_folder
from bench.storage.ring import ended


def test_a_probe_has_a_figure_of_each_kind(tmp_path: Path) -> None:
    union.fill(tmp_path, 3)
    figures = union.probe(tmp_path, 3, can_drop=False)
    assert set(figures) == {"open, us", "stat of a missing name, us", "read 10 MB, ms"}
    assert min(figures.values()) > 0


def test_only_the_bottom_layer_has_the_files(tmp_path: Path) -> None:
    made = union.layers(tmp_path, 3, 2)
    names = [{path.name for path in (layer / union.FOLDER).iterdir()} for layer in made]
    assert names == [{"own0"}, {"own1"}, {"own2", "small0", "small1", "frame"}]


def test_the_last_error_of_an_engine_is_found_in_its_log() -> None:
    log = "time=1 level=info msg=ok\nfailed to start daemon: error initializing graphdriver: driver not supported\n\n"
    assert engine.last_error(log) == "driver not supported"
    assert engine.last_error("") == "the engine ended without a message"


def test_a_build_context_has_the_sources_without_caches(tmp_path: Path) -> None:
    for name in ("framebus", "services"):
        (tmp_path / "from" / name / "__pycache__").mkdir(parents=True)
        (tmp_path / "from" / name / "code.py").write_text("")
    made = drivers.context(tmp_path / "to", "base:1", tmp_path / "from")
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert files == {"Dockerfile", "framebus/code.py", "services/code.py"}
    assert (made / "Dockerfile").read_text().startswith("FROM base:1\n")


@pytest.mark.parametrize(
    ("status", "last", "words"),
    [
        (-signal.SIGBUS, "", "killed by SIGBUS"),
        (1, "NotEnoughSharedMemory: no", "ended with an error: NotEnoughSharedMemory: no"),
        (0, "", "ended well"),
    ],
)
def test_the_end_of_a_process_is_described_in_words(status: int, last: str, words: str) -> None:
    assert ended(status, last) == words


def test_a_failed_or_missing_command_raises_with_one_sentence() -> None:
    with pytest.raises(NotHere, match="no-such-program is not installed"):
        command("no-such-program")
    with pytest.raises(NotHere, match=r"^no room here$"):
        command("sh", "-c", "echo no room here >&2; exit 3")
    assert command("echo", "well") == "well\n"


def test_the_kernel_is_asked_for_file_systems() -> None:
    assert kernel_knows("proc")
    assert not kernel_knows("no-such-file-system")


def test_a_work_folder_is_removed_with_its_content(tmp_path: Path) -> None:
    def interrupted() -> None:
        with work_folder(tmp_path) as folder:
            (folder / "file").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    assert Path("/proc") in mounted_below(Path("/proc"))


def test_a_signal_is_raised_after_the_clean_up() -> None:
    program = (
        "import os, signal\nfrom bench.storage.mounts import held_back\n"
        "try:\n    with held_back():\n        os.kill(os.getpid(), signal.SIGINT)\n        print('undone')\n"
        "except KeyboardInterrupt:\n    print('then interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split("\n")[:2] == ["undone", "then interrupted"]
