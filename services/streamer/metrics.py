"""Convert all services' status documents to Prometheus metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from services.streamer import stitching

QUANTILES = {"0.5": "latency_p50_ms", "0.99": "latency_p99_ms"}
"""Fields of a stage's summary, by quantile."""

STREAM_GAUGES = {
    "live": ("live", "1 while a publisher serves the stream"),
    "age_s": ("age_seconds", "Seconds since the newest frame was published"),
    "slots": ("slots", "Slots of the ring"),
    "slots_held": ("slots_held", "Slots that a loan or a lease holds now"),
    "seats": ("seats", "Leases that the ring has for subscribers"),
    "seats_taken": ("seats_taken", "Leases that the subscribers may take together"),
    "ring_bytes": ("ring_bytes", "Size of the ring"),
    "subscribers": ("subscribers", "Live subscribers"),
}
"""Metrics of a stream: name and help, by the key in its description."""

PAIR_HELP = {
    "residual_px": "Difference of two neighbouring cameras in their overlap, root mean square",
    "drift_px": "Common part of the differences of two neighbouring cameras, as after one was moved",
    "parallax_px": "Differences of two neighbouring cameras that remain without the drift",
}
COVERAGE_HELP = {
    "shown": "Width that the panorama shows, in degrees of yaw",
    "all": "Width that the cameras see, in degrees of yaw",
}


class StreamCollector(Collector):
    """Converts descriptions of streams to metrics."""

    def __init__(self, streams: Sequence[Mapping[str, Any]]) -> None:
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of every stream."""
        published = CounterMetricFamily(
            "framebus_stream_frames", "Sequence of the newest frame: frames published in the ring", labels=["stream"]
        )
        for stream in self._streams:
            published.add_metric([stream["name"]], stream["sequence"])
        yield published
        for key, (name, text) in STREAM_GAUGES.items():
            gauge = GaugeMetricFamily(f"framebus_stream_{name}", text, labels=["stream"])
            for stream in self._streams:
                if stream[key] is not None:
                    gauge.add_metric([stream["name"]], float(stream[key]))
            yield gauge


class StatusCollector(Collector):
    """Converts status documents to metrics. Values that are missing or not numbers are skipped.

    A document with ``silent`` is the last one of a service that has disappeared, with its ages updated. The service is
    neither up nor healthy and has a rate of 0; counters keep their values, and gauges that only the service knows are
    NaN.
    """

    def __init__(self, statuses: Mapping[str, Mapping[str, Any]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of every service and stage."""
        up = GaugeMetricFamily("framebus_service_up", "1 if the service answers, 0 if not", labels=["service"])
        healthy = GaugeMetricFamily(
            "framebus_service_healthy", "1 if the service is healthy, 0 if not", labels=["service"]
        )
        detail = GaugeMetricFamily(
            "framebus_service_detail", "A number of the details in the service's status", labels=["service", "detail"]
        )
        labels = ["service", "stage"]
        frames = CounterMetricFamily("framebus_stage_frames", "Frames that passed the stage", labels=labels)
        skipped = CounterMetricFamily("framebus_stage_skipped", "Frames that the stage skipped", labels=labels)
        fps = GaugeMetricFamily("framebus_stage_fps", "Frames per second, over the last seconds", labels=labels)
        age = GaugeMetricFamily("framebus_stage_age_seconds", "Seconds since the stage's last frame", labels=labels)
        latency = SummaryMetricFamily(
            "framebus_stage_latency_seconds",
            "Seconds from a frame's capture to the end of the stage, over the last seconds",
            labels=labels,
        )
        for service, document in self._statuses.items():
            silent = document.get("silent") is True
            up.add_metric([service], float(not silent))
            healthy.add_metric([service], float(not silent and document.get("healthy") is True))
            for name, number in _numbers(document.get("details"), ""):
                detail.add_metric([service, name], math.nan if silent else number)
            for stage, summary in _mapping(document.get("stages")).items():
                values = dict(_numbers(summary, ""))
                if silent and "fps" in values:
                    values["fps"] = 0.0
                place = [service, str(stage)]
                # Counters keep their last values: Prometheus would take a lower one for a restart of the service.
                for family, key in ((frames, "frames"), (skipped, "skipped"), (fps, "fps"), (age, "age_s")):
                    if key in values:
                        family.add_metric(place, values[key])
                for quantile, key in QUANTILES.items():
                    if key in _mapping(summary):  # the quantiles are NaN if no frame passed in the last seconds
                        seconds = math.nan if silent else values.get(key, math.nan) / 1e3
                        where = dict(zip(labels, place, strict=True)) | {"quantile": quantile}
                        # add_metric() takes a sum and a count, which the services do not keep.
                        latency.add_sample(latency.name, where, seconds)
        yield from (up, healthy, detail, frames, skipped, fps, age, latency)


