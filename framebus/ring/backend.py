"""Chooses the steps of a hand-over: compiled, or the same in Python where those were not built."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Final

from framebus.errors import UnsupportedEnvironment
from framebus.ring import _ring_py

BACKEND: Final = "FRAMEBUS_BACKEND"
"""Environment variable that chooses: ``c``, ``python``, or ``auto`` for the first of the two that is there."""
REMEDY: Final = "install a C compiler, Python's headers and framebus again"
"""What to do if the compiled steps were not built."""
CHOICES: Final = {"auto": ("_ring_c", "_ring_py"), "c": ("_ring_c",), "python": ("_ring_py",)}


def name() -> str:
    """Which steps are in use: ``c`` or ``python``."""
    return "python" if steps is _ring_py else "c"


def check() -> None:
    """Refuse to work with other steps than those asked for.

    Raises:
        UnsupportedEnvironment: FRAMEBUS_BACKEND names none, or the compiled ones, which were not built.
    """
    if _fault:
        raise UnsupportedEnvironment(_fault)


def _load(wanted: str) -> tuple[ModuleType, str, str]:
    """Return the module to use, why ``wanted`` cannot be had, and why the compiled steps were looked for in vain."""
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
"""What this process asked for."""
_module, _fault, _missing = _load(asked)
missing: Final = _missing
"""Why the compiled steps cannot be loaded; empty if they can, or were not looked for."""
steps = _ring_py
"""The module in use, with ``Writer``, ``Reader``, ``Claim`` and ``Lease``; the two have the same types."""
if not TYPE_CHECKING:
    steps = _module
