"""Remove from wheels what no service loads: tests, headers, type stubs, tools for developers, debug symbols.

``python lean.py FOLDER`` rewrites the wheels of the folder that become smaller, with a RECORD of the remaining files.
"""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from wheel.wheelfile import WheelFile  # type: ignore[import-untyped]

UNUSED = {
    # In every wheel: files for compilers and type checkers.
    "*": ["*.pyi", "*.pxd", "*.pyx", "*.h", "*.hpp", "*.c", "*.a", "py.typed"],
    "numpy": [
        *("*/tests/*", "*/testing/*", "numpy/_core/_simd*", "numpy/_core/*_tests.*"),
        *("numpy/f2py/*", "numpy/distutils/*", "numpy/_pyinstaller/*"),
    ],
    # The module for Python contains the library. The rest are programs that convert and quantize models.
    "onnxruntime": ["*/capi/libonnxruntime.so*", "*/transformers/*", "*/quantization/*", "*/tools/*", "*/datasets/*"],
    # The trained cascades, which the pipeline's models replace.
    "opencv_python_headless": ["cv2/data/*.xml"],
    "pyzmq": ["zmq/tests/*"],
    # The module for PyPy.
    "zstandard": ["zstandard/_cffi*"],
}
"""Patterns of paths in a wheel, by its distribution's name."""
STRIPPED_AT_LEAST_BYTES = 100_000
"""A wheel that would lose less is not rewritten, because rewriting a large one takes seconds."""


def _is_unused(distribution: str, path: str) -> bool:
    patterns = [*UNUSED["*"], *UNUSED.get(distribution, [])]
    return ".dist-info/" not in path and any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _is_loadable(path: Path) -> bool:
    """Return whether the dynamic linker can map each segment at its place in the file; see p_align in elf(5)."""
    headers = subprocess.check_output(["readelf", "--program-headers", "--wide", str(path)], text=True)
    segments = [line.split() for line in headers.splitlines() if line.split()[:1] == ["LOAD"]]
    return all((int(words[1], 16) - int(words[2], 16)) % int(words[-1], 16) == 0 for words in segments)


def _strip(path: Path) -> None:
    """Remove the debug symbols of a library, unless it could not be loaded then, as some that patchelf has changed."""
    before = path.read_bytes()
    subprocess.run(["strip", "--strip-debug", str(path)], check=True)
    if not _is_loadable(path):
        path.write_bytes(before)


def make_lean(wheel: Path) -> int:
    """Rewrite a wheel without its unused files; return the bytes saved, unpacked."""
    distribution = wheel.name.split("-", 1)[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with WheelFile(str(wheel)) as content:
            for info in content.infolist():
                # Unlike extractall(), keep the mode: programs among the files stay executable.
                target = Path(content.extract(info, folder))
                if mode := info.external_attr >> 16 & 0o777:
                    target.chmod(mode)
        before_bytes = _size_bytes(folder)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if _is_unused(distribution, str(path.relative_to(folder))):
                path.unlink()
            elif ".so" in path.suffixes:
                _strip(path)
        saved_bytes = before_bytes - _size_bytes(folder)
        if saved_bytes >= STRIPPED_AT_LEAST_BYTES:
            wheel.unlink()
            with WheelFile(str(wheel), "w", compression=zipfile.ZIP_STORED) as content:
                content.write_files(str(folder))
            return saved_bytes
    return 0


def main() -> None:
    """Rewrite the wheels of the folder that the command line names."""
    for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
        if saved_bytes := make_lean(wheel):
            print(f"{wheel.name}: {saved_bytes / 1e6:.1f} MB less")


if __name__ == "__main__":
    main()
