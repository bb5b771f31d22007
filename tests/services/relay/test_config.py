"""The section ``relay``: its defaults lose no frame, and faults are reported in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.config import ConfigurationError, load
from services.common.reference import FORMATS
from services.common.service import UnusableSetting
from services.relay.config import RelayConfiguration
from services.relay.entry import SERVICE
from services.relay.service import check


def read(**relay: str) -> RelayConfiguration:
    return load(RelayConfiguration, None, {f"FRAMEBUS_RELAY__{name.upper()}": value for name, value in relay.items()})


def test_without_a_section_every_frame_goes_to_one_group_of_detectors() -> None:
    section = read().relay
    assert section.groups == ("detector",)
    assert section.target_fps is None
    assert section.policy == "live"


@pytest.mark.parametrize("encoding", FORMATS)
def test_each_format_can_be_chosen(encoding: str) -> None:
    assert read(encoding=encoding).relay.encoding == encoding


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"policy": "both"}, "'live' or 'work'"),
        ({"encoding": "gif"}, "'jpeg', 'png', 'raw', 'lz4' or 'zstd'"),
        ({"jpeg_quality": "5"}, "greater than or equal to 10"),
        ({"target_fps": "0"}, "greater than 0"),
        ({"target_fps": ".nan"}, "greater than 0|less than or equal"),
        ({"groups": "[]"}, "at least 1 item"),
        ({"groups": "[a, b, a]"}, "a group is named twice"),
        ({"groups": "[a/b]"}, "pattern"),
        ({"groups": "[a.b]"}, "pattern"),
        ({"live_length": "0"}, "greater than or equal to 1"),
        ({"max_age_s": "0"}, "greater than 0"),
        ({"max_age_s": ".inf"}, "less than or equal to 3600"),
        ({"spool_bytes": "1000"}, "greater than or equal to 1048576"),
        ({"attempts": "0"}, "greater than or equal to 1"),
        ({"puts": "100"}, "less than or equal to 64"),
        ({"stale_after_s": ".inf"}, "finite"),
        ({"speed": "1"}, "Extra inputs"),
    ],
)
def test_a_value_out_of_range_is_reported(values: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        read(**values)
    (name,) = values
    assert str(caught.value).startswith(f"FRAMEBUS_RELAY__{name.upper()}: relay.{name}") or name == "groups"


@pytest.mark.parametrize("name", ["expire_frames_s", "expire_results_s", "expire_dead_letters_s", "sweep_s"])
@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_times_are_finite(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        read(**{name: value})


def test_the_broker_and_the_storage_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableSetting, match=r"set broker\.url to amqp://HOST"):
        check(RelayConfiguration())
    with pytest.raises(UnusableSetting, match=r"set storage\.url to file:///FOLDER"):
        check(RelayConfiguration.model_validate({"broker": {"url": "amqp://rabbit"}}))
    content = {"broker": {"url": "amqp://rabbit"}, "storage": {"url": f"file://{tmp_path}/objects"}}
    check(RelayConfiguration.model_validate(content))


def test_the_service_reads_its_own_section_and_those_of_broker_and_storage() -> None:
    assert set(SERVICE.configuration.model_fields) == {"stream", "log", "source", "broker", "storage", "relay"}
