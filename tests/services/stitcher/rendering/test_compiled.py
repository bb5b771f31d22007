"""The compiled renderer: equal bytes with AVX2 and without, no access outside the planes, and rejected arguments."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.stitcher.rendering import choice
from services.stitcher.rendering.choice import choose
from tests.services.stitcher.rendering.conftest import needs_compiled
from tests.support import ROOT, lacks

SOURCE = ROOT / "services/stitcher/rendering/_warp_c.c"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g")
ROWS, BLOCKS, WIDTH = 24, 4, 60
FAR = 2**31 - 1


def arguments(seed: int, **changes: Any) -> dict[str, Any]:
    """Return arguments of ``warp()``: pictures of all kinds, and places inside, outside and far away."""
    random = np.random.default_rng(seed)
    down, across = (int(step) for step in random.integers(1, 3, 2))
    height, width = (int(size) for size in random.integers(2, 90, 2))
    half = (height // down + 2, width // across + 2)
    places = np.zeros((ROWS, BLOCKS, 4), np.int32)
    places[..., 0] = random.integers(-8 * 4096, (width + 8) * 4096, (ROWS, BLOCKS))
    places[..., 1] = random.integers(-8 * 4096, (height + 8) * 4096, (ROWS, BLOCKS))
    step = int(random.choice([600, 4000, 8192, 40000]))
    places[..., 2:] = random.integers(-step // 8, step, (ROWS, BLOCKS, 2)) // [1, int(random.choice([1, 8, 100]))]
    if seed % 7 == 0:
        places[::5] = random.integers(-FAR, FAR, (1, BLOCKS, 4))
    given: dict[str, Any] = {
        "out": random.integers(0, 256, (ROWS + 3, WIDTH + 5, 3), np.uint8),
        "row": 2, "column": 3, "width": WIDTH, "places": places,
        "seen": random.choice(np.array([0, 0xFFFF, 0x0FF0], np.uint16), (ROWS, BLOCKS)) if seed % 2 else None,
        "y": random.integers(0, 256, (height, width), np.uint8),
        "u": random.integers(0, 256, half, np.uint8), "v": random.integers(0, 256, half, np.uint8),
        "chroma_step": (down, across), "black": int(random.choice([0, 16])),
        "factors": random.integers(-20000, 20000, (3, 3), np.int16),
        "brightness": random.integers(8000, 32767, (ROWS, BLOCKS, 2), np.int16) if seed % 3 else None,
        "shares": random.integers(0, 257, (ROWS, WIDTH), np.uint16) if seed % 5 == 0 else None,
        "may_use_avx2": True,
    }  # fmt: skip
    return given | changes


def warp(**given: Any) -> None:
    needs_compiled()
    from services.stitcher.rendering import _warp_c  # noqa: PLC0415  it may not be there

    _warp_c.warp(*given.values())


@pytest.mark.parametrize("seed", range(200))
def test_avx2_makes_the_same_bytes(seed: int) -> None:
    ours, theirs = arguments(seed), arguments(seed, may_use_avx2=False)
    before = ours["out"].copy()
    warp(**ours)
    warp(**theirs)
    np.testing.assert_array_equal(ours["out"], theirs["out"])
    assert (ours["out"] != before).any()
    ours["out"][2 : 2 + ROWS, 3 : 3 + WIDTH] = before[2 : 2 + ROWS, 3 : 3 + WIDTH]
    np.testing.assert_array_equal(ours["out"], before, "nothing beside the rectangle")


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"out": np.zeros((90, 90, 3), np.int16)}, TypeError, "out: an array of format 'B'"),
        ({"out": np.zeros((90, 90), np.uint8)}, TypeError, "out: .* 3 axes"),
        ({"out": np.zeros((90, 180, 3), np.uint8)[:, ::2]}, ValueError, "out: a stride"),
        ({"out": np.zeros((90, 90, 4), np.uint8)}, ValueError, "pixels of 3 bytes"),
        ({"out": b"not writable"}, BufferError, "writable"),
        ({"out": None}, TypeError, "bytes-like"),
        ({"row": 4}, ValueError, "not all within"),
        ({"row": -1}, ValueError, "not all within"),
        ({"column": 6}, ValueError, "not all within"),
        ({"width": 48}, ValueError, "not the right number"),
        ({"width": 0}, ValueError, "not all within"),
        ({"places": np.zeros((ROWS, BLOCKS, 3), np.int32)}, ValueError, "4 numbers a block"),
        ({"places": np.zeros((ROWS, BLOCKS, 4), np.int64)}, TypeError, "places"),
        ({"seen": np.zeros((ROWS, BLOCKS + 1), np.uint16)}, ValueError, "seen: a shape"),
        ({"brightness": np.zeros((ROWS, BLOCKS, 3), np.int16)}, ValueError, "brightness: a shape"),
        ({"shares": np.zeros((ROWS, WIDTH - 1), np.uint16)}, ValueError, "shares: a shape"),
        ({"factors": None}, TypeError, "factors"),
        ({"y": np.zeros((1, 9), np.uint8)}, ValueError, "y: a plane"),
        ({"y": np.zeros((9, 9), np.uint8)[::-1]}, ValueError, "y: a stride"),
        ({"u": np.zeros((2, 2), np.uint8), "v": np.zeros((2, 3), np.uint8)}, ValueError, "one shape and stride"),
        ({"chroma_step": (4, 1)}, ValueError, "chroma_step"),
        ({"black": 256}, ValueError, "black"),
    ],
)
def test_arguments_that_do_not_fit_are_rejected(changes: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        warp(**arguments(1, **changes))


def test_opencv_is_used_if_it_is_configured_or_the_only_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("opencv") == choice.Choice("opencv")
    monkeypatch.setitem(sys.modules, "services.stitcher.rendering.compiled", None)
    chosen = choose("auto")
    assert chosen.kind == "opencv"
    assert "not built" in str(chosen.reason)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_address_sanitizer_finds_no_fault(tmp_path: Path) -> None:
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    try:
        asked = [*compiler, "-print-file-name=libasan.so"]
        runtime = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        lacks("no C compiler: run 'make system-packages'")
    if not Path(runtime).is_file():
        lacks(f"the C compiler has no AddressSanitizer: install the libasan that belongs to {compiler[0]}")
    for folder in ("framebus", "services", "tests"):
        left_out = shutil.ignore_patterns("__pycache__", "_warp_c.*.so", "*.onnx", "footage")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=left_out)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    module = tmp_path / "services/stitcher/rendering/_warp_c.abi3.so"
    include = f"-I{sysconfig.get_path('include')}"
    command = [*compiler, "-shared", "-fPIC", "-std=c11", *SANITIZERS, include, str(SOURCE), "-o", str(module)]
    subprocess.run(command, check=True, timeout=120)
    folder = "tests/services/stitcher/rendering"
    tests = [f"{folder}/test_compiled.py", f"{folder}/test_stitch.py", "-k", "not opencv", "-m", "not long"]
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": runtime,
        # CPython and numpy do not free memory that lives as long as the process.
        "ASAN_OPTIONS": "detect_leaks=0",
        # Python's own arenas would hide an access outside an object.
        "PYTHONMALLOC": "malloc",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runtime error" not in done.stderr
