"""Every peer of the benchmark hands frames over, in order and whole, and leaves nothing behind."""

from __future__ import annotations

import secrets
from contextlib import ExitStack

import pytest

from bench.harness import Session
from bench.peers import Peer, Setting, all_peers
from bench.worker import Round
from tests.support import SHM, lacks

SHAPE = (96, 128, 3)
FRAMES = 3
PERIOD_S = 0.02
RECEIVERS = 2
ROUNDS = 5
"""Tries of a peer that may pass over frames, on a busy machine."""


@pytest.mark.parametrize("peer", all_peers().values(), ids=all_peers().keys())
def test_hands_stamped_frames_to_two_processes(peer: Peer) -> None:
    if reason := peer.missing():
        lacks(reason)
    setting = Setting(f"peer-{secrets.token_hex(6)}", SHAPE, RECEIVERS)
    with ExitStack() as stack:
        session = Session(stack, peer, setting)
        for number in range(1, ROUNDS + 1):
            turn = session.turn(Round(number, FRAMES, 0, PERIOD_S))
            assert turn.sent.frames == FRAMES
            assert [(received.torn, received.disordered) for received in turn.received] == [(0, 0)] * RECEIVERS
            if [received.frames for received in turn.received] == [FRAMES] * RECEIVERS:
                break
            assert not peer.lossless
        else:
            pytest.fail(f"no round of {ROUNDS} in which each receiver got all frames")
    assert not [path for path in SHM.iterdir() if setting.channel in path.name]


def test_every_peer_says_what_the_report_needs() -> None:
    for name, peer in all_peers().items():
        assert peer.name == name
        assert peer.title
        assert peer.how.endswith(".")
        if peer.missing() is None:
            assert peer.version() or peer.distribution is None
