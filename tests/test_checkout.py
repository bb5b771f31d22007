"""The files of a checkout beside the code: changelog, checks before a commit, workflows, forms."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

import framebus
from tests.support import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
MOST_LINES = 300
"""Longest module of the library. A longer one has a second subject, which wants a module of its own."""


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    numbers = [tuple(map(int, version.split(" - ")[0].split("."))) for version in versions[1:]]
    assert numbers == sorted(set(numbers), reverse=True)
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tuple(map(int, own.split("."))) in numbers
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        groups = re.findall(r"^### (.*)$", section, re.MULTILINE)
        order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
        assert set(groups) <= set(order)
        assert len(set(groups)) == len(groups), "a group is there twice"


def test_the_modules_of_the_library_stay_small() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ROOT.glob("framebus/**/*.py")}
    assert "framebus/bus/subscriber.py" in lines
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_checks_before_a_commit_are_those_of_lint() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    targets = [word for word in recipe[1].split() if word in TARGETS]
    by_make = {
        tool
        for target in targets
        for block in re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
        for tool in re.findall(r"\$\(BIN\)/([\w-]+)", block)
    }
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local", "hooks from other places would be downloaded"
    before_commit = {re.findall(r"^\.venv/bin/([\w-]+)", hook["entry"])[0] for hook in local["hooks"]}
    assert len(by_make) > 5
    assert before_commit == by_make


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_workflows_run_existing_targets_with_few_rights(path: Any) -> None:
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= TARGETS
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] > 0, name
        checkouts = [step for step in job["steps"] if str(step.get("uses", "")).startswith("actions/checkout@")]
        assert checkouts
        assert all(step["with"]["persist-credentials"] is False for step in checkouts), name


def test_tests_wheels_and_documents_have_a_workflow() -> None:
    assert {path.stem for path in WORKFLOWS} == {"tests", "wheels", "docs"}


@pytest.mark.parametrize("path", FORMS, ids=[path.stem for path in FORMS])
def test_forms_ask_for_something(path: Any) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert any(field.get("validations", {}).get("required") for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("pyproject.toml", r'^version = "(.+)"$'),
        ("services/pyproject.toml", r'^version = "(.+)"$'),
        ("services/pyproject.toml", r'"framebus>=([\d.]+),'),
        ("deploy/images/Dockerfile", r"^ARG VERSION=(.+)$"),
        ("CHANGELOG.md", r"^## (\d\S+) - \d{4}-\d\d-\d\d$"),
    ],
)
def test_a_release_has_one_version_everywhere(file: str, pattern: str) -> None:
    found = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == framebus.__version__


def test_the_manifests_name_the_images_of_this_version() -> None:
    manifests = [path.read_text() for path in (ROOT / "deploy/kubernetes").rglob("*.yaml")]
    tags = {tag for text in manifests for tag in re.findall(r"image: framebus/\w+:(\S+)", text)}
    assert tags == {framebus.__version__}
