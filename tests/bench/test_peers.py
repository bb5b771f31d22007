"""Every peer of the benchmark hands frames over, in order and whole, and leaves nothing behind."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.harness import Session
from bench.peers import Config, Peer, all_peers, rabbitmq_server
from bench.peers.places import server, wait_until
from bench.worker import Round
from tests.support import SHM, lacks

SHAPE = (96, 128, 3)
FRAMES = 3
PERIOD_S = 0.02
RECEIVERS = 2
ROUNDS = 5
"""Tries of a peer that may pass over frames, on a busy machine."""


@pytest.mark.long
@pytest.mark.parametrize("peer", all_peers().values(), ids=all_peers().keys())
def test_stamped_frames_reach_two_processes(peer: Peer) -> None:
    if reason := peer.missing():
        lacks(reason)
    config = Config(f"peer-{secrets.token_hex(6)}", SHAPE, RECEIVERS)
    with ExitStack() as stack:
        session = Session(stack, peer, config)
        for number in range(1, ROUNDS + 1):
            result = session.run_round(Round(number, FRAMES, 0, PERIOD_S))
            assert result.sent.frames == FRAMES
            assert [(received.torn, received.disordered) for received in result.received] == [(0, 0)] * RECEIVERS
            if [received.frames for received in result.received] == [FRAMES] * RECEIVERS:
                break
            assert not peer.lossless
        else:
            pytest.fail(f"no round of {ROUNDS} in which each receiver got all frames")
    assert not [path for path in SHM.iterdir() if config.channel in path.name]


def test_every_peer_has_the_texts_that_the_report_needs() -> None:
    for name, peer in all_peers().items():
        assert peer.name == name
        assert peer.title
        assert peer.how.endswith(".")
        if peer.missing() is None:
            assert peer.version() or peer.distribution is None


def test_the_log_of_a_server_that_does_not_start_is_in_the_error(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "print('the port is\\n taken', flush=True); import time; time.sleep(60)"]
    log = tmp_path / "log"
    pid = 0

    def start() -> None:
        nonlocal pid
        with server(program, log) as pid:
            wait_until(lambda: b"taken" in log.read_bytes(), "its log")
            wait_until(lambda: False, "it", 0.1)

    with pytest.raises(
        TimeoutError, match=f"^it did not come within 0.1 s; {re.escape(sys.executable)} printed: the port"
    ):
        start()
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("fails", [1, 2])
def test_rabbitmq_is_started_a_second_time_if_the_first_start_fails(
    monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    attempts = 0

    @contextmanager
    def running(*_arguments: object) -> Iterator[int]:
        nonlocal attempts
        attempts += 1
        if attempts <= fails:
            raise TimeoutError(f"failure {attempts}")
        yield 77

    monkeypatch.setattr(rabbitmq_server.RabbitMq, "_running", running)
    prepared = rabbitmq_server.RabbitMq().prepare(Config("unused", SHAPE, 1))
    if fails < rabbitmq_server.START_ATTEMPTS:
        with prepared as port:
            assert port == 77
    else:
        with pytest.raises(TimeoutError, match="failure 2"), prepared:
            pass
    assert attempts == 2
