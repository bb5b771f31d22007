"""GStreamer, with its elements shmsink and shmsrc."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.peers import Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import SEND_TIMEOUT_S, ReceiverStalled, pixels_of, temporary_folder, wait_until

DEBIAN_PACKAGES: Final = "/usr/lib/python3/dist-packages"
"""Folder of Debian's PyGObject, which is not on the path of a virtual environment."""
FRAMES: Final = 8
"""Frames that the shared memory has room for."""
SLACK_BYTES: Final = 1 << 20
PROBE: Final = (
    "from bench.peers.gstreamer_shm import gstreamer; Gst = gstreamer(); "
    "assert all(map(Gst.ElementFactory.find, ('appsrc', 'shmsink', 'shmsrc', 'appsink'))); "
    "assert Gst.Buffer.map.__module__ == 'gi.overrides.Gst'; print('.'.join(map(str, Gst.version()[:3])))"
)


def gstreamer() -> Any:
    """Return the Gst module, initialized. Only it and what it imports are taken from Debian's packages."""
    sys.path.append(DEBIAN_PACKAGES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyGObject raises warnings about its own modules
            import gi

            gi.require_version("Gst", "1.0")
            gi.require_version("GstApp", "1.0")
            from gi.repository import Gst, GstApp
    finally:
        sys.path.remove(DEBIAN_PACKAGES)
    del GstApp  # importing it has added the methods of appsrc and appsink
    Gst.init(None)
    return Gst


@functools.cache
def found_version() -> str:
    """Return GStreamer's version, or an empty string if a part of it is missing."""
    # Probe in another process: GStreamer starts threads and loads plugins, and cannot be unloaded.
    return subprocess.run([sys.executable, "-c", PROBE], check=False, capture_output=True, text=True).stdout.strip()


def caps(config: Config) -> str:
    """Return the format of the frames as GStreamer's caps."""
    height, width, _ = config.shape
    return f"video/x-raw,format=BGR,width={width},height={height},framerate=0/1"


class Pipeline:
    """A pipeline of GStreamer's elements."""

    def __init__(self, gst: Any, description: str) -> None:
        self._gst = gst
        self.top = gst.parse_launch(description)

    def play(self) -> None:
        self.top.set_state(self._gst.State.PLAYING)

    def fault(self) -> str:
        """Return the text of the first error on the bus, or an empty string."""
        message = self.top.get_bus().pop_filtered(self._gst.MessageType.ERROR)
        return "" if message is None else f": {message.parse_error()[0].message}"

    def close(self) -> None:
        self.top.set_state(self._gst.State.NULL)


class ShmSender(Sender):
    """Fills buffers of shmsink's own allocator, so that shmsink does not copy them."""

    def __init__(self, config: Config) -> None:
        self._gst = gstreamer()
        self._shape, self._bytes = config.shape, config.frame_bytes
        self._pipeline = Pipeline(
            self._gst,
            f"appsrc name=source format=time is-live=true max-buffers=2 leaky-type=downstream caps={caps(config)} "
            f"! shmsink name=sink socket-path={config.handles} shm-size={FRAMES * config.frame_bytes + SLACK_BYTES} "
            "wait-for-connection=false sync=false async=false enable-last-sample=false",
        )
        self._source = self._pipeline.top.get_by_name("source")
        clients: list[int] = []
        # Count the clients, to begin when every receiver is connected.
        self._pipeline.top.get_by_name("sink").connect("client-connected", lambda _, fd: clients.append(fd))
        self._pipeline.play()
        # Ask shmsink for its allocator, as an element upstream of it would.
        query = self._gst.Query.new_allocation(self._source.get_property("caps"), True)
        if not self._source.get_static_pad("src").peer_query(query) or not query.get_n_allocation_params():
            raise OSError(f"shmsink offers no shared memory{self._pipeline.fault()}")
        self._allocator, self._parameters = query.parse_nth_allocation_param(0)
        wait_until(lambda: len(clients) >= config.receivers, "a shmsrc")
        self._buffer: Any = None
        self._map: Any = None

    def loan(self) -> Pixels:
        deadline_s = time.monotonic() + SEND_TIMEOUT_S
        while True:
            self._buffer = self._gst.Buffer.new_allocate(self._allocator, self._bytes, self._parameters)
            # When its memory is full, the allocator returns private memory, which shmsink would have to copy.
            if self._buffer.peek_memory(0).allocator == self._allocator:
                break
            if time.monotonic() > deadline_s:
                raise ReceiverStalled("a shmsrc")
            time.sleep(0.0005)
        self._map = self._buffer.map(self._gst.MapFlags.WRITE)
        return pixels_of(self._map.data, self._shape)

    def publish(self) -> None:
        self._buffer.unmap(self._map)
        buffer, self._buffer, self._map = self._buffer, None, None
        if self._source.push_buffer(buffer) != self._gst.FlowReturn.OK:
            raise OSError(f"GStreamer did not accept a frame{self._pipeline.fault()}")

    def close(self) -> None:
        self._pipeline.close()


class ShmReceiver(Receiver):
    def __init__(self, config: Config) -> None:
        self._gst = gstreamer()
        self._shape = config.shape
        wait_until(Path(config.handles).exists, "shmsink's socket")
        self._pipeline = Pipeline(
            self._gst,
            f"shmsrc socket-path={config.handles} is-live=true ! {caps(config)} "
            "! appsink name=sink max-buffers=1 drop=true sync=false enable-last-sample=false",
        )
        self._pipeline.play()
        self._sink = self._pipeline.top.get_by_name("sink")
        self._buffer: Any = None
        self._map: Any = None

    def receive(self, timeout_s: float) -> Pixels:
        sample = self._sink.try_pull_sample(int(timeout_s * self._gst.SECOND))
        if sample is None:
            raise TimeoutError(f"no frame arrived{self._pipeline.fault()}")
        self._buffer = sample.get_buffer()
        self._map = self._buffer.map(self._gst.MapFlags.READ)
        return pixels_of(self._map.data, self._shape)

    def release(self) -> None:
        self._buffer.unmap(self._map)
        self._buffer = self._map = None

    def close(self) -> None:
        self._pipeline.close()


class GStreamer(Peer):
    name = "gstreamer-shm"
    title = "GStreamer, shmsink and shmsrc"
    how = (
        "No copy: the sender fills buffers of shmsink's allocator, and a Unix socket carries the references. The "
        "receiver waits on an appsink that keeps the newest."
    )

    def missing(self) -> str | None:
        if not found_version():
            return (
                "GStreamer's Python binding or its shm plugin is missing, or for another Python version: apt-get "
                "install python3-gi python3-gst-1.0 gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base "
                "gstreamer1.0-plugins-bad"
            )
        return None

    def version(self) -> str:
        return found_version()

    @contextmanager
    def prepare(self, config: Config) -> Iterator[str]:
        del config
        with temporary_folder() as folder:
            yield str(folder / "frames")

    def sender(self, config: Config) -> Sender:
        return ShmSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return ShmReceiver(config)


PEERS = (GStreamer(),)
