"""Kinds of files, by their paths."""

from __future__ import annotations

import pytest

from bench.image_usage.kinds import KINDS, kind

SITE = "/opt/venv/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{SITE}/numpy/tests/test_matlib.py", "tests"),
        (f"{SITE}/numpy/tests/__pycache__/test_matlib.cpython-311.pyc", "tests"),
        (f"{SITE}/numpy/conftest.py", "tests"),
        (f"{SITE}/numpy/latest.py", "Python"),
        (f"{SITE}/numpy/_core/include/numpy/ndarrayobject.h", "headers"),
        (f"{SITE}/numpy/__init__.pxd", "headers"),
        (f"{SITE}/numpy/__init__.pyi", "type stubs"),
        (f"{SITE}/numpy/_core/lib/libnpymath.a", "static libraries"),
        (f"{SITE}/numpy-2.0.dist-info/RECORD", "package lists"),
        (f"{SITE}/numpy-2.0.dist-info/licenses/LICENSE.txt", "licences"),
        (f"{SITE}/numpy/__pycache__/version.cpython-311.pyc", "byte code"),
        (f"{SITE}/cv2/cv2.abi3.so", "shared libraries"),
        (f"{SITE}/av.libs/libx265-1f9a.so.215", "shared libraries"),
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", "shared libraries"),
        ("/usr/lib/x86_64-linux-gnu/gstreamer-1.0/libgstx264.so", "plug-ins"),
        ("/usr/lib/debug/.build-id/aa/bb.debug", "debug symbols"),
        ("/usr/share/doc/libc6/changelog.Debian.gz", "docs"),
        ("/usr/share/doc/libc6/copyright", "licences"),
        ("/usr/share/man/man1/ls.1.gz", "docs"),
        ("/usr/share/locale/de/LC_MESSAGES/x.mo", "translations"),
        ("/usr/share/zoneinfo/Europe/Berlin", "time zones"),
        ("/var/lib/dpkg/info/libc6.list", "package lists"),
        ("/var/lib/apt/lists/x_Packages.lz4", "package lists"),
        ("/usr/bin/python3.11", "programs"),
        ("/etc/passwd", "settings"),
        ("/clips/cam0.mp4", "other data"),
        ("/usr/lib/python3/dist-packages/README", "docs"),
    ],
)
def test_a_path_has_a_kind(path: str, expected: str) -> None:
    assert kind(path) == expected


def test_each_kind_has_one_name() -> None:
    names = [name for name, _ in KINDS]
    assert len(set(names)) == len(names)
