"""The documents and the library's texts name their actors, and keep clear of the old dialect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import words
from tests.support import ROOT

LIBRARY = (ROOT / "framebus",)
CHECKERS = ("words.py", "test_words.py")
"""These contain the phrases that they look for."""
PLACES = {
    "the library": LIBRARY,
    "the services": (ROOT / "services",),
    "the benches": (ROOT / "bench",),
    "the documents": tuple(
        ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs")
    ),
    "the examples": (ROOT / "examples",),
    "the model": (ROOT / "verification",),
    "the tests": tuple(path for path in sorted((ROOT / "tests").iterdir()) if path.name not in CHECKERS),
}
MAX_IS_NO = 2.0
MIN_PURPOSE = 10.0


@pytest.fixture(
    params=[
        pytest.param(paths, id=name, marks=[] if paths is LIBRARY else pytest.mark.slow)  # reading takes seconds
        for name, paths in PLACES.items()
    ]
)
def paths(request: pytest.FixtureRequest) -> tuple[Path, ...]:
    """Files and folders whose texts keep the limits."""
    found: tuple[Path, ...] = request.param
    return found


def texts(paths: tuple[Path, ...]) -> list[words.Passage]:
    """All texts of some files: comments, docstrings, prose and messages."""
    return [passage for file in words.files(paths) for passage in (*words.passages(file), *words.messages(file))]


def test_every_actor_has_a_name(paths: tuple[Path, ...]) -> None:
    assert [str(passage) for passage in texts(paths) if words.unnamed_actors(passage)] == []


def test_the_old_dialect_is_gone(paths: tuple[Path, ...]) -> None:
    assert [str(passage) for passage in texts(paths) for phrase in words.DIALECT if phrase.search(passage.text)] == []


def test_old_names_are_gone() -> None:
    assert {str(file): found for file in words.files(LIBRARY) if (found := words.names(file) & words.OLD_NAMES)} == {}


def test_texts_say_what_a_thing_is(paths: tuple[Path, ...]) -> None:
    counts = words.count(paths)
    assert counts.per_words(counts.is_no) <= MAX_IS_NO


@pytest.mark.slow
@pytest.mark.parametrize(("place", "min_comment_share"), [("the library", 0.035), ("the services", 0.03)])
def test_code_explains_causes_and_purposes(place: str, min_comment_share: float) -> None:
    counts = words.count(PLACES[place])
    assert counts.per_words(counts.purpose) >= MIN_PURPOSE
    assert counts.comment_share >= min_comment_share


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# Wake all who sleep.\n", ["all who"]),
        ("# A user who publishes, or an operator who looks.\n", []),
        ("# Who is it, nobody knows.\n", ["Who", "nobody"]),
        ('# The user "nobody", and ``who``.\n', []),
        ("# type: ignore[who]  # noqa: PLR0917\n", []),
    ],
)
def test_an_actor_without_a_name_is_found(tmp_path: Path, text: str, found: list[str]) -> None:
    file = tmp_path / "module.py"
    file.write_text(text)
    (passage,) = words.passages(file)
    assert words.unnamed_actors(passage) == found


def test_python_is_read_in_its_parts(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        '"""The module ensures."""\n\nONE = 1\n"""An attribute."""\n\n\ndef call() -> str:\n    """It is no call."""\n'
        '    # A comment,\n    # of two lines.\n    return f"a message of {ONE} of them"\n'
    )
    assert sorted((passage.line, passage.text) for passage in words.passages(file)) == [
        (1, "The module ensures."), (4, "An attribute."), (8, "It is no call."), (9, "A comment, of two lines."),
    ]  # fmt: skip
    assert [passage.text for passage in words.messages(file)] == ["a message of"]
    counts = words.count([file])
    assert (counts.words, counts.is_no, counts.purpose) == (14, 1, 1)
    assert (counts.comment_lines, counts.lines) == (2, 8)


def test_c_and_markdown_are_read_without_code(tmp_path: Path) -> None:
    (tmp_path / "steps.c").write_text('/* One\n * comment. */\nchar *text = "/* none */"; // another\n')
    (tmp_path / "page.md").write_text("Prose with `who`.\n\n```\nnobody\n```\nMore.\n")
    found = [passage.text for file in words.files([tmp_path]) for passage in words.passages(file)]
    assert found == ["Prose with .", "More.", "One comment.", "another"]


def test_the_command_prints_a_line_for_each_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert words.main([str(ROOT / "framebus/shm")]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "words"
    assert line.startswith(str(ROOT / "framebus/shm")[-24:])
