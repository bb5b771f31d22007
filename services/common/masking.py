"""Mask passwords before a text reaches logs, the status or messages.

A camera's URL holds its password before the ``@``, in the query or, with some vendors, in the path, as in
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
    """Return the URL without user, password, query, fragment and the values in its path.

    Everything up to the last ``@`` counts as credentials, because a password may hold any character, including those
    of another URL. Quotes around the URL are kept.
    """
    # Credentials first: a '?' or '=' in the password must not end what is masked.
    url = _USER.sub(f"://{MASK}@", url)
    if "://" not in url:
        return url
    url = _QUERY.sub(rf"\1{MASK}", url, count=1)
    return _ASSIGNMENT.sub(f"={MASK}", url)


def mask_text(text: str) -> str:
    """Return the text with all URLs masked."""
    return _URL.sub(lambda found: mask_url(found[0]), text)


def mask_value(value: Any) -> Any:
    """Return a value of an event with all URLs masked, including those inside lists, tuples and mappings."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {mask_value(key): mask_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [mask_value(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    # Other objects, such as exceptions, may hold a URL in their text.
    shown = repr(value)
    return mask_text(shown) if "://" in shown else value
