"""What a measurement cannot do without."""

from __future__ import annotations


class CannotMeasure(RuntimeError):
    """Something is lacking or has failed; the text is one sentence that says what to do."""
