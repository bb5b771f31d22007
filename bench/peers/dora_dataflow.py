"""dora-rs: a dataflow of dynamic nodes, with its own coordinator and daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from bench.peers import Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import (
    free_port,
    pixels_of,
    remove,
    server,
    temporary_folder,
    touched,
    wait_until,
    zenoh_files,
)

POOL_FRAMES: Final = 8
"""Frames that the shared memory has room for. By default it is smaller than one panorama, which then goes by TCP."""
SLACK_BYTES: Final = 1 << 20


def program() -> str | None:
    """Return the path of dora's command. The folder of the Python interpreter is searched first."""
    return shutil.which("dora", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def dataflow(config: Config) -> str:
    """Return the description of the nodes. The daemon does not start them, but waits for them."""
    lines = ["nodes:", "  - id: sender", "    path: dynamic", "    outputs: [frame]"]
    for index in range(config.receivers):
        lines += [
            f"  - id: receiver-{index}",
            "    path: dynamic",
            "    inputs:",
            "      frame: {source: sender/frame, queue_size: 1}",
        ]
    return "\n".join(lines) + "\n"


def open_node(config: Config, name: str) -> Any:
    """Connect to the daemon as a node."""
    os.environ["DORA_NODE_SHM_POOL_SIZE"] = str(POOL_FRAMES * config.frame_bytes + SLACK_BYTES)
    # A node prints a line on the standard output when it sends or drops a frame, and no setting disables that.
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    import dora

    return dora.Node(name, daemon_port=config.handles)


def remove_files_of(pid: int) -> None:
    """Remove the files that a running server would leave in /dev/shm."""
    remove(zenoh_files(pid))


class NodeSender(Sender):
    def __init__(self, config: Config) -> None:
        import pyarrow as pa

        self._node = open_node(config, "sender")
        self._pixels = touched(config.shape)
        # Send one binary value of the frame's size: with a uint8 array, dora would also send a bit for each pixel.
        frame_type = pa.binary(config.frame_bytes)
        self._array = pa.Array.from_buffers(frame_type, 1, [None, pa.py_buffer(self._pixels.reshape(-1))])

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        self._node.send_output("frame", self._array)

    def close(self) -> None:
        files = zenoh_files()
        self._node = None
        remove(files)


class NodeReceiver(Receiver):
    def __init__(self, config: Config, index: int) -> None:
        self._node = open_node(config, f"receiver-{index}")
        self._shape = config.shape
        self._value: Any = None

    def receive(self, timeout_s: float) -> Pixels:
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            event = self._node.next(timeout=left_s)
            if event is None:
                raise ConnectionResetError("the dataflow has ended")
            # Other events, such as the end of an input, carry no frame.
            if event["type"] == "INPUT":
                self._value = event["value"]
                return pixels_of(self._value.buffers()[1], self._shape)
        raise TimeoutError

    def release(self) -> None:
        self._value = None

    def close(self) -> None:
        files = zenoh_files()
        self._value = self._node = None
        remove(files)


class Dora(Peer):
    name = "dora-rs"
    title = "dora-rs, dynamic nodes"
    how = (
        "One copy, into shared memory: the receiver gets an Arrow array on it. References go by Zenoh from node to "
        "node; the receiver waits for its node's next event and keeps the newest."
    )
    distribution = "dora-rs"
    module = "dora"

    def missing(self) -> str | None:
        if program() is None:
            return "dora's command is not installed: pip install dora-rs-cli"
        return super().missing()

    @contextmanager
    def prepare(self, config: Config) -> Iterator[int]:
        dora = program()
        assert dora is not None
        port, daemon_port = free_port(), free_port()
        with ExitStack() as stack:
            folder = stack.enter_context(temporary_folder())
            environment = {"HOME": str(folder), "DORA_COORDINATOR_PORT": str(port)}
            (folder / "dataflow.yml").write_text(dataflow(config))
            for arguments in (
                ["coordinator", "--port", str(port), "--store", "memory"],
                ["daemon", "--local-listen-port", str(daemon_port), "--coordinator-port", str(port)],
            ):
                pid = stack.enter_context(server([dora, *arguments], folder / f"{arguments[0]}.log", environment))
                stack.callback(remove_files_of, pid)

            # The command fails until the daemon is ready, so it is repeated.
            def started() -> bool:
                result = subprocess.run(
                    [dora, "start", "dataflow.yml", "--detach", "--coordinator-port", str(port)],
                    check=False,
                    capture_output=True,
                    cwd=folder,
                    env={**os.environ, **environment},
                )
                return not result.returncode

            wait_until(started, "dora's daemon")
            yield daemon_port

    def sender(self, config: Config) -> Sender:
        return NodeSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        return NodeReceiver(config, index)


PEERS = (Dora(),)
