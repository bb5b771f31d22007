"""The reference of the library contains every public name once."""

from __future__ import annotations

import re

import pytest

import framebus
from website import api


def test_every_public_name_is_in_the_reference() -> None:
    named = re.findall(r"^\.\. auto\w+:: framebus\.(\w+)$", api.page(), re.MULTILINE)
    assert sorted(named) == sorted(framebus.__all__)


def test_a_name_without_a_group_and_an_empty_group_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framebus, "__all__", [*framebus.__all__, "__version__"])
    with pytest.raises(ValueError, match="put into one of GROUPS, or take out: __version__"):
        api.groups()
    monkeypatch.setattr(framebus, "__all__", [name for name in framebus.__all__ if name not in ("Loan", "__version__")])
    with pytest.raises(ValueError, match="Loan"):
        api.page()


def test_errors_begin_with_their_base_class() -> None:
    assert api.errors()[0] == "FramebusError"
    assert "NoFreeSlot" in api.errors()
    assert "Publisher" not in api.errors()


def test_every_public_name_has_a_docstring() -> None:
    for name in framebus.__all__:
        value = getattr(framebus, name)
        assert isinstance(value, str) or value.__doc__, name
