"""Which files are removed from wheels, and which must stay."""

from __future__ import annotations

import csv
import ctypes
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from wheel.wheelfile import WheelFile  # type: ignore[import-untyped]

from deploy.images.lean import make_lean
from tests.support import lacks

pytestmark = pytest.mark.slow

PADDING = b"# padding\n" * 40_000
KEPT = {
    "demo/__init__.py": b"import demo.module\n",
    "demo/module.py": b"value = 1\n",
    "demo/tests_of_hardware.py": b"",
    "demo-1.0.dist-info/licenses/NOTICE.h": b"a licence may have any name\n",
}
REMOVED = {
    "demo/__init__.pyi": b"value: int\n",
    "demo/include/demo.h": PADDING,
    "demo/lib/libdemo.a": PADDING,
    "demo/module.pxd": b"",
}


def write(folder: Path, name: str, files: dict[str, bytes], programs: tuple[str, ...] = ()) -> Path:
    """Make a wheel from the given files."""
    content = folder / "content"
    for path, data in files.items():
        target = content / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o755 if path in programs else 0o644)
    info = content / f"{name}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with WheelFile(str(wheel), "w") as opened:
        opened.write_files(str(content))
    shutil.rmtree(content)
    return wheel


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_files_for_compilers_and_type_checkers_are_removed(tmp_path: Path) -> None:
    wheel = write(tmp_path, "demo", KEPT | REMOVED)
    assert make_lean(wheel) == sum(len(content) for content in REMOVED.values())
    left = names(wheel)
    assert left >= KEPT.keys()
    assert not left & REMOVED.keys()


def test_the_record_lists_the_files_that_remain(tmp_path: Path) -> None:
    wheel = write(tmp_path, "demo", KEPT | REMOVED)
    make_lean(wheel)
    with WheelFile(str(wheel)) as opened:  # which checks each file's hash when it is read
        assert all(opened.read(name) is not None for name in opened.namelist())
        rows = list(csv.reader(opened.read("demo-1.0.dist-info/RECORD").decode().splitlines()))
    assert {path for path, _, _ in rows} == names(wheel)


def test_programs_stay_executable(tmp_path: Path) -> None:
    program = "demo-1.0.data/scripts/demo"
    wheel = write(tmp_path, "demo", KEPT | REMOVED | {program: b"#!/bin/sh\n"}, programs=(program,))
    make_lean(wheel)
    assert zipfile.ZipFile(wheel).getinfo(program).external_attr >> 16 & 0o777 == 0o755


def test_a_wheel_that_would_lose_little_stays_as_it_is(tmp_path: Path) -> None:
    wheel = write(tmp_path, "demo", KEPT | {"demo/__init__.pyi": b"value: int\n"})
    before = wheel.read_bytes()
    assert make_lean(wheel) == 0
    assert wheel.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "kept", "removed"),
    [
        ("numpy", "numpy/_core/multiarray.py", "numpy/_core/tests/test_umath.py"),
        ("numpy", "numpy/lib/_npyio_impl.py", "numpy/f2py/crackfortran.py"),
        ("onnxruntime", "onnxruntime/capi/_pybind_state.py", "onnxruntime/capi/libonnxruntime.so.1"),
        ("onnxruntime", "onnxruntime/__init__.py", "onnxruntime/transformers/models/bert.py"),
        ("opencv_python_headless", "cv2/data/__init__.py", "cv2/data/haarcascade_eye.xml"),
        ("zstandard", "zstandard/backend_c.py", "zstandard/_cffi.cpython-311-x86_64-linux-gnu.so"),
        ("pyzmq", "zmq/error.py", "zmq/tests/test_socket.py"),
    ],
)
def test_files_of_a_library_for_other_purposes_are_removed(tmp_path: Path, name: str, kept: str, removed: str) -> None:
    wheel = write(tmp_path, name, {kept: b"", removed: PADDING})
    assert make_lean(wheel) == len(PADDING)
    assert kept in names(wheel)
    assert removed not in names(wheel)


def test_in_another_library_a_file_of_that_name_stays(tmp_path: Path) -> None:
    assert make_lean(write(tmp_path, "other", {"other/f2py/core.py": PADDING, "other/data/model.xml": PADDING})) == 0


def test_debug_symbols_are_removed_and_the_module_still_loads(tmp_path: Path) -> None:
    if not (compiler := shutil.which("gcc")):
        lacks("gcc is not installed: make system-packages")
    source = tmp_path / "demo.c"
    source.write_text("".join(f"int f{number}(int x) {{ return x + {number}; }}\n" for number in range(3000)))
    library = tmp_path / "libdemo.so"
    subprocess.run([compiler, "-g3", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    wheel = write(tmp_path, "demo", {"demo/libdemo.so": library.read_bytes()})
    assert make_lean(wheel) > 100_000
    zipfile.ZipFile(wheel).extractall(tmp_path / "out")
    stripped = tmp_path / "out/demo/libdemo.so"
    sections = subprocess.check_output(["readelf", "--sections", str(stripped)], text=True)
    assert ".debug_info" not in sections
    assert ctypes.CDLL(str(stripped)).f7(1) == 8
