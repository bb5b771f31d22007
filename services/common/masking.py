"""What may hold a password is masked before anybody sees it: in logs, in the status, in messages.

A camera's password stands in its URL: before the ``@``, in the query, or, with some makers, in the path as
``/user=admin&password=...``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_URL = re.compile(r"[A-Za-z][\w+.-]*://\S+")
_USER = re.compile(r"://.*@", re.DOTALL)
_QUERY = re.compile(r"([?#])[^'\"]*", re.DOTALL)
_ASSIGNMENT = re.compile(r"=[^/?#'\"]*")


def mask_url(url: str) -> str:
    """The URL without user, password, query, fragment and the values in its path, for people to read.

    All up to the last ``@`` is taken for the user and the password, for a password may hold any character, and a URL
    of FFmpeg another one. Quotes that stand around the URL stay.
    """
    url = _USER.sub(f"://{MASK}@", url)
    if "://" not in url:
        return url
    url = _QUERY.sub(rf"\1{MASK}", url, count=1)
    return _ASSIGNMENT.sub(f"={MASK}", url)


def mask_text(text: str) -> str:
    """The text with all its URLs masked."""
    return _URL.sub(lambda found: mask_url(found[0]), text)


def mask_value(value: Any) -> Any:
    """A value of an event with all URLs masked, within lists, tuples and mappings too."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {mask_value(key): mask_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [mask_value(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    shown = repr(value)
    return mask_text(shown) if "://" in shown else value
