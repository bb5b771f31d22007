"""A short race; ``make soak MINUTES=...`` runs a long one."""

from __future__ import annotations

from tests.support import report_of


def test_no_frame_is_torn() -> None:
    report = report_of("tests.race.torn", "--minutes", "0.05")
    assert report["publisher"]["published"] > 100
    assert report["publisher"]["lives"] > 1
    assert all(subscriber["received"] > 10 for subscriber in report["subscribers"])
