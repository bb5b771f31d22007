"""The status of a service: rates and latencies of its stages, served on a Unix socket beside the stream.

A client connects to ``framebus.STREAM.status.SERVICE.sock`` in /dev/shm and reads one JSON document up to the end of
file. This requires neither a network nor a shared volume, so it works for containers that have neither.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from framebus import companion_path, companion_paths
from services.common.health import read_status
from services.common.service import ServiceError

__all__ = [
    "AlreadyServed",
    "Stage",
    "StatusServer",
    "read_status",
    "read_statuses",
    "status_document",
]

WINDOW_S = 5.0
"""Window of rates and latencies: short, so that a fault shows immediately and fades soon after its end."""
SOCKET_MODE = 0o660
MAX_ASKED_AT_ONCE = 16
"""Largest number of services that are asked concurrently."""
ACCEPT_AGAIN_S = 0.1
"""Pause after a failed accept(2)."""


class AlreadyServed(ServiceError, FileExistsError):
    """Another process already serves the status of this service."""


class Stage:
    """Counts the frames of one stage of a service. Thread-safe."""

    def __init__(self) -> None:
        # The length bounds the memory at high rates, at which the window is then shorter.
        self._samples: deque[tuple[float, float]] = deque(maxlen=4096)
        self._lock = threading.Lock()
        self._frames = 0
        self._skipped = 0
        self._last_s: float | None = None

    def record(self, latency_s: float = float("nan"), skipped: int = 0) -> None:
        """Count a frame that passed the stage.

        Args:
            latency_s: Seconds from the frame's capture to the end of the stage; NaN if not known.
            skipped: Frames that the stage skipped since the previous one.
        """
        now_s = time.monotonic()
        with self._lock:
            self._samples.append((now_s, latency_s))
            self._frames += 1
            self._skipped += skipped
            self._last_s = now_s

    def summary(self) -> dict[str, float | int | None]:
        """Return the rate and latencies of the last :data:`WINDOW_S` seconds, and the totals, ready for JSON."""
        now_s = time.monotonic()
        with self._lock:
            while self._samples and self._samples[0][0] < now_s - WINDOW_S:
                self._samples.popleft()
            samples = list(self._samples)
            frames, skipped, last_s = self._frames, self._skipped, self._last_s
        latencies_s = np.array([latency for _, latency in samples])
        # A latency that is not known is NaN, for example of a recording.
        latencies_s = latencies_s[np.isfinite(latencies_s)]
        p50, p99 = np.percentile(latencies_s, (50, 99)) * 1e3 if latencies_s.size else (None, None)
        fps = 0.0
        if len(samples) > 1:
            # Up to now, not up to the newest sample, so that the rate falls when frames stop.
            fps = (len(samples) - 1) / max(now_s - samples[0][0], 1e-3)
        return {
            "fps": round(fps, 2),
            "frames": frames,
            "skipped": skipped,
            "latency_p50_ms": None if p50 is None else round(float(p50), 3),
            "latency_p99_ms": None if p99 is None else round(float(p99), 3),
            "age_s": None if last_s is None else round(now_s - last_s, 3),
        }


def status_document(
    service: str,
    stages: Mapping[str, Stage],
    *,
    stale_after_s: float,
    optional: Collection[str] = (),
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a service as JSON.

    ``healthy`` is true if every stage passed a frame within the last ``stale_after_s`` seconds; a running process alone
    is not enough. The ``optional`` stages, which work only on demand, are exempt.
    """
    summaries = {name: stage.summary() for name, stage in stages.items()}
    stale = [
        f"{name}: no frame yet" if summary["age_s"] is None else f"{name}: newest frame is {summary['age_s']} s old"
        for name, summary in summaries.items()
        if name not in optional and (summary["age_s"] is None or summary["age_s"] > stale_after_s)
    ]
    return {
        "service": service,
        "healthy": not stale,
        "reason": "; ".join(stale),
        "stages": summaries,
        "details": dict(details or {}),
    }


class _Server(socketserver.ThreadingUnixStreamServer):
    """Pauses after a failed accept(2), to avoid a busy loop while the process has no file descriptors left."""

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(ACCEPT_AGAIN_S)
            raise


class StatusServer:
    """Serves a service's status on its Unix socket, from a thread of its own, until closed.

    Raises:
        AlreadyServed: The service is already running.
        ServiceError: The socket cannot be created.
    """

    def __init__(self, stream: str, service: str, collect: Callable[[], Mapping[str, Any]]) -> None:
        self.path = companion_path(stream, f"status.{service}.sock")
        # Serving the status is also the lock of a service's name: a second instance finds that the socket answers.
        try:
            _remove_stale_socket(self.path)
            self._server = self._bind(collect)
        except AlreadyServed:
            raise
        except OSError as error:
            raise ServiceError(f"{self.path}: the status cannot be served: {error.strerror or error}") from None
        # The interval bounds the time that shutdown() takes.
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="status", daemon=True
        )
        self._thread.start()

    def _bind(self, collect: Callable[[], Mapping[str, Any]]) -> socketserver.ThreadingUnixStreamServer:
        class Handler(socketserver.StreamRequestHandler):
            timeout = 1.0  # a client that never reads must not keep the handler's thread

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    self.wfile.write(json.dumps(collect()).encode())

        server = _Server(str(self.path), Handler)
        server.daemon_threads = True
        self.path.chmod(SOCKET_MODE)
        return server

    def close(self) -> None:
        """Stop serving and remove the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> StatusServer:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def read_statuses(stream: str, timeout_s: float = 1.0) -> dict[str, dict[str, Any]]:
    """Return the status of every service of the stream that answers within ``timeout_s`` seconds, by its name.

    The services are queried concurrently, so that a service that hangs does not delay the others' answers.
    """
    paths = companion_paths(stream, "status.*.sock")
    if not paths:
        return {}

    def ask(path: Path) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError):
            return read_status(path, timeout_s)
        return None

    with ThreadPoolExecutor(min(len(paths), MAX_ASKED_AT_ONCE)) as pool:
        answers = pool.map(ask, paths)
        return {
            path.name.removesuffix(".sock").rpartition(".status.")[2]: answer
            for path, answer in zip(paths, answers, strict=True)
            if answer is not None
        }


def _remove_stale_socket(path: Path) -> None:
    """Unlink a socket that no process listens on.

    Raises:
        AlreadyServed: A process accepts connections on it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except OSError:  # refused: a killed service left its socket behind
            path.unlink(missing_ok=True)
            return
    raise AlreadyServed(f"{path} is served by another process: this service runs already")
