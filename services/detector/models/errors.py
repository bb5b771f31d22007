"""The one error of a model."""

from __future__ import annotations


class ModelError(Exception):
    """The model cannot be used; the message is one sentence for the operator."""
