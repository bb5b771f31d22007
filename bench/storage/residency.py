"""Measures, from within containers, which part of a file is in memory: whether two containers share its pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.storage.engine import Engine
from bench.storage.mounts import drop_caches

PROGRAM: Final = """\
import ctypes, mmap, os, sys
path = sys.argv[1]
size = os.stat(path).st_size
file = os.open(path, os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
pages = -(-size // mmap.PAGESIZE)
flags = (ctypes.c_ubyte * pages)()
assert libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), flags) == 0
print(sum(flag & 1 for flag in flags) / pages)
if "read" in sys.argv:
    while os.read(file, 1 << 20):
        pass
"""


def shared_part(ours: Engine, path: str, first: Sequence[str], second: Sequence[str]) -> float:
    """Return the share of a file that a second container finds in memory after a first has read it, from 0 to 1.

    Args:
        ours: The engine.
        path: The file in both containers.
        first: Options and image of the container that reads it.
        second: Options and image of the container that only calls mincore.

    Raises:
        NotHere: The caches cannot be dropped, or a container failed.
    """
    drop_caches()
    # As root, because mincore(2) calls all pages resident for a process that neither owns the file nor may write to it.
    before = float(ours.run("--user", "root", *first, "python3", "-c", PROGRAM, path, "read"))
    after = float(ours.run("--user", "root", *second, "python3", "-c", PROGRAM, path))
    # Subtract what was in memory already before the first container read the file.
    return max(0.0, after - before)
