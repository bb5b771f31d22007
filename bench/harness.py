"""Runs peers side by side: all are opened first, and then take turns, a round each.

The rounds of a scenario go around all its peers, in an order that changes each time, so that a noisy minute of the
machine affects all of them.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Final

from bench.peers import OPEN_TIMEOUT_S, Config, Peer
from bench.worker import Memory, Received, Round, Sent, serve

ANSWER_TIMEOUT_S: Final = 120.0
SHAPES: Final = {
    "0.1 MB": (176, 192, 3),
    "1 MB": (576, 576, 3),
    "10 MB": (880, 3840, 3),
    "50 MB": (2880, 5760, 3),
}
"""Frame sizes, as height, width and channels; 10 MB is the size of the panorama."""


class PeerFailed(RuntimeError):
    """A peer failed; the text is its traceback, or says what did not arrive in time."""


@dataclass(frozen=True)
class Candidate:
    """A peer under some conditions."""

    peer: str
    size: str = "10 MB"
    """A key of :data:`SHAPES`."""
    receivers: int = 1
    placement: str = "processes"
    """``processes`` of this machine, or ``containers``."""

    @property
    def key(self) -> str:
        """Name in the results."""
        return f"{self.peer}, {self.size}, {self.receivers}, {self.placement}"


@dataclass(frozen=True)
class Scenario:
    """One question to a set of candidates."""

    name: str
    candidates: tuple[Candidate, ...]
    fps: float
    """Frames a second; 0 sends as fast as the sender can."""
    rounds: int
    frames: int
    """Frames measured in each round, at most."""
    warm_up: int = 10
    jitter: float = 0.0
    limit_s: float = 10.0
    """A round ends after this time, even if fewer frames were sent."""
    pinned: bool = True
    """Whether the sender has one core for itself and the receivers the others; if not, the scheduler moves them."""

    def round(self, number: int) -> Round:
        """Return the round with this number, from 1."""
        period_s = 1 / self.fps if self.fps else 0.0
        return Round(number, self.frames, self.warm_up, period_s, self.jitter, self.limit_s)


@dataclass
class RoundResult:
    """One peer's round."""

    sent: Sent
    received: list[Received]


@dataclass
class Outcome:
    """All of a peer's rounds in a scenario."""

    rounds: list[RoundResult] = field(default_factory=list)
    idle: list[Memory] = field(default_factory=list)
    """Memory of each process after the rounds: the sender first."""
    failure: str = ""
    """Why there are no more rounds."""


