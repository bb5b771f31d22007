"""Files mapped into memory, without keeping a descriptor for each.

Before Python 3.13, ``mmap.mmap`` keeps a duplicate of the descriptor that it maps. mmap(2) itself requires none.

Source: mmap(2), MAP_POPULATE.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, Final

import numpy as np

_libc: Final = ctypes.CDLL(None, use_errno=True)
_mmap: Final = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_munmap: Final = _libc.munmap
_munmap.restype = ctypes.c_int
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED: Final = ctypes.c_void_p(-1).value


class Window:
    """A part of a mapping that numpy can wrap as an array. All views of that array have it as their base."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, owner: object, address: int, shape: tuple[int, ...], typestr: str) -> None:
        """Describe a part of a writable mapping.

        Args:
            owner: The object that keeps the file mapped.
            address: Address of the part in this process.
            shape: Shape of the array.
            typestr: numpy's name of the type of its values.
        """
        self._owner = owner
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": shape,
            "typestr": typestr,
            "data": (address, False),
        }


class Mapping:
    """A whole file, mapped and shared. It is unmapped when its last array or view goes."""

    __slots__ = ("_size", "_writable", "address")

    def __init__(self, fd: int, size: int, *, writable: bool) -> None:
        """Map the file. A writable mapping is prefaulted as a whole; a read-only one is not.

        Raises:
            OSError: The kernel cannot map it.
        """
        self.address: int = 0
        """Address of the file in this process."""
        self._size = size
        self._writable = writable
        flags, protection = mmap.MAP_SHARED, mmap.PROT_READ
        if writable:
            # A writer touches every page, so take all page faults here instead of at its first frames.
            flags, protection = flags | mmap.MAP_POPULATE, protection | mmap.PROT_WRITE
        address = _mmap(None, size, protection, flags, fd, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address = address

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self._size,), "typestr": "|u1", "data": (self.address, not self._writable)}

    def view(self) -> memoryview:
        """Return the bytes of the file. The view, and every object made from it, keeps the file mapped."""
        return np.asarray(self).data

    # Bind _munmap early, because the last view may go when the interpreter has already cleared its modules.
    def __del__(self, _munmap: Any = _munmap) -> None:
        # Forget the address first, so that a second call cannot unmap memory that was mapped since.
        address, self.address = self.address, 0
        if address:
            _munmap(address, self._size)
