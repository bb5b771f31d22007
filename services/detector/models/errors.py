"""The exception of unusable models."""

from __future__ import annotations


class ModelError(Exception):
    """The model is unusable; the message is one sentence for the operator."""