class Worker:
    """A process that is one side of a hand-over."""

    def __init__(self, connection: Connection[Any, Any], what: str) -> None:
        self._connection = connection
        self._what = what

    def ask(self, command: object) -> None:
        """Send a command; :meth:`answer` takes the result."""
        self._connection.send(command)

    def answer(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Return the result of the last command.

        Raises:
            PeerFailed: The command failed, or the process did not answer within ``timeout_s``.
        """
        try:
            if not self._connection.poll(timeout_s):
                raise PeerFailed(f"{self._what} did not answer in {timeout_s:g} s")
            result = self._connection.recv()
        except EOFError:
            raise PeerFailed(f"{self._what} died") from None
        # A worker answers with a text only if it failed.
        if isinstance(result, str):
            raise PeerFailed(f"{self._what}: {result}")
        return result


Start = Callable[[ExitStack, Peer, Config, "int | None"], Worker]
"""Starts the sender (``None``) or a receiver, and lets the stack end it."""


def start_process(stack: ExitStack, peer: Peer, config: Config, index: int | None) -> Worker:
    """Start one side in a process of its own."""
    # Spawn: a forked worker would inherit the imports, the memory and the threads of this process.
    ours, theirs = get_context("spawn").Pipe()
    side = "sender" if index is None else f"receiver-{index}"
    process = get_context("spawn").Process(
        target=serve, args=(theirs, peer, config, index), name=f"{peer.name} {side}", daemon=True
    )
    process.start()
    theirs.close()

    def end() -> None:
        with contextlib.suppress(OSError):
            ours.send("close")
        # A peer's server or thread may keep the worker from ending: kill it then, so that the next scenario can run.
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()

    stack.callback(end)
    return Worker(ours, process.name)


class Session:
    """A peer with its processes, ready for rounds."""

    def __init__(self, stack: ExitStack, peer: Peer, config: Config, start: Start = start_process) -> None:
        """Open the sender and all receivers.

        Raises:
            PeerFailed: A side did not open.
        """
        config = replace(config, handles=stack.enter_context(peer.prepare(config)))
        self._sender = start(stack, peer, config, None)
        self._receivers = [start(stack, peer, config, index) for index in range(config.receivers)]
        for worker in (self._sender, *self._receivers):
            worker.answer(4 * OPEN_TIMEOUT_S)

    def run_round(self, round_: Round) -> RoundResult:
        """Run one round on all sides."""
        # Receivers are asked first, so that they wait when the sender's first frame arrives.
        for receiver in self._receivers:
            receiver.ask(round_)
        self._sender.ask(round_)
        sent = self._sender.answer()
        return RoundResult(sent, [receiver.answer() for receiver in self._receivers])

    def memory(self) -> list[Memory]:
        """Return the memory of the sender and each receiver."""
        workers = (self._sender, *self._receivers)
        for worker in workers:
            worker.ask("memory")
        return [worker.answer() for worker in workers]


@contextmanager
def opened(
    scenario: Scenario, peers: Mapping[str, Peer], starts: Mapping[str, Start], outcomes: Mapping[str, Outcome]
) -> Iterator[dict[str, Session]]:
    """Open every candidate's session, by its key. The outcome of one that cannot be opened says why."""
    with ExitStack() as everything:
        sessions = {}
        for candidate in scenario.candidates:
            channel = f"bench-{secrets.token_hex(4)}"
            config = Config(channel, SHAPES[candidate.size], candidate.receivers, scenario.pinned)
            # If a part of the session does not open, only this inner stack undoes what was already opened.
            with ExitStack() as stack:
                try:
                    session = Session(stack, peers[candidate.peer], config, starts[candidate.placement])
                except (PeerFailed, OSError) as error:
                    outcomes[candidate.key].failure = str(error)
                else:
                    sessions[candidate.key] = session
                    everything.push(stack.pop_all())
        yield sessions


def run_scenario(
    scenario: Scenario, peers: Mapping[str, Peer], starts: Mapping[str, Start], tell: Callable[[str], None]
) -> dict[str, Outcome]:
    """Run a scenario's rounds, interleaved between its candidates.

    Args:
        scenario: What to run.
        peers: The peers by name.
        starts: The function that starts a side, for each ``placement`` of the candidates.
        tell: Called with a line of progress for each step.

    Returns:
        The outcome of each candidate by its key. A candidate that fails takes no further turns.
    """
    outcomes = {candidate.key: Outcome() for candidate in scenario.candidates}
    # The seed is the scenario's name, so that two runs that are compared have the same order.
    order = random.Random(scenario.name)
    tell(f"{scenario.name}: opening {len(outcomes)} candidates")
    with opened(scenario, peers, starts, outcomes) as sessions:
        for number in range(1, scenario.rounds + 1):
            tell(f"{scenario.name}: round {number} of {scenario.rounds}")
            # A new order each round, so that no candidate always follows the same other one.
            for key in order.sample(sorted(sessions), len(sessions)):
                try:
                    outcomes[key].rounds.append(sessions[key].run_round(scenario.round(number)))
                except (PeerFailed, OSError) as error:
                    outcomes[key].failure = str(error)
                    del sessions[key]
        # Read the memory last, once every slot and every buffer has been in use.
        for key, session in sessions.items():
            with contextlib.suppress(PeerFailed, OSError):
                outcomes[key].idle = session.memory()
    return outcomes
