"""``framebus-relay results`` with a real broker: each result once, also while no reader runs, and a quiet end."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from services.relay.config import RelayConfiguration
from services.relay.entry import SERVICE
from tests.rabbitmq import RabbitMq
from tests.services.relay.parts import configuration, open_publisher, publish_frames, running_detector, running_relay
from tests.support import PATIENCE_S, ROOT, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def on_sigterm() -> Iterator[None]:
    """Restore what this process does on SIGTERM, which the command changes."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def configuration_file(configured: RelayConfiguration, folder: Path) -> Path:
    config = folder / "framebus.yaml"
    sections = configured.model_dump(mode="json", include={"stream", "broker", "storage", "relay"})
    config.write_text(yaml.safe_dump(sections))
    return config


class Results:
    """A process of ``framebus-relay results``."""

    def __init__(self, configured: RelayConfiguration, folder: Path, *arguments: str) -> None:
        folder = folder / secrets.token_hex(4)
        folder.mkdir()
        config = configuration_file(configured, folder)
        self._output, self._complaints = folder / "output", folder / "complaints"
        with self._output.open("wb") as output, self._complaints.open("wb") as complaints:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.relay", "results", "--config", str(config), *arguments],
                cwd=ROOT,
                env={name: text for name, text in os.environ.items() if not name.startswith("FRAMEBUS_")}
                | {"PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=complaints,
            )

    @property
    def printed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._output.read_text().splitlines(keepends=True) if line.endswith("\n")]

    @property
    def sequences(self) -> list[int]:
        return sorted(one["sequence"] for one in self.printed)

    @property
    def complaints(self) -> str:
        return self._complaints.read_text()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def work_policy(rabbitmq: RabbitMq, stream: str, folder: Path) -> RelayConfiguration:
    return configuration(stream, rabbitmq.url, folder / "objects", policy="work", spool=folder / "spool")


@pytest.mark.usefixtures("on_sigterm")
def test_a_queue_keeps_results_while_no_reader_runs(
    rabbitmq: RabbitMq, stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured = work_policy(rabbitmq, stream, tmp_path)
    config = configuration_file(configured, tmp_path)

    def read(count: int) -> list[int]:
        """Return the sequences of results that the command prints, called in this process."""
        capsys.readouterr()
        with capture_logs():  # the relay and the detector log at the same time
            assert SERVICE.main(
                ["results", "--config", str(config), "--queue", "archive", "--count", str(count)]
            ) == 0  # fmt: skip
        return sorted(json.loads(line)["sequence"] for line in capsys.readouterr().out.splitlines())

    with open_publisher(stream) as publisher, running_relay(configured) as status, running_detector(configured):

        def analysed(count: int) -> bool:
            return bool(status()["details"]["counts"].get("analysed") == count)

        # The first reader declares the queue. If it starts after the first frames, it does not get them.
        with Results(configured, tmp_path, "--queue", "archive", "--count", "1") as first:
            published = 0
            while first.process.poll() is None:
                published = publish_frames(publisher, 1, 0.2)
            assert (first.process.wait(), len(first.printed)) == (0, 1), first.complaints
        wait_until(lambda: analysed(published), "all are analysed", detail=status)
        last = publish_frames(publisher, 5, 0.05)
        wait_until(lambda: analysed(last), "those too", detail=status)
        oldest = first.sequences[0] + 1
        assert read(2) == [oldest, oldest + 1]
        assert read(last - oldest - 1) == list(range(oldest + 2, last + 1))
        # No result is left: the next one is of a new frame.
        newest = publish_frames(publisher, 1)
        assert read(1) == [newest]


def test_a_signal_ends_the_command_silently(rabbitmq: RabbitMq, stream: str, tmp_path: Path) -> None:
    configured = work_policy(rabbitmq, stream, tmp_path)
    with (
        open_publisher(stream) as publisher,
        running_relay(configured),
        running_detector(configured),
        Results(configured, tmp_path) as interrupted,
        Results(configured, tmp_path) as terminated,
    ):
        while not interrupted.printed or not terminated.printed:
            publish_frames(publisher, 1, 0.2)
        for results, ending, status in ((interrupted, signal.SIGINT, 130), (terminated, signal.SIGTERM, 0)):
            results.process.send_signal(ending)
            assert results.process.wait(PATIENCE_S) == status, results.complaints
            assert "Traceback" not in results.complaints
            assert len(results.sequences) == len(set(results.sequences))


@pytest.mark.parametrize("count", ["0", "-1", "some"])
def test_a_count_must_be_positive(capsys: pytest.CaptureFixture[str], count: str) -> None:
    with pytest.raises(SystemExit) as ended:
        SERVICE.main(["results", f"--count={count}"])
    assert ended.value.code == 2
    assert "--count" in capsys.readouterr().err.splitlines()[-1]
