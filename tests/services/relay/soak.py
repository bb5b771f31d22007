"""Sends frames through three hosts while every part dies: ``python -m tests.services.relay.soak --frames 10000``.

A publisher and a relay on one host, two detectors on two others, a broker and an S3 server beside them. Detectors are
killed every few seconds, the relay three times, the broker twice, the storage once, and slow once. Each frame must
either give one result or be counted as missed. The last line says ``lost 0, doubled 0 of 10000, N kills, N s``.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from framebus import Publisher
from services.common.broker_names import Names
from services.common.detections import Detections
from services.common.reference import ResultReference
from services.common.status import read_statuses
from tests.rabbitmq import RabbitMq
from tests.s3 import SECRET_KEY, S3Server
from tests.services.relay.hosts import Host, running_hosts
from tests.services.relay.parts import configuration, open_publisher, reading_results
from tests.support import PROGRAMS, ROOT, files_of, wait_until

WORK_S: Final = 0.005
SETTLE_TIMEOUT_S: Final = 600.0


@dataclass
class Report:
    """The result of a soak."""

    published: int = 0
    accepted: int = 0
    missed: dict[str, int] = field(default_factory=dict)
    results: int = 0
    lost: list[int] = field(default_factory=list)
    """Frames without a result that are not counted as missed."""
    doubled: list[int] = field(default_factory=list)
    """Frames with more than one result."""
    unaccounted: int = 0
    """Published, less accepted and missed."""
    kills: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    left_over: list[str] = field(default_factory=list)
    """Objects of frames, and references, that are still there though all is settled."""

    @property
    def good(self) -> bool:
        """Return whether all promises were kept."""
        return not (self.lost or self.doubled or self.unaccounted or self.left_over)

    @property
    def line(self) -> str:
        """The last line."""
        kills = sum(self.kills.values())
        return (
            f"lost {len(self.lost)}, doubled {len(self.doubled)} of {self.accepted}, {kills} kills, "
            f"{self.seconds:.0f} s"
        )


class _Service:
    """A process on a host that is killed and started again."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._arguments = arguments
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "S3_SECRET": SECRET_KEY},
                start_new_session=True,
            )

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stop(self) -> None:
        """Stop the service in the regular way."""
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(20)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def restart(self) -> None:
        self.kill()
        self.start()


def run(
    frames: int, *, fps: float = 25.0, detector_kill_s: float = 5.0, say: Callable[[str], None] = lambda _line: None
) -> Report:
    """Run a soak.

    Args:
        frames: To publish.
        fps: So many a second.
        detector_kill_s: Seconds between two kills of a detector.
        say: Takes lines that tell what happens.
    """
    os.environ["S3_SECRET"] = SECRET_KEY
    stream = f"soak-{secrets.token_hex(4)}"
    report = Report()
    begun_s = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="framebus-soak-")))
        camera, *workers = stack.enter_context(running_hosts(3))
        broker = stack.enter_context(RabbitMq(folder / "rabbitmq", host="0.0.0.0"))
        storage = stack.enter_context(S3Server(folder / "s3", host="0.0.0.0"))

        def written(host: Host) -> Path:
            configured = configuration(
                stream,
                f"amqp://{host.gateway}:{broker.port}",
                storage.section | {"endpoint": f"http://{host.gateway}:{storage.port}"},
                policy="work",
                encoding="png",
                spool=folder / "spool",
                attempts=20,
                sweep_s=1,
            )
            path = folder / f"{host.name}.yaml"
            path.write_text(yaml.safe_dump(configured.model_dump(mode="json", exclude={"source"})))
            (folder / f"{host.name}.json").write_text(configured.model_dump_json(exclude={"source"}))
            return path

        paths = [written(host) for host in (camera, *workers)]
        local = configuration(
            stream,
            f"amqp://127.0.0.1:{broker.port}",
            storage.section | {"endpoint": f"http://127.0.0.1:{storage.port}"},
        )
        results: list[tuple[ResultReference, Detections]]
        publisher = stack.enter_context(open_publisher(stream, slots=32))
        relay = _Service(
            [*camera.prefix, sys.executable, "-m", "services.relay", "--config", str(paths[0])], folder / "relay.log"
        )
        stack.callback(relay.stop)
        status = _status(stream)
        wait_until(lambda: status().get("details"), "the relay's status")
        results = stack.enter_context(reading_results(local, queue=f"{Names(stream).results}.soak"))
        detectors = []
        for number, (host, path) in enumerate(zip(workers, paths[1:], strict=True)):
            detectors.append(
                _Service(
                    [*host.prefix, sys.executable, str(PROGRAMS / "planted_detector.py"),
                     str(path.with_suffix(".json")), f"worker{number}", str(WORK_S)],
                    folder / f"detector{number}.log",
                )
            )  # fmt: skip
            stack.callback(detectors[-1].kill)
        try:
            _publish_under_faults(
                publisher,
                frames,
                fps,
                report,
                _plan(frames / fps, detector_kill_s, relay, detectors, broker, storage),
                say,
            )
            wait_until(
                lambda: _is_settled(status()),
                "all is settled",
                timeout_s=SETTLE_TIMEOUT_S,
                interval_s=0.2,
                detail=status,
            )
            details = status()["details"]
            wait_until(
                lambda: len(results) >= details["counts"]["accepted"] - details["counts"].get("dead letters", 0),
                "the last results",
                timeout_s=SETTLE_TIMEOUT_S,
            )
        finally:
            for log in sorted(folder.rglob("*.log")):
                (Path(tempfile.gettempdir()) / f"{stream}-{log.parent.name}-{log.name}").write_bytes(log.read_bytes())
        _judge(report, details, results)
        # A server that is killed while it writes leaves a file that is no object yet.
        files = (path for path in (folder / "s3/data/frames/site/frames").rglob("*") if path.is_file())
        report.left_over = [str(path) for path in files if not path.name.startswith(".tmp.")]
        report.seconds = time.monotonic() - begun_s
    report.left_over += files_of(stream)
    for log in Path(tempfile.gettempdir()).glob(f"{stream}-*.log"):
        if report.good:
            log.unlink()
    return report


