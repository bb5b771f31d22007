"""The settings of a group's queue, with which the broker keeps the promise of the policy."""

from __future__ import annotations

from services.common.broker_names import Names
from services.relay.config import RelaySection
from services.relay.topology import queue_arguments

NAMES = Names("roof")


def test_a_live_queue_drops_its_oldest_frame_and_reports_it() -> None:
    assert queue_arguments(NAMES, RelaySection(policy="live", live_length=5, attempts=3)) == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 3,
        "x-max-length": 5,
        "x-overflow": "drop-head",
        "x-dead-letter-exchange": "framebus.roof.dropped",
    }


def test_a_full_work_queue_rejects_frames_and_loses_no_dead_letter() -> None:
    assert queue_arguments(NAMES, RelaySection(policy="work", queue_length=7, attempts=4)) == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 4,
        "x-max-length": 7,
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "framebus.roof.dead",
        "x-dead-letter-strategy": "at-least-once",
    }


def test_every_name_belongs_to_one_stream() -> None:
    def names(stream: str) -> set[str]:
        of = Names(stream)
        return {of.frames, of.results, of.dropped, of.dead, of.settled, of.relay, of.group("a"), of.group("b")}

    assert len(names("roof")) == 8
    assert not names("roof") & names("roof2")
    assert all(name.startswith("framebus.roof.") for name in names("roof"))
