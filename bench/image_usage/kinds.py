"""The kind of a file by its path: documentation, tests, headers, byte code and so on."""

from __future__ import annotations

import re
from typing import Final

OTHER: Final = "other data"
KINDS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("debug symbols", r"/usr/lib/debug/|\.(debug|dwo|dwp|pdb)$"),
        ("licences", r"(?i)/(copyright|licen[cs]e[^/]*|notice[^/]*|copying[^/]*|authors[^/]*)$|\.dist-info/licenses/"),
        ("package lists", r"^/var/lib/(dpkg|apt|rpm)/|^/lib/apk/|^/var/cache/|\.(dist|egg)-info/"),
        ("tests", r"/(tests?|testing|testdata|_?pytest_plugins?)/|/(test_[^/]*|[^/]*_tests?|conftest)\.py[ci]?$"),
        ("docs", r"/(doc|docs|man|info|gtk-doc|doc-base|lintian|examples?)/|(?i:/(readme|changelog|changes|news)[^/]*$)"
                 r"|\.(md|rst)$"),
        ("headers", r"/include/|\.(h|hh|hpp|hxx|pxd|cuh)$|/pkgconfig/|\.(cmake|pc)$"),
        ("static libraries", r"\.(a|la|lib)$"),
        ("source of compiled code", r"\.(c|cc|cpp|cxx|f|f90|pyx|rs)$"),
        ("type stubs", r"\.pyi$|/py\.typed$"),
        ("byte code", r"\.py[co]$"),
        ("translations", r"/(locales?|i18n|LC_MESSAGES|translations)/|\.(mo|po|qm)$"),
        ("time zones", r"/(zoneinfo|tzdata)/"),
        ("plug-ins", r"/(plugins?|gstreamer-1\.0|gconv|sasl2|imageformats|platforms|engines-3|ossl-modules|modules"
                     r"|security|girepository-1\.0|typelib-1\.0)/"),
        ("shared libraries", r"\.so(\.[\d.]+)?$|\.so\.[^/]+$"),
        ("Python", r"\.py$"),
        ("programs", r"/(s?bin|libexec)/"),
        ("settings", r"^/etc/"),
        ("certificates", r"\.(crt|pem)$"),
        ("fonts and pictures", r"\.(ttf|otf|woff2?|png|svg|jpe?g|gif|ico|afm)$"),
        ("scripts of the page", r"\.(js|mjs|css|html?|map)$"),
    )
)  # fmt: skip
"""The first pattern that matches decides: byte code of tests counts as tests."""


def kind(path: str) -> str:
    """Return the kind of a file."""
    return next((name for name, pattern in KINDS if pattern.search(path)), OTHER)
