"""The reference of the library: every public name, by what a program does with it."""

from __future__ import annotations

from typing import Final

import framebus

GROUPS: Final = {
    "Publish": ("Publisher", "Loan", "PublisherStatistics"),
    "Receive": ("Subscriber", "Frame", "SubscriberStatistics"),
    "Frames": ("FrameFormat", "FrameHeader"),
    "Look at streams": ("streams", "StreamInfo", "SubscriberInfo", "SubscriberRecord"),
    "Files and leftovers": ("companion_path", "companion_paths", "remove_leftovers"),
    "The backend": ("backend",),
}
"""Headings of the page, and the names below each; all errors come after them."""

_OF_MESSAGES: Final = ("kind", "advice")
"""Attributes of classes that serve the messages of errors alone."""


def errors() -> list[str]:
    """Return the names of the errors, the base first."""
    kinds = [name for name in framebus.__all__ if _is_error(getattr(framebus, name))]
    return sorted(kinds, key=lambda name: (name != "FramebusError", name))


def groups() -> dict[str, tuple[str, ...]]:
    """Return :data:`GROUPS` with the errors.

    Raises:
        ValueError: A public name is in no group, or what a group names is not public.
    """
    found = {**GROUPS, "Errors": tuple(errors())}
    listed = {name for names in found.values() for name in names}
    astray = listed.symmetric_difference(framebus.__all__)
    if astray:
        raise ValueError(f"website/api.py: put into one of GROUPS, or take out: {', '.join(sorted(astray))}")
    return found


def page() -> str:
    """Return the reference as Markdown, with directives of Sphinx."""
    lines = []
    for heading, names in groups().items():
        lines += [f"## {heading}", ""]
        for name in names:
            lines += ["```{eval-rst}", *_directive(name), "```", ""]
    return "\n".join(lines)


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _directive(name: str) -> list[str]:
    value = getattr(framebus, name)
    if not isinstance(value, type):
        return [f".. auto{'function' if callable(value) else 'data'}:: framebus.{name}"]
    if _is_error(value):
        return [f".. autoexception:: framebus.{name}", "   :show-inheritance:"]
    shown = ("   :members:", "   :inherited-members: tuple, object", f"   :exclude-members: {', '.join(_OF_MESSAGES)}")
    return [f".. autoclass:: framebus.{name}", *shown]
