"""Selects the implementation of the hand-over steps: the compiled one, or the same in Python if it was not built."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Final

from framebus.errors import UnsupportedEnvironment
from framebus.ring import _ring_py

BACKEND: Final = "FRAMEBUS_BACKEND"
"""Environment variable that selects it: ``c``, ``python``, or ``auto`` for the first of the two that is available."""
REMEDY: Final = "install a C compiler, Python's headers and framebus again"
"""What to do if the compiled module was not built."""
CHOICES: Final = {"auto": ("_ring_c", "_ring_py"), "c": ("_ring_c",), "python": ("_ring_py",)}


def name() -> str:
    """Return which implementation is in use: ``c`` or ``python``."""
    return "python" if steps is _ring_py else "c"


def check() -> None:
    """Check that the implementation that FRAMEBUS_BACKEND names is in use.

    Raises:
        UnsupportedEnvironment: The variable has an unknown value, or names the compiled module, which was not built.
    """
    if _fault:
        raise UnsupportedEnvironment(_fault)


def _load(wanted: str) -> tuple[ModuleType, str, str]:
    """Return the module to use, why ``wanted`` is not available, and why the compiled module could not be imported."""
    if wanted not in CHOICES:
        return _ring_py, f"{BACKEND} is one of {', '.join(CHOICES)}, not {wanted!r}", ""
    missing = ""
    for module in CHOICES[wanted]:
        try:
            return import_module(f"framebus.ring.{module}"), "", missing
        except ImportError as error:
            missing = str(error)
    fault = (
        f"{BACKEND}={wanted} asks for the compiled part of framebus, which was not built ({missing}): {REMEDY}, or "
        "unset the variable"
    )
    return _ring_py, fault, missing


asked: Final = os.environ.get(BACKEND) or "auto"
"""The implementation that this process asked for."""
_module, _fault, _missing = _load(asked)
missing: Final = _missing
"""Why the compiled module could not be imported; empty if it was, or if that was not tried."""
steps = _ring_py
"""The module in use. Both define ``Writer``, ``Reader``, ``Claim`` and ``Lease`` with the same interface."""
if not TYPE_CHECKING:
    steps = _module
