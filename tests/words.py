"""Counts the words that tell how the project's English reads: ``python -m tests.words framebus docs README.md``.

The text is that of comments, docstrings and Markdown documents, without code, quoted words and addresses. Messages, the
other string literals of several words, are counted only by :func:`messages`.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PYTHON: Final = (".py", ".pyi")
C: Final = (".c", ".h")
MARKDOWN: Final = (".md",)
PER_WORDS: Final = 10_000
MIN_MESSAGE_WORDS: Final = 3
"""A shorter string literal is a key or a name."""

PERSONS: Final = frozenset(
    ("developer", "developers", "operator", "operators", "people", "person", "readers", "user", "users", "viewers")
)
"""Nouns that may stand before a relative "who"."""
UNNAMED: Final = re.compile(r"\b(?:nobody|somebody|anybody|everybody|whoever|whomever)\b", re.IGNORECASE)
"""Actors that have no name."""
WHO: Final = re.compile(r"(?:([\w]+),? )?\bwho\b", re.IGNORECASE)
IS_NO: Final = re.compile(
    r"(?<!\bthere )\b(?:is|are|was|were|be) no (?!longer\b|more\b|less\b|fewer\b|later\b|earlier\b)\w+", re.IGNORECASE
)
"""What a thing is not, said of something else than whether there is any."""
PURPOSE: Final = re.compile(r"\b(?:avoid|ensur|prevent|allow|requir)(?:e|es|ed|ing|s)?\b", re.IGNORECASE)
"""Verbs of cause and purpose."""
DIALECT: Final = tuple(
    re.compile(phrase, re.IGNORECASE)
    for phrase in (
        r"for the caches have seen",
        r"nobody's:",
        r"so that nobody waits",
        r"\bshown out\b",
        r"so little is kept for",
        r"\bbelieving nothing\b",
        r"\bno ring of this version\b",
        r"\bforetells?\b",
        r"\bis no slot's\b",
        r"\bthe more the less\b",
        r"\bwho is too slow\b",
        r"\bit is to be small\b",
        r"\bto be let go\b",
        r"\blets? go of\b",
        r"\bsays? that nobody\b",
        r"\bmakes? no sense\b",
        r"\brehears(?:e|al|es|ed)\b",
        r"\bnot one (?:box|frame|slot)\b",
    )
)
"""Phrases of the project's old dialect."""
OLD_NAMES: Final = frozenset(
    (
        *(
            "RingFull",
            "Pair",
            "Pairing",
            "Outlet",
            "LocalOutlet",
            "has_listeners",
            "is_heard_further",
            "notify_further",
        ),
        *("exclusion", "take_exclusion", "EXCLUSION_PATIENCE_S", "hold_briefly", "let_go", "go_on", "Pace"),
        *("rehearse", "look", "LOOKS", "BUSY_NS", "cold", "prefault_next", "look_who_watches", "tend", "Child"),
        *("upper_edge", "lower_edge", "intersection_over_smaller", "Setting", "Turn"),
    )
)
"""Identifiers that have another name now."""

