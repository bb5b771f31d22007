"""Generates the headers of ``_ring_c.c``: the numbers of the layout, and the docstrings that it shares with Python.

``python -m framebus.ring.c_headers`` writes ``_layout.h`` and ``_docs.h`` beside this file. Both are kept in git, so
that a build requires only a compiler. A test compares them with what this module generates.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from framebus.ring import layout
from framebus.ring.claims import Claim, Writer
from framebus.ring.frame_header import DESCRIPTION, DTYPES, NUMBERS, SLOT_DESCRIPTION, FrameHeader
from framebus.ring.leases import MAX_RETRIES, Lease, Reader
from framebus.ring.message import MAX_MESSAGE_BYTES, Message
from framebus.ring.record import RECORD_COUNTERS, RECORD_RECEIVED
from framebus.ring.words import NO_SLOT, WORDS

COMMAND: Final = "python -m framebus.ring.c_headers"
WIDTH: Final = 120
FORMATS: Final = {1: "b", 2: "h", 4: "i", 8: "q"}
"""The struct module's codes of signed integers, by their size. The capitals are those of unsigned integers."""
FLOAT_FORMATS: Final = {2: "e", 4: "f", 8: "d"}


def numbers() -> dict[str, int]:
    """Return the numbers that ``_ring_c.c`` requires, by their names in C."""
    names = ("TAIL", "EVENT", "SLOT_TABLE", "SLOT_HEADER_BYTES", "MAX_SLOTS", "LOCK_SLOTS")
    fields, count = FrameHeader._fields, len(NUMBERS)
    return {
        **{name: getattr(layout, name) for name in names},
        "NO_SLOT": NO_SLOT,
        **{f"{name.upper()}_WORD": word for name, word in WORDS.items()},
        "SLOT_DESCRIPTION": SLOT_DESCRIPTION,
        "DESCRIPTION_BYTES": DESCRIPTION.size,
        "HEADER_NUMBERS": count,
        "HEADER_ITEMS": len(fields),
        **{f"{name.upper()}_ITEM": fields.index(name) for name in ("sequence", "captured_ns", "dtype", "shape")},
        "RECORD_RECEIVED": RECORD_RECEIVED,
        "RECORD_COUNTERS": RECORD_COUNTERS,
        "MAX_MESSAGE_BYTES": MAX_MESSAGE_BYTES,
        "MESSAGE_ITEMS": len(Message._fields),
        **{f"{name.upper()}_ITEM": Message._fields.index(name) for name in Message._fields},
        "MAX_RETRIES": MAX_RETRIES,
    }


def layout_header() -> str:
    """Return the text of ``_layout.h``."""
    known = numbers()
    elements = [f'{{"{dtype}", "{_format(dtype)}", {size}}}' for dtype, size in DTYPES.items()]
    is_signed = [int(code.islower()) for code in NUMBERS]
    return _header(
        "The numbers of framebus/ring/layout.py and its neighbours.",
        [
            *(f"#define {name} {value}{'LL' * (value >> 31 > 0)}" for name, value in known.items()),
            "",
            "/* Calls its argument with each of these names. */",
            *_macro("EACH_NUMBER(CALL)", [f"CALL({name})" for name in known], " "),
            "",
            "/* A frame header's numbers: 1 for a signed one. */",
            f"#define SIGNED_NUMBERS {{{', '.join(map(str, is_signed))}}}",
            "",
            "/* The types of a frame's elements: numpy's name, the buffer protocol's, bytes. */",
            *_macro("ELEMENTS", elements, ", "),
        ],
    )


def docs_header() -> str:
    """Return the text of ``_docs.h``."""
    lines = []
    for owner in (Writer, Claim, Reader, Lease):
        for name, doc in docs(owner).items():
            macro = f"{owner.__name__.upper()}{'_' * bool(name)}{name.upper()}_DOC"
            parts = [f'"{_escaped(line)}"' for line in doc.splitlines(keepends=True)]
            lines += [f"#define {macro} \\", *(f"    {part} \\" for part in parts[:-1]), f"    {parts[-1]}"]
    return _header("The docstrings of framebus/ring/claims.py and leases.py.", lines)


def docs(owner: type) -> dict[str, str]:
    """Return the docstrings of a class's public methods, properties and attributes by name; its own under ``""``.

    Those of methods, and of a class that can be instantiated, begin with the signature in the form that CPython parses.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    found = {"": _documented(tree)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            if node.name == "__init__":
                found |= _attributes(node.body)
                if ast.get_docstring(node):
                    found[""] = f"{owner.__name__}({_arguments(node)})\n--\n\n{found['']}"
            elif node.decorator_list and not node.name.startswith("_"):
                found[node.name] = _documented(node)
            elif not node.name.startswith("_"):
                found[node.name] = f"{node.name}($self, /{_arguments(node, ', ')})\n--\n\n{_documented(node)}"
    return found | _attributes(tree.body)


def _attributes(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for node, following in itertools.pairwise(body):
        if not isinstance(node, ast.AnnAssign):
            continue
        name = node.target.attr if isinstance(node.target, ast.Attribute) else ast.unparse(node.target)
        if not name.startswith("_"):
            assert isinstance(following, ast.Expr), f"{name} has no docstring"
            found[name] = inspect.cleandoc(ast.literal_eval(following.value))
    return found


def _documented(node: ast.ClassDef | ast.FunctionDef) -> str:
    doc = ast.get_docstring(node)
    assert doc, f"{node.name} has no docstring"
    return doc


def _arguments(function: ast.FunctionDef, before: str = "") -> str:
    names = [argument.arg for argument in function.args.args[1:]]
    defaults = function.args.defaults
    first = len(names) - len(defaults)
    shown = names[:first]
    shown += [f"{name}={ast.unparse(value)}" for name, value in zip(names[first:], defaults, strict=True)]
    return (before if shown else "") + ", ".join(shown)


def _format(dtype: str) -> str:
    kind, size = dtype[1], DTYPES[dtype]
    if kind == "b":
        return "?"
    if kind == "f":
        return FLOAT_FORMATS[size]
    return FORMATS[size].upper() if kind == "u" else FORMATS[size]


def _escaped(line: str) -> str:
    return line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _macro(head: str, values: list[str], separator: str) -> Iterator[str]:
    lines = textwrap.wrap(separator.join(value.replace(" ", "\0") for value in values), WIDTH - 6)
    yield f"#define {head} \\"
    yield from (" \\\n".join(f"    {line}" for line in lines)).replace("\0", " ").split("\n")


def _header(what: str, lines: list[str]) -> str:
    return "\n".join([f"/* {what}", f" * Generated by '{COMMAND}': do not edit. */", "", *lines, ""])


HEADERS: Final = {"_layout.h": layout_header, "_docs.h": docs_header}


def main() -> None:
    """Write the headers."""
    for name, text in HEADERS.items():
        Path(__file__).with_name(name).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
