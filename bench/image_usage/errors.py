"""The error of a measurement that cannot be made."""

from __future__ import annotations


class CannotMeasure(RuntimeError):
    """Something is missing or has failed; the text is one sentence that says what to do."""
