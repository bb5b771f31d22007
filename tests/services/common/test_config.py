"""The configuration is read and checked as a whole, and every fault is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from services.common.config import CommonConfiguration, ConfigurationError, Section, load


class StreamerLike(Section):
    host: str = "127.0.0.1"
    port: int = 8080
    password: SecretStr | None = None
    token: SecretStr = SecretStr("")
    names: tuple[str, ...] = ()


class Configuration(CommonConfiguration):
    streamer: StreamerLike = StreamerLike()


def write(path: Path, text: str) -> Path:
    file = path / "framebus.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def faults(path: Path | None, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        load(Configuration, path, environment or {})
    return str(refused.value).splitlines()


def test_defaults_hold_without_a_file() -> None:
    configuration = load(Configuration, None, {})
    assert (configuration.stream.name, configuration.stream.slots) == ("panorama", 16)
    assert (configuration.log.level, configuration.log.format) == ("info", "json")
    assert configuration.streamer.port == 8080
    assert configuration.source is None


def test_the_file_is_read_and_sections_of_other_services_are_ignored(tmp_path: Path) -> None:
    file = write(tmp_path, "stream: {name: front}\nstreamer:\n  port: 9000\ndetector: {whatever: 1}\n")
    configuration = load(Configuration, file, {})
    assert configuration.stream.name == "front"
    assert configuration.streamer.port == 9000
    assert configuration.source == file


@pytest.mark.parametrize("text", ["", "# nothing\n", "streamer:\n  # port: 9000\nstream:\n"])
def test_an_empty_or_commented_file_leaves_the_defaults(tmp_path: Path, text: str) -> None:
    configuration = load(Configuration, write(tmp_path, text), {})
    assert configuration.streamer.port == 8080
    assert configuration.stream.name == "panorama"


def test_every_fault_is_named_with_its_line(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "stream:\n  slots: 2\nstreamer:\n  port: high\n  prot: 1\n  names: [a, 5]\ndetectors: {}\n",
    )
    found = faults(file)
    assert len(found) == 5
    for start in (
        f"{file}:7: no such section; there are stream, log,",
        f"{file}:2: stream.slots: Input should be greater than or equal to 3",
        f"{file}:4: streamer.port: Input should be a valid integer",
        f"{file}:5: streamer.prot: Extra inputs are not permitted",
        f"{file}:6: streamer.names.1: Input should be a valid string",
    ):
        assert any(fault.startswith(start) for fault in found), (start, found)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("- a\n- b\n", "a mapping of sections is needed"),
        ("just text", "a mapping of sections is needed"),
        ("1: {}\n", "a mapping of sections is needed"),
        ("stream: {name: 2026-99-99}\n", "is not YAML"),
        ("a: " + "[" * 1000, "is not YAML"),
        ("stream: !!python/object:os.system {}\n", "is not YAML"),
    ],
)
def test_a_file_that_is_not_a_yaml_mapping_is_reported_in_one_sentence(tmp_path: Path, text: str, reason: str) -> None:
    (fault,) = faults(write(tmp_path, text))
    assert reason in fault


def test_an_unreadable_file_is_reported_in_one_sentence(tmp_path: Path) -> None:
    assert faults(tmp_path / "missing") == [f"{tmp_path / 'missing'}: cannot be read: No such file or directory"]
    assert faults(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
    (tmp_path / "latin").write_bytes(b"stream: \xff")
    assert faults(tmp_path / "latin") == [f"{tmp_path / 'latin'}: cannot be read: it is not UTF-8 text"]


@pytest.mark.parametrize("text", ["", "streamer:\n  port: 1\n", "streamer:\n"])
def test_the_environment_overrides_the_file(tmp_path: Path, text: str) -> None:
    environment = {"FRAMEBUS_STREAMER__PORT": "9001", "FRAMEBUS_STREAMER__NAMES": "[a, b]", "FRAMEBUS_HOME": "/x"}
    configuration = load(Configuration, write(tmp_path, text), environment)
    assert configuration.streamer.port == 9001
    assert configuration.streamer.names == ("a", "b")


@pytest.mark.parametrize("text", ["12345", "yes", "a: b", "# x", "", "2026-99-99", "[", "null"])
def test_text_from_the_environment_is_taken_literally(text: str) -> None:
    environment = {f"FRAMEBUS_STREAMER__{name}": text for name in ("HOST", "TOKEN", "PASSWORD")}
    streamer = load(Configuration, None, environment).streamer
    assert streamer.host == text
    assert streamer.token.get_secret_value() == text
    assert streamer.password is not None
    assert streamer.password.get_secret_value() == text


@pytest.mark.parametrize("value", ["high", "2026-99-99", "[", "{a: 1}"])
def test_a_fault_of_the_environment_names_the_variable(tmp_path: Path, value: str) -> None:
    (fault,) = faults(write(tmp_path, "streamer:\n  port: 1\n"), {"FRAMEBUS_STREAMER__PORT": value})
    assert fault.startswith("FRAMEBUS_STREAMER__PORT: streamer.port: ")


def test_a_secret_is_never_shown() -> None:
    configuration = load(Configuration, None, {"FRAMEBUS_STREAMER__PASSWORD": "hunter2"})
    assert "hunter2" not in repr(configuration)


def test_a_configuration_cannot_be_changed_after_the_start() -> None:
    configuration = load(Configuration, None, {})
    with pytest.raises(ValueError, match="frozen"):
        configuration.streamer.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a.b", "a" * 49, "\u00e4"])
def test_a_stream_name_must_be_a_valid_file_name(tmp_path: Path, name: str) -> None:
    assert "stream.name" in faults(None, {"FRAMEBUS_STREAM__NAME": name})[0]
