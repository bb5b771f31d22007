"""The section ``detector``: faults are reported in words, and the longest names still fit a socket's path."""

from __future__ import annotations

from pathlib import Path

import pytest

from framebus import companion_path
from services.common.config import ConfigurationError, load
from services.detector.config import DetectorConfiguration, DetectorSection, host_instance

LONGEST_SOCKET_PATH = 107
"""unix(7): 108 bytes, one of them a zero."""


def test_the_default_configuration_is_valid() -> None:
    section = load(DetectorConfiguration, None, {}).detector
    assert section.model is None
    assert section.status_name == "detector"
    assert section.instance == host_instance()
    assert load(DetectorConfiguration, None, {"FRAMEBUS_DETECTOR__INSTANCE": "day"}).detector.instance == "day"


@pytest.mark.parametrize(
    ("host", "instance"),
    [
        ("site-3", "site-3"),
        ("site.example", "site-example"),
        ("-", "detector"),
        ("camera-server-of-hall-1", "camera-se-563f3a"),
        ("camera-server-of-hall-2", "camera-se-f08113"),
    ],
)
def test_the_instance_is_named_after_the_host(host: str, instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert DetectorSection().instance == instance
    assert DetectorSection().status_name == "detector"
    assert DetectorSection(instance=instance).status_name.startswith("detector")


def test_the_longest_names_fit_a_socket() -> None:
    section = DetectorSection(instance="x" * 16)
    for suffix in (f"detections2.{section.instance}.sock", f"status.{section.status_name}.sock"):
        assert len(str(companion_path("s" * 48, suffix))) <= LONGEST_SOCKET_PATH


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "framebus.yaml"
    path.write_text("detector:\n  labels: [person, unicorn]\n  nice: -5\n  instance: a/b\n  speed: 9\n")
    with pytest.raises(ConfigurationError) as caught:
        load(DetectorConfiguration, path, {})
    told = str(caught.value)
    assert f"{path}:2: detector.labels: not in COCO: unicorn" in told
    assert f"{path}:3: detector.nice" in told
    assert f"{path}:4: detector.instance" in told
    assert f"{path}:5: detector.speed" in told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"labels": "[]"}, "at least one label"),
        ({"labels": "[dog, dog]"}, "none twice"),
        ({"tile_px": "300", "overlap_px": "250"}, "more than three quarters of tile_px 300"),
        ({"score_threshold": "1.5"}, "less than 1"),
        ({"max_rate_fps": "0"}, "greater than 0"),
        ({"track_memory_s": ".nan"}, "finite"),
        (
            {"source": "panorama"},
            "'panorama' is not a source: write ring://STREAM, file:///FOLDER, file:///VIDEO or amqp://",
        ),
        ({"source": "ring://a/b"}, "is not a source"),
        ({"source": "http://host/clip.mp4"}, "is not a source"),
        ({"source": "file:///clip.mp4", "mode": "newest"}, "a recording has no newest frame: leave mode out"),
        ({"mode": "some"}, "'newest' or 'every'"),
        ({"source": "amqp:rabbit"}, "write amqp://HOST"),
        ({"source": "amqps://"}, "write amqp://HOST"),
        ({"source": "amqp://rabbit/a/b"}, "%2F"),
        ({"source": "amqp://rabbit:x"}, "malformed port"),
        ({"source": "amqp://rabbit?x=1"}, "write amqp://HOST"),
        ({"source": "amqp://", "mode": "newest"}, r"relay\.policy decides which frames of a queue are processed"),
        ({"source": "amqp://rabbit", "mode": "every"}, "leave mode out"),
        ({"group": "a/b"}, "pattern"),
        ({"prefetch": "0"}, "greater than or equal to 1"),
    ],
)
def test_a_value_out_of_range_is_reported(values: dict[str, str], told: str) -> None:
    environment = {f"FRAMEBUS_DETECTOR__{key.upper()}": value for key, value in values.items()}
    with pytest.raises(ConfigurationError, match=told):
        load(DetectorConfiguration, None, environment)


def test_null_lifts_the_limits() -> None:
    environment = {"FRAMEBUS_DETECTOR__MAX_RATE_FPS": "null", "FRAMEBUS_DETECTOR__NICE": "null"}
    section = load(DetectorConfiguration, None, environment).detector
    assert section.target_fps is None
    assert section.nice is None


@pytest.mark.parametrize(
    ("source", "ring", "recording"),
    [
        ("", "panorama", None),
        ("ring://roof-2", "roof-2", None),
        ("file:///recordings/monday", "panorama", "file:///recordings/monday"),
    ],
)
def test_the_source_is_a_ring_or_a_recording(source: str, ring: str, recording: str | None) -> None:
    environment = {"FRAMEBUS_DETECTOR__SOURCE": source} if source else {}
    configuration = load(DetectorConfiguration, None, environment)
    assert (configuration.ring, configuration.detector.recording) == (ring, recording)


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("amqp://", None),
        ("amqp://rabbit", "amqp://rabbit"),
        ("amqps://user:secret@rabbit:5671/site%2Fone", "amqps://user:secret@rabbit:5671/site%2Fone"),
    ],
)
def test_the_source_is_a_queue_of_the_brokers_or_of_another_one(source: str, url: str | None) -> None:
    environment = {"FRAMEBUS_DETECTOR__SOURCE": source, "FRAMEBUS_BROKER__URL": "amqp://site"}
    configuration = load(DetectorConfiguration, None, environment)
    section = configuration.detector
    assert section.from_queue
    assert section.broker_url == url
    assert section.recording is None
    assert configuration.ring == "panorama"
    assert configuration.broker.url == "amqp://site"


@pytest.mark.parametrize("source", ["", "ring://roof", "file:///recordings/monday"])
def test_other_sources_need_no_broker(source: str) -> None:
    section = load(DetectorConfiguration, None, {"FRAMEBUS_DETECTOR__SOURCE": source} if source else {}).detector
    assert not section.from_queue
    assert section.broker_url is None


@pytest.mark.parametrize(
    "source", ["amqp://user:s3cr-t@@rabbit", "amqp://user:s3cr-t@rabbit/a/b", "http://u:s3cr-t@h/"]
)
def test_a_rejected_source_does_not_show_its_password(source: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(DetectorConfiguration, None, {"FRAMEBUS_DETECTOR__SOURCE": source})
    assert "s3cr-t" not in str(caught.value)
