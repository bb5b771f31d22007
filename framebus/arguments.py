"""Validation of the arguments of the public API.

Arguments are checked where they enter, to ensure that a wrong one raises an :class:`~framebus.errors.InvalidArgument`
which names it, instead of failing deeper inside.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

from framebus.errors import InvalidArgument, UnsupportedEnvironment


def whole_number(value: Any, what: str, least: int, most: int | None = None) -> int:
    """Return ``value`` as an int.

    The conversion is that of ``operator.index()``: it accepts numpy's integers and rejects floats.

    Args:
        value: The value that the caller passed.
        what: The argument's name, for the message.
        least: The smallest value allowed.
        most: The largest value allowed; ``None`` for no limit.

    Raises:
        InvalidArgument: ``value`` is not a whole number, or out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        limits = f"{least} or more" if most is None else f"from {least} to {most}"
        raise InvalidArgument(f"{what} is a whole number, {limits}, not {short_repr(value)}")
    return number


def seconds(value: Any, what: str) -> float | None:
    """Return ``value`` as a number of seconds. ``None``, which means no time-out, is returned unchanged.

    Raises:
        InvalidArgument: ``value`` is not a number, not finite, or negative.
    """
    if value is None:
        return None
    try:
        # float() would also accept text.
        number = float(value) if not isinstance(value, (str, bytes, bytearray)) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InvalidArgument(
            f"{what} is a finite number of seconds from 0 on, or None for no limit, not {short_repr(value)}"
        )
    return number


def boolean(value: Any, what: str) -> bool:
    """Return ``value`` as a bool.

    Raises:
        InvalidArgument: ``value`` has no truth value, for example because it is an array of several elements.
    """
    try:
        return bool(value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{what} is True or False, not {short_repr(value)}") from None


def short_repr(value: Any) -> str:
    """Return the beginning of the value's repr for an error message, or its type if the repr cannot be made."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python refuses to convert an integer of more than some thousand digits
        return f"{type(value).__name__} of a size that cannot be shown"


def one_of(value: Any, what: str, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the allowed words.

    Raises:
        InvalidArgument: ``value`` is not one of them.
    """
    if not isinstance(value, str) or value not in allowed:
        words = ", ".join(map(repr, allowed[:-1]))
        raise InvalidArgument(f"{what} is {words} or {allowed[-1]!r}, not {short_repr(value)}")
    return value


def check_environment() -> None:
    """Check that no library has patched the threads, sockets and polls of the standard library.

    Raises:
        UnsupportedEnvironment: gevent or eventlet has patched them. framebus waits in the kernel, which would block
            every green thread.
    """
    for module_name in ("gevent.monkey", "eventlet.patcher"):
        module = sys.modules.get(module_name)
        if module is None:
            continue
        # gevent and eventlet record what they have patched here; merely importing them patches nothing.
        saved = getattr(module, "saved", None) or getattr(module, "already_patched", None)
        if saved:
            library = module_name.partition(".")[0]
            raise UnsupportedEnvironment(
                f"{library} has patched the standard library, and framebus waits in the kernel, which would stop every "
                f"green thread: use framebus in a process of its own, without {library}'s patches"
            )
