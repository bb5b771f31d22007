"""The detectors of a queue: counted by their results, absent when silent, forgotten later, and bounded in number."""

from __future__ import annotations

import pytest

from services.streamer import metrics
from services.streamer.workers import FORGET_S, MAX_WORKERS, SILENT_S, Workers


class Clock:
    """The monotonic clock of the module, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still."""
    return Clock(monkeypatch)


def names(workers: Workers) -> list[str]:
    return [one["worker"] for one in workers.summaries()]


def test_each_detector_is_described_by_its_results(clock: Clock) -> None:
    workers = Workers()
    for _ in range(3):
        workers.record("people", "b", "yolox 1", 0.25)
        workers.record("people", "a", "yolox 1", 0.5)
        clock.now_s += 1
    workers.record("cars", "a", "cars 2", 1.0)
    found = {(one["group"], one["worker"]): one for one in workers.summaries()}
    assert list(found) == [("cars", "a"), ("people", "a"), ("people", "b")]
    one = found["people", "b"]
    assert (one["model"], one["frames"], one["latency_p50_ms"], one["age_s"]) == ("yolox 1", 3, 250.0, 1.0)
    assert one["silent"] is False
    assert workers.absent() == []


def test_a_silent_detector_is_absent_until_it_returns_or_is_forgotten(clock: Clock) -> None:
    workers = Workers()
    workers.record("people", "a", "m", 0.5)
    clock.now_s += SILENT_S + 1
    workers.record("people", "b", "m", 0.5)
    (absent,) = workers.absent()
    assert (absent.kind, absent.name, absent.silent_s, absent.reason) == ("worker", "people/a", SILENT_S + 1, "silent")
    assert [one["silent"] for one in workers.summaries()] == [True, False]
    workers.record("people", "a", "m", 0.5)
    assert workers.absent() == []
    clock.now_s += FORGET_S
    workers.record("people", "b", "m", 0.5)
    assert [one.name for one in workers.absent()] == ["people/a"]
    clock.now_s += 1
    assert names(workers) == ["b"]
    assert workers.absent() == []


def test_a_detector_with_few_results_is_silent_later(clock: Clock) -> None:
    workers = Workers()
    for _ in range(30):
        workers.record("people", "a", "m", 0.5)
        clock.now_s += 20
    clock.now_s += 100
    assert workers.absent() == []
    clock.now_s += 100
    assert len(workers.absent()) == 1


def test_names_are_bounded_in_number_and_form(clock: Clock) -> None:
    workers = Workers()
    for number in range(MAX_WORKERS):
        workers.record("people", f"n{number}", "m", 0.5)
        clock.now_s += 0.01
    workers.record("people", "n0", "m", 0.5)
    workers.record("people", "new", "m", 0.5)
    for name in ("", "a b", "x" * 49, 'a"} 1\n', "ä"):
        workers.record("people", name, "m", 0.5)
    assert len(names(workers)) == MAX_WORKERS
    assert {"n0", "new"} < set(names(workers))
    assert "n1" not in names(workers)


def test_the_metrics_name_each_detector(clock: Clock) -> None:
    workers = Workers()
    workers.record("people", "a", "m", 0.5)
    clock.now_s += SILENT_S + 2
    workers.record("people", "b", "m", 0.25)
    lines = metrics.render({"streamer": {"details": {"results": {"workers": workers.summaries()}}}}).decode()
    for line in (
        'framebus_worker_up{group="people",worker="a"} 0.0',
        'framebus_worker_up{group="people",worker="b"} 1.0',
        'framebus_worker_results_total{group="people",worker="a"} 1.0',
        'framebus_worker_age_seconds{group="people",worker="a"} 12.0',
        'framebus_worker_latency_seconds{group="people",quantile="0.5",worker="a"} NaN',
        'framebus_worker_latency_seconds{group="people",quantile="0.5",worker="b"} 0.25',
    ):
        assert line in lines
    assert 'framebus_service_detail{detail="results.workers' not in lines
    assert "framebus_worker" not in "".join(
        line for line in metrics.render({}).decode().splitlines() if not line.startswith("#")
    )
