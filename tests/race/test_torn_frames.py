"""A short race, with the compiled steps and with those in Python; ``make soak MINUTES=...`` runs a long one."""

from __future__ import annotations

import pytest

from framebus.ring.backend import BACKEND
from tests.support import report_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backend", ["c", "python"])
@pytest.mark.usefixtures("compiled_steps")
def test_no_frame_is_torn(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv(BACKEND, backend)
    report = report_of("tests.race.torn", "--minutes", "0.03")
    assert report["publisher"]["published"] > 100
    assert report["publisher"]["lives"] > 1
    assert all(subscriber["received"] > 10 for subscriber in report["subscribers"])
