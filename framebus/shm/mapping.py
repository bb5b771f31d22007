"""Files mapped into memory, without a descriptor for each.

``mmap.mmap`` keeps a duplicate of the descriptor that it maps until Python 3.13; mmap(2) itself needs none.

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
    """A part of a mapping that numpy makes an array of, on which all views on that part are based."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, owner: object, address: int, shape: tuple[int, ...], typestr: str) -> None:
        """Show a part of a mapping that is mapped for writing.

        Args:
            owner: What keeps the file mapped.
            address: Where the part begins in this process.
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
    """A whole file, mapped and shared. It is unmapped when the last array or view on it goes."""

    __slots__ = ("_size", "_writable", "address")

    def __init__(self, fd: int, size: int, *, writable: bool) -> None:
        """Map the file; for writing with all its pages at once, for reading with none.

        Raises:
            OSError: The kernel cannot map it.
        """
        self.address: int = 0
        """Where the file begins in this process."""
        self._size = size
        self._writable = writable
        flags, protection = mmap.MAP_SHARED, mmap.PROT_READ
        if writable:
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
        """The file's bytes; the view, and whatever is made of it, keeps the file mapped."""
        return np.asarray(self).data

    # The name is bound early: the last view may go while the interpreter's modules are already torn down.
    def __del__(self, _munmap: Any = _munmap) -> None:
        address, self.address = self.address, 0
        if address:
            _munmap(address, self._size)
