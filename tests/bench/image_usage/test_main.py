"""The command line."""

from __future__ import annotations

import os

import pytest

from bench.image_usage.__main__ import main, parse


def test_options_of_docker_run_and_a_command_follow_two_dashes() -> None:
    parsed, options, command = parse(["redis:7", "--for", "3", "--", "-p", "1:1", "--", "redis-server", "--", "x"])
    assert (parsed.image, parsed.lasts_s, options, command) == (
        "redis:7",
        3.0,
        ["-p", "1:1"],
        ["redis-server", "--", "x"],
    )


def test_further_commands_are_further_observations() -> None:
    parsed, _, _ = parse(["redis:7", "--during", "a", "--during", "b"])
    assert parsed.during == ["a", "b"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "--container", "b"],
        ["--container", "b", "--", "-p", "1"],
        ["--rootfs", "/x"],
        ["--rootfs", "/x", "--", "-p", "1", "--", "c"],
    ],
)
def test_contradictory_arguments_are_rejected(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_without_root_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["some-image"]) == 2
    assert capsys.readouterr().err == (
        "image usage: fanotify, the layers' folders and reading ahead need root: run this with sudo\n"
    )