def _plan(
    span_s: float,
    detector_kill_s: float,
    relay: _Service,
    detectors: list[_Service],
    broker: RabbitMq,
    storage: S3Server,
) -> list[tuple[float, str, Callable[[], None]]]:
    """Return the events with their times, in seconds from the first frame."""

    def restart_broker() -> None:
        broker.kill()
        broker.start()

    def restart_storage() -> None:
        storage.kill()
        time.sleep(1)
        storage.start()

    def slow_storage() -> None:
        # Stopped for half of each second: every request takes longer, and some time out.
        for _ in range(min(10, max(2, round(span_s / 20)))):
            storage.signal(signal.SIGSTOP)
            time.sleep(0.5)
            storage.signal(signal.SIGCONT)
            time.sleep(0.5)

    plan = [
        (span_s * share, name, act)
        for share, name, act in (
            (0.10, "relay", relay.restart),
            (0.20, "broker", restart_broker),
            (0.40, "storage", restart_storage),
            (0.50, "relay", relay.restart),
            (0.60, "storage slow", slow_storage),
            (0.75, "broker", restart_broker),
            (0.90, "relay", relay.restart),
        )
    ]
    at_s, number = detector_kill_s, 0
    while at_s < span_s:
        plan.append((at_s, "detector", detectors[number % len(detectors)].restart))
        at_s, number = at_s + detector_kill_s, number + 1
    return sorted(plan, key=lambda one: one[0])


def _publish_under_faults(
    publisher: Publisher,
    frames: int,
    fps: float,
    report: Report,
    plan: list[tuple[float, str, Callable[[], None]]],
    say: Callable[[str], None],
) -> None:
    begun_s = time.monotonic()
    failures: list[BaseException] = []

    def harm() -> None:
        counts: Counter[str] = Counter()
        try:
            for at_s, name, act in plan:
                time.sleep(max(0.0, begun_s + at_s - time.monotonic()))
                say(f"{time.monotonic() - begun_s:7.1f} s: {name}")
                act()
                counts[name] += 1
                report.kills = dict(counts)
        except BaseException as error:  # noqa: BLE001  told by the caller
            failures.append(error)

    harming = threading.Thread(target=harm)
    harming.start()
    for number in range(frames):
        with publisher.loan() as loan:
            loan.pixels[:] = number % 251
        time.sleep(max(0.0, begun_s + (number + 1) / fps - time.monotonic()))
    report.published = publisher.statistics.sequence
    harming.join()
    if failures:
        raise failures[0]


def _status(stream: str) -> Callable[[], dict[str, Any]]:
    return lambda: read_statuses(stream).get("relay", {})


def _is_settled(status: dict[str, Any]) -> bool:
    details: dict[str, Any] = status.get("details") or {}
    return (
        bool(details)
        and not details["spooled"]
        and not details["unsettled"]
        and details["counts"].get("accepted", 0) > 0
    )


def _judge(report: Report, details: dict[str, Any], results: list[tuple[ResultReference, Detections]]) -> None:
    counts: dict[str, int] = details["counts"]
    report.accepted = counts["accepted"]
    report.missed = {name: value for name, value in counts.items() if name.startswith("missed: ")}
    report.results = len(results)
    seen = Counter(reference.sequence for reference, _detections in results)
    missed = {sequence for _epoch, first, last, _reason in details["missed"] for sequence in range(first, last + 1)}
    report.doubled = [sequence for sequence, times in seen.items() if times > 1 or sequence in missed]
    report.lost = [
        sequence for sequence in range(1, report.published + 1) if sequence not in seen and sequence not in missed
    ]
    report.unaccounted = report.published - report.accepted - sum(report.missed.values())


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.services.relay.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--fps", type=float, default=25.0)
    options = parser.parse_args()
    report = run(options.frames, fps=options.fps, say=lambda line: print(line, flush=True))
    print(json.dumps({name: getattr(report, name) for name in report.__dataclass_fields__}, indent=2))
    print(report.line)
    return int(not report.good)


if __name__ == "__main__":
    raise SystemExit(main())
