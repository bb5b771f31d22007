"""User and password of a camera or server: in a URL, in a file or in an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

ENCODED = "'#' as %23, '?' as %3F, '/' as %2F, '[' as %5B, ']' as %5D, '@' as %40, '%' as %25, ':' as %3A"
_AUTHORITY = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)(.*)$", re.DOTALL)
_HOST_AFTER_AT = re.compile(r"@(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]*)?([/?#]|$)")
_BARE_IN_USER = re.compile(r"[@\[\]]|%(?![0-9A-Fa-f]{2})")


class MissingPassword(ValueError):
    """The password cannot be read. The message names its source and the reason."""


def check_credentials(url: str) -> None:
    """Reject a URL whose user or password has an unencoded delimiter. The message shows neither of the two.

    FFmpeg and Python split such a URL at different places, so part of the password may be taken for the host.

    Raises:
        ValueError: The URL needs percent-encoding, or cannot be parsed.
    """
    # Take the URL apart by hand: urlsplit() ends the host at a '/', '?' or '#' of the password.
    found = _AUTHORITY.match(url)
    if found is None:
        return
    authority, rest = found[1], found[2]
    user, at, _host = authority.rpartition("@")
    bare = bool(_BARE_IN_USER.search(user))
    if not at and _HOST_AFTER_AT.search(rest):
        name, colon, port = authority.rpartition(":")
        # user:part-of-password looks like host:port. A real host with a port has digits after the colon and a dot or
        # brackets before it. A camera's URL never needs a fragment.
        looks_like_host = "." in name or name.startswith("[") or name == "localhost"
        bare = rest.startswith("#") or (bool(colon) and not (port.isdigit() and looks_like_host))
    if bare:
        raise ValueError(f"user and password of the URL must be percent-encoded: {ENCODED}")
    try:
        urlsplit(url)
    except ValueError:  # its message may show the password
        raise ValueError("the URL's host, user or password is malformed") from None


def read_password(file: Path | None, variable: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Read the password from a file or an environment variable. Return ``None`` if neither is configured.

    Raises:
        MissingPassword: The file cannot be read or is empty, or the variable is not set.
    """
    if file is not None:
        try:
            # Strip the end of the line only, because a password may end with a space.
            password = file.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise MissingPassword(f"the password's file {file} cannot be read: {reason}") from None
        if not password:
            raise MissingPassword(f"the password's file {file} is empty")
        return password
    if variable is None:
        return None
    if not (password := environment.get(variable, "")):
        raise MissingPassword(f"the environment variable {variable} with the password is not set")
    return password


def with_credentials(url: str, username: str | None, password: str | None) -> str:
    """Return the URL with user and password, percent-encoded. A user that the URL already names is kept."""
    if password is None:
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        user = quote(username or "", safe="")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))