_CODE: Final = re.compile(
    r"""
    ```.*?``` | ``[^`]*`` | :\w+:`[^`]*` | `[^`]*` |   # code
    "[^"\n]{1,60}" | https?://\S+ |                  # quoted words and addresses
    noqa(?::[ A-Z0-9,]+)? | type:[ ]ignore(\[[^]]*\])?
    """,
    re.DOTALL | re.VERBOSE,
)
_FENCE: Final = re.compile(r"^(?P<fence>```|~~~).*?^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE)
_C_COMMENT: Final = re.compile(r'"(?:\\.|[^"\\])*"|/\*(?P<block>.*?)\*/|//(?P<line>[^\n]*)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Passage:
    """A comment, a docstring, a message, or the prose of a document."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted in some files."""

    words: int
    who: int
    """Relative or interrogative "who" without a person's noun before it."""
    unnamed: int
    """Actors that have no name, such as "nobody"."""
    is_no: int
    purpose: int
    comment_lines: int
    lines: int
    """Lines of Python and C that are not blank."""

    def per_words(self, count: int) -> float:
        """How many that is in 10,000 words."""
        return count * PER_WORDS / max(self.words, 1)

    @property
    def comment_share(self) -> float:
        """Share of the lines of code that are comments."""
        return self.comment_lines / max(self.lines, 1)


def files(paths: Iterable[Path]) -> list[Path]:
    """The files to read below some paths, sorted; those that a command generates are left out."""
    found = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sorted(file for file in found if file.suffix in (*PYTHON, *C, *MARKDOWN) and file.name != "_docs.h")


@functools.cache
def passages(path: Path) -> tuple[Passage, ...]:
    """Comments and docstrings of a source file, or the prose of a document, without code and quoted words."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in PYTHON:
        found = [*_comments(text), *_strings(path)[0]]
    elif path.suffix in C:
        found = list(_c_comments(text))
    else:
        prose = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
        found = [(number, line) for number, line in enumerate(prose.split("\n"), 1) if line.strip()]
    return tuple(Passage(path, line, _plain(content)) for line, content in found)


@functools.cache
def messages(path: Path) -> tuple[Passage, ...]:
    """String literals of several words in a Python file that are not docstrings."""
    if path.suffix not in PYTHON:
        return ()
    found = ((line, content.split()) for line, content in _strings(path)[1])
    return tuple(Passage(path, line, " ".join(words)) for line, words in found if len(words) >= MIN_MESSAGE_WORDS)


@functools.cache
def _strings(path: Path) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return the docstrings of modules, classes, functions and attributes, and the other string literals, with lines.

    A docstring is a string that is a statement.
    """
    docstrings, others = list[tuple[int, str]](), list[tuple[int, str]]()
    documented = set[int]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):  # a statement comes before its parts
        if isinstance(node, ast.Expr):
            documented.add(id(node.value))
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                docstrings.append((node.lineno, node.value.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            others.append((node.lineno, node.value))
    return docstrings, others


def names(path: Path) -> set[str]:
    """Identifiers of a Python file."""
    if path.suffix not in PYTHON:
        return set()
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def unnamed_actors(passage: Passage) -> list[str]:
    """The places of a passage where an actor has no name."""
    relative = [found[0] for found in WHO.finditer(passage.text) if (found[1] or "").lower() not in PERSONS]
    return relative + UNNAMED.findall(passage.text)


def count(paths: Iterable[Path]) -> Counts:
    """Count what is in all files below some paths."""
    read = files(paths)
    found = [passage for file in read for passage in passages(file)]
    everything = "\n".join(passage.text for passage in found)
    unnamed = len(UNNAMED.findall(everything))
    code = [file for file in read if file.suffix in (*PYTHON, *C)]
    return Counts(
        words=len(re.findall(r"[^\W\d_]+", everything)),
        who=sum(len(unnamed_actors(passage)) for passage in found) - unnamed,
        unnamed=unnamed,
        is_no=len(IS_NO.findall(everything)),
        purpose=len(PURPOSE.findall(everything)),
        comment_lines=sum(_comment_lines(file) for file in code),
        lines=sum(bool(line.strip()) for file in code for line in file.read_text(encoding="utf-8").splitlines()),
    )


def _plain(text: str) -> str:
    return " ".join(_CODE.sub(" ", text).split())


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """Comments with the lines where they begin; those that follow each other are one."""
    begun, last, parts = 0, -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if line != last + 1 and parts:
            yield begun, "\n".join(parts)
            parts = []
        begun = begun if parts else line
        parts.append(token.string.lstrip("#! "))
        last = line
    if parts:
        yield begun, "\n".join(parts)


def _c_comments(text: str) -> Iterator[tuple[int, str]]:
    for found in _C_COMMENT.finditer(text):
        content = found["block"] or found["line"]
        if content:
            yield text.count("\n", 0, found.start()) + 1, re.sub(r"^\s*\* ?", "", content, flags=re.MULTILINE)


def _comment_lines(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    if path.suffix in PYTHON:
        return sum(line.lstrip().startswith("#") for line in text.splitlines())
    return sum(found[0].count("\n") + 1 for found in _C_COMMENT.finditer(text) if found[0].startswith("/"))


def main(arguments: list[str]) -> int:
    """Print what was counted, a line for each path."""
    print(f"{'':24}{'words':>8}{'who':>8}{'nobody':>8}{'is no':>8}{'purpose':>8}{'comments':>10}")
    for argument in arguments:
        found = count([Path(argument)])
        rates = "".join(
            f"{found.per_words(one):8.1f}" for one in (found.who, found.unnamed, found.is_no, found.purpose)
        )
        print(f"{argument[-24:]:24}{found.words:8}{rates}{found.comment_share:10.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
