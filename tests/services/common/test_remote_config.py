"""The sections ``broker`` and ``storage``: what they accept, what they reject and why, and what they never show."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from pydantic import ValidationError

from services.common.config import ConfigurationError, load
from services.common.credentials import MissingPassword
from services.common.masking import mask_value
from services.common.remote_config import BrokerSection, RemoteConfiguration, StorageSection
from services.stitcher.config import StitcherConfiguration

SECRET = "s3cr-t"


def test_by_default_neither_broker_nor_storage_is_configured() -> None:
    configuration = load(RemoteConfiguration, None, {})
    assert configuration.broker.url is None
    assert configuration.storage.url is None
    assert configuration.broker.password() is None
    assert configuration.storage.secret_key() is None


@pytest.mark.parametrize(
    "url",
    [
        "amqp://rabbit",
        "amqp://rabbit:5673",
        "amqp://rabbit/",
        "amqp://rabbit/%2F",
        "amqp://rabbit/site%2Fone",
        "amqps://rabbit.example:5671/site",
        "amqp://user:p%40ss@rabbit",
        "amqp://user@rabbit/site",
        "amqp://[::1]:5672/site",
        "amqp://192.0.2.1",
    ],
)
def test_a_valid_broker_url_is_accepted_unchanged(url: str) -> None:
    assert load(RemoteConfiguration, None, {"FRAMEBUS_BROKER__URL": url}).broker.url == url


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("rabbit", "write amqp://HOST"),
        ("http://rabbit", "write amqp://HOST"),
        ("amqp://", "write amqp://HOST"),
        ("amqp:///site", "write amqp://HOST"),
        ("amqp://rabbit?heartbeat=3", "write amqp://HOST"),
        ("amqp://rabbit/site#x", "write amqp://HOST"),
        ("amqp://rab bit", "write amqp://HOST"),
        ("amqp://rabbit/a/b", "%2F"),
        ("amqp://rabbit//", "%2F"),
        ("amqp://rabbit:port", "malformed port"),
        ("amqp://rabbit:70000", "malformed port"),
        ("amqp://rabbit:-1", "malformed port"),
        ("amqp://[::1", "malformed"),
        (f"amqp://user:{SECRET}@x@rabbit", "percent-encoded"),
        (f"amqp://user:{SECRET}#x@rabbit", "percent-encoded"),
        (f"amqp://user:{SECRET}/x@rabbit", "percent-encoded"),
        (f"amqp://user:{SECRET}\u2100@rabbit", "malformed"),
        (f"amqp://user:{SECRET}@rabbit:port", "malformed port"),
    ],
)
def test_a_malformed_broker_url_is_rejected_without_showing_its_password(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(RemoteConfiguration, None, {"FRAMEBUS_BROKER__URL": url})
    message = str(caught.value)
    assert message.startswith("FRAMEBUS_BROKER__URL: broker.url: ")
    assert told in message
    assert "\n" not in message
    assert SECRET not in message


@pytest.mark.parametrize("url", ["file:///data/frames", "file://localhost/data", "s3://frames", "s3://frames/site/one"])
def test_a_valid_storage_url_is_accepted_unchanged(url: str) -> None:
    assert load(RemoteConfiguration, None, {"FRAMEBUS_STORAGE__URL": url}).storage.url == url


@pytest.mark.parametrize(
    "url",
    [
        "/data",
        "file:///",
        "file://host/data",
        "file:///data?x",
        "file:///data#1",
        "s3://",
        "s3:///site",
        "s3://frames?x",
        "s3://frames#x",
        f"s3://key:{SECRET}@frames",
        f"s3://key:{SECRET}\u2100@frames",
        "s3://[frames",
        "https://frames.example",
    ],
)
def test_a_malformed_storage_url_is_rejected_without_showing_its_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(RemoteConfiguration, None, {"FRAMEBUS_STORAGE__URL": url})
    message = str(caught.value)
    assert "write file:///FOLDER or s3://BUCKET[/PREFIX]" in message or "malformed" in message
    assert "\n" not in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"password_file": "a", "password_env": "B"}, "give password_file or password_env, not both"),
        ({"url": f"amqp://u:{SECRET}@h", "password_file": "a"}, "the password is given twice"),
        ({"url": f"amqp://u:{SECRET}@h", "password_env": "B"}, "the password is given twice"),
        ({"url": "amqp://u@h", "username": "v"}, "the user is named twice"),
        ({"certificate_file": "a"}, "certificate_file and key_file go together"),
        ({"key_file": "a"}, "certificate_file and key_file go together"),
        ({"password_env": "1x"}, "pattern"),
        ({"password_env": "A B"}, "pattern"),
        ({"username": ""}, "at least 1 character"),
        ({"password": SECRET}, "Extra inputs are not permitted"),
    ],
)
def test_an_ambiguous_log_in_is_rejected(tmp_path: Path, section: dict[str, str], told: str) -> None:
    path = tmp_path / "framebus.yaml"
    path.write_text("broker:\n" + "".join(f"  {name}: '{value}'\n" for name, value in section.items()))
    with pytest.raises(ConfigurationError, match=told) as caught:
        load(RemoteConfiguration, path, {})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"access_key_id": "a"}, "access_key_id and its secret go together"),
        ({"secret_key_env": "A"}, "access_key_id and its secret go together"),
        ({"access_key_id": "a", "secret_key_env": "A", "secret_key_file": "b"}, "not both"),
        ({"endpoint": f"http://key:{SECRET}@minio"}, "pattern"),
        ({"endpoint": "minio:9000"}, "pattern"),
        ({"endpoint": "http://minio/path"}, "pattern"),
        ({"timeout_s": "0"}, "greater than 0"),
        ({"timeout_s": ".nan"}, "less than or equal to 300|finite|greater than 0"),
        ({"region": ""}, "at least 1 character"),
    ],
)
def test_an_ambiguous_storage_is_rejected(section: dict[str, str], told: str) -> None:
    environment = {f"FRAMEBUS_STORAGE__{name.upper()}": value for name, value in section.items()}
    with pytest.raises(ConfigurationError, match=told) as caught:
        load(RemoteConfiguration, None, environment)
    assert SECRET not in str(caught.value)


def test_secrets_are_read_again_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    broker = BrokerSection(password_file=file)
    storage = StorageSection(access_key_id="key", secret_key_file=file)
    for secret in ("first", "second p@ss: 'ü'"):
        file.write_text(f"{secret}\r\nanother line\n")
        assert broker.password() == secret
        assert storage.secret_key() == secret


def test_secrets_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    assert BrokerSection(password_env="TOKEN").password() == SECRET
    assert StorageSection(access_key_id="key", secret_key_env="TOKEN").secret_key() == SECRET


@pytest.mark.parametrize(
    ("content", "told"), [(None, "No such file or directory"), (b"", "is empty"), (b"\xff", "not UTF-8")]
)
def test_an_unreadable_secret_is_reported_in_one_sentence(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MissingPassword, match=told) as caught:
        BrokerSection(password_file=file).password()
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    with pytest.raises(MissingPassword, match="the environment variable TOKEN"):
        StorageSection(access_key_id="key", secret_key_env="TOKEN").secret_key()


def test_neither_representation_nor_log_shows_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    configuration = RemoteConfiguration(
        broker=BrokerSection(url=f"amqp://user:{SECRET}@rabbit/site"),
        storage=StorageSection(url="s3://frames", access_key_id="key", secret_key_env="TOKEN"),
    )
    assert SECRET not in repr(configuration)
    assert SECRET not in str(configuration)
    masked = mask_value(configuration.model_dump())
    assert SECRET not in repr(masked)
    assert masked["broker"]["url"] == "amqp://***@rabbit/site"
    structlog.get_logger().info("configuration", configuration=configuration)
    assert SECRET not in capsys.readouterr().out


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "framebus.yaml"
    path.write_text("broker:\n  url: amqp://file\nstorage:\n  url: s3://file\n  timeout_s: 3\n")
    environment = {
        "FRAMEBUS_BROKER__URL": "amqps://environment/site",
        "FRAMEBUS_BROKER__USERNAME": "0123",
        "FRAMEBUS_BROKER__PASSWORD_FILE": "/run/secrets/broker",
        "FRAMEBUS_STORAGE__URL": "file:///environment",
    }
    configuration = load(RemoteConfiguration, path, environment)
    assert configuration.broker.url == "amqps://environment/site"
    assert configuration.broker.username == "0123"
    assert configuration.broker.password_file == Path("/run/secrets/broker")
    assert configuration.storage.url == "file:///environment"
    assert configuration.storage.timeout_s == 3


def test_a_service_that_uses_neither_section_ignores_both(tmp_path: Path) -> None:
    path = tmp_path / "framebus.yaml"
    path.write_text("stream:\n  name: roof\nbroker:\n  url: amqp://rabbit\n  nonsense: 1\nstorage: 5\n")
    configuration = load(StitcherConfiguration, path, {"FRAMEBUS_BROKER__URL": "not even a URL"})
    assert configuration.stream.name == "roof"
    assert not hasattr(configuration, "broker")


def test_sections_cannot_be_changed_after_the_start() -> None:
    section = BrokerSection(url="amqp://rabbit")
    with pytest.raises(ValidationError, match="frozen"):
        section.url = "amqp://other"  # type: ignore[misc]
