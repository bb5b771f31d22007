"""The built site: no warning, no dead link, and the whole reference in its pages."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import framebus
from tests.support import lacks
from website import commands, configuration
from website.__main__ import build
from website.built import faults_of_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("furo") is None:
        lacks("Sphinx and furo are not installed: run 'make docs', which installs them")
    folder = tmp_path_factory.mktemp("docs")
    assert build(folder) == []
    return folder / "site"


def ids_of(page: Path) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', page.read_text()))


@pytest.mark.long
def test_every_public_name_has_an_anchor(site: Path) -> None:
    assert {f"framebus.{name}" for name in framebus.__all__} <= ids_of(site / "api.html")


@pytest.mark.long
def test_every_key_has_an_anchor(site: Path) -> None:
    assert {configuration.anchor(key.path) for key in configuration.all_keys()} <= ids_of(site / "configuration.html")


@pytest.mark.long
def test_every_command_and_option_is_shown(site: Path) -> None:
    text = (site / "commands.html").read_text()
    shown = re.sub(r"<[^>]+>", "", text)
    for command in commands.commands():
        assert command.name in shown
        assert all(name in shown for action in command.options for name in action.option_strings)


@pytest.mark.long
def test_schemas_are_served_beside_the_pages(site: Path) -> None:
    assert (site / "configuration.schema.json").exists()
    assert (site / "cli.schema.json").exists()


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("other.html", ""),
        ("other.html#here", ""),
        ("#top", ""),
        ("https://example.org/gone", ""),
        ("gone.html", "page.html: gone.html leads nowhere"),
        ("other.html#gone", "page.html: other.html#gone: that page has no such anchor"),
        ("#gone", "page.html: #gone: that page has no such anchor"),
    ],
)
def test_dead_links_of_built_pages_are_found(tmp_path: Path, link: str, expected: str) -> None:
    (tmp_path / "page.html").write_text(f'<p id="top"><a href="{link}">x</a></p>')
    (tmp_path / "other.html").write_text('<h1 id="here">Here</h1>')
    assert "\n".join(faults_of_site(tmp_path)) == expected