class StitchingCollector(Collector):
    """Converts the stitchers' status of cameras and calibration to metrics.

    If a service has disappeared, its cameras are down, and gauges that only the service knows are NaN.
    """

    def __init__(self, statuses: Mapping[str, Mapping[str, Any]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of every camera, each pair of neighbours, and the panorama's coverage."""
        of_camera = ["service", "camera"]
        up = GaugeMetricFamily("framebus_camera_up", "1 if the camera is connected, 0 if not", labels=of_camera)
        cause = GaugeMetricFamily(
            "framebus_camera_cause",
            "1 for the cause of a camera's disconnection",
            labels=[*of_camera, "cause"],
        )
        skew = GaugeMetricFamily(
            "framebus_camera_skew_seconds",
            "Capture time of the camera's picture minus that of the panorama that contains it",
            labels=of_camera,
        )
        placed = GaugeMetricFamily(
            "framebus_camera_placed", "1 if the calibration places the camera, 0 if not", labels=of_camera
        )
        fits = {
            name: GaugeMetricFamily(f"framebus_pair_{name}", f"{text}, in panorama pixels", labels=["service", "pair"])
            for name, text in PAIR_HELP.items()
        }
        coverage = {
            name: GaugeMetricFamily(f"framebus_panorama_{name}_degrees", text, labels=["service"])
            for name, text in COVERAGE_HELP.items()
        }
        for service, document in self._statuses.items():
            silent = document.get("silent") is True
            for camera in stitching.cameras(document):
                place = [service, camera.name]
                up.add_metric(place, float(camera.up and not silent))
                if camera.cause:
                    cause.add_metric([*place, camera.cause], math.nan if silent else 1.0)
                if camera.skew_s is not None:
                    skew.add_metric(place, math.nan if silent else camera.skew_s)
                if camera.placed is not None:
                    placed.add_metric(place, math.nan if silent else float(camera.placed))
            # Pairs have no up or down of their own: NaN says that the last number is not current.
            for pair, numbers in stitching.pairs(document):
                for name, number in numbers.items():
                    fits[name].add_metric([service, pair], math.nan if silent else number)
            for name, degrees in stitching.coverage_deg(document).items():
                coverage[name].add_metric([service], math.nan if silent else degrees)
        yield from (up, cause, skew, placed, *fits.values(), *coverage.values())


class WorkerCollector(Collector):
    """Converts what the streamer's status says of the detectors of a queue to metrics.

    A detector that the streamer has forgotten has no metrics, so that their number is bounded.
    """

    def __init__(self, statuses: Mapping[str, Mapping[str, Any]]) -> None:
        # The streamer's own document: those of other services are untrusted.
        results = _mapping(_mapping(statuses.get("streamer", {}).get("details")).get("results"))
        self._workers: list[Mapping[str, Any]] = results.get("workers", [])

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of every detector."""
        labels = ["group", "worker"]
        up = GaugeMetricFamily("framebus_worker_up", "1 if results of the detector arrive, 0 if not", labels=labels)
        results = CounterMetricFamily(
            "framebus_worker_results", "Results of the detector that have arrived", labels=labels
        )
        rate = GaugeMetricFamily("framebus_worker_fps", "Results per second, over the last seconds", labels=labels)
        age = GaugeMetricFamily(
            "framebus_worker_age_seconds", "Seconds since the detector's last result arrived", labels=labels
        )
        latency = SummaryMetricFamily(
            "framebus_worker_latency_seconds",
            "Seconds from a frame's capture to the arrival of its result, over the last seconds",
            labels=labels,
        )
        for worker in self._workers:
            place = [worker["group"], worker["worker"]]
            up.add_metric(place, float(not worker["silent"]))
            results.add_metric(place, worker["frames"])
            rate.add_metric(place, worker["fps"])
            age.add_metric(place, worker["age_s"])
            for quantile, key in QUANTILES.items():
                seconds = math.nan if worker[key] is None else worker[key] / 1e3
                where = dict(zip(labels, place, strict=True)) | {"quantile": quantile}
                latency.add_sample(latency.name, where, seconds)
        yield from (up, results, rate, age, latency)


class ConnectionCollector(Collector):
    """Converts the counts of the web server's connections to metrics."""

    def __init__(self, counts: Mapping[str, Any]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield the connections that are open, and how many were opened, refused and dropped."""
        prefix = "framebus_web_connections"
        yield GaugeMetricFamily(f"{prefix}_open", "Open connections", value=self._counts["open"])
        yield GaugeMetricFamily(f"{prefix}_limit", "Largest number of open connections", value=self._counts["max"])
        yield CounterMetricFamily(f"{prefix}_opened", "Connections that were accepted", value=self._counts["opened"])
        for name, key, text in (
            (f"{prefix}_refused", "refused", "Connections that were refused, by the limit that was reached"),
            (f"{prefix}_dropped", "dropped", "Connections that were closed, by the deadline that had passed"),
            ("framebus_web_requests_forbidden", "forbidden", "Requests answered 403, by the rule that rejected them"),
        ):
            family = CounterMetricFamily(name, text, labels=["reason"])
            for reason, count in self._counts[key].items():
                family.add_metric([reason], count)
            yield family


def render(
    statuses: Mapping[str, Mapping[str, Any]],
    streams: Sequence[Mapping[str, Any]] = (),
    connections: Mapping[str, Any] | None = None,
) -> bytes:
    """Return Prometheus' text format of the documents of :func:`services.common.status.read_statuses`, and of streams.

    It includes the streamer's own CPU time, memory and file descriptors, as ``process_*``.

    Args:
        statuses: By the service's name; those with ``silent`` are of services that have disappeared.
        streams: Descriptions by ``services.streamer.web.describe``.
        connections: The web server's ``Connections.summary``, with ``forbidden`` for the counts of the gatekeeper.
    """
    # A registry for each answer, because the collectors hold the documents of one.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(statuses))
    registry.register(StitchingCollector(statuses))
    registry.register(StreamCollector(streams))
    registry.register(WorkerCollector(statuses))
    if connections is not None:
        registry.register(ConnectionCollector(connections))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _numbers(value: object, prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers in a document, with their dotted names."""
    for key, entry in _mapping(value).items():
        if isinstance(entry, Mapping):
            yield from _numbers(entry, f"{prefix}{key}.")
        elif isinstance(entry, int | float) and math.isfinite(entry):
            yield f"{prefix}{key}", float(entry)
