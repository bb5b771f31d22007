"""Serve a folder of rendered clips as RTSP cameras in an endless loop: ``rtsp://HOST:PORT/cam0`` and so on.

A stand-alone program for the system's Python, which has GStreamer's bindings. It imports nothing of this project::

    /usr/bin/python3 services/simulator/rtsp.py FOLDER PORT

On Debian: ``apt install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-bad``.

Synchrony: all cameras follow one timeline, which begins with the program. At each instant every camera sends the
picture of the same frame number, so pictures that arrive together belong together, to within a few milliseconds. A
camera begins, for its first client, at the timeline's next key frame (within a second); further clients of the same
camera share its stream. The RTP timestamps of all cameras run on one clock (CLOCK_MONOTONIC), and RTCP sender reports
relate them to each other; a client that ignores these, as FFmpeg does, sees each camera's timestamps begin at zero.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402  the versions are chosen first

READ = "filesrc name=file ! tsdemux ! h264parse ! {caps} ! appsink name=sink sync=false"
SERVE = (
    "( appsrc name=source is-live=true format=time caps={caps} ! h264parse "
    "! rtph264pay name=pay0 pt=96 config-interval=1 )"
)
CAPS = "video/x-h264,stream-format=byte-stream,alignment=au"


class Clip:
    """The access units of one clip, in memory."""

    def __init__(self, path: Path) -> None:
        pipeline = Gst.parse_launch(READ.format(caps=CAPS))
        pipeline.get_by_name("file").set_property("location", str(path))
        sink = pipeline.get_by_name("sink")
        pipeline.set_state(Gst.State.PLAYING)
        self.units: list[Any] = []
        """``Gst.Buffer`` each, in the order of decoding and of display alike."""
        self.frame_ns = 0
        while (sample := sink.emit("pull-sample")) is not None:
            known, numerator, denominator = sample.get_caps().get_structure(0).get_fraction("framerate")
            if known and numerator:
                self.frame_ns = Gst.SECOND * denominator // numerator
            self.units.append(sample.get_buffer())
        pipeline.set_state(Gst.State.NULL)
        if not self.units or not self.frame_ns:
            raise ValueError(f"{path} is not an H.264 clip with a frame rate.")

    def is_key_frame(self, position: int) -> bool:
        """Return whether decoding can start at a position of the endless clip."""
        return not self.units[position % len(self.units)].has_flags(Gst.BufferFlags.DELTA_UNIT)

    def unit_at(self, position: int) -> Any:
        """Return a new ``Gst.Buffer`` without times, on the same memory."""
        unit = self.units[position % len(self.units)].copy()
        unit.dts = Gst.CLOCK_TIME_NONE
        unit.duration = self.frame_ns
        return unit


class CameraFactory(GstRtspServer.RTSPMediaFactory):  # type: ignore[misc]  # gi has no types
    """Makes the one stream that all clients of a camera share."""

    def __init__(self, clip: Clip, t0_ns: int) -> None:
        super().__init__()
        self._clip = clip
        self._t0_ns = t0_ns
        self.set_launch(SERVE.format(caps=CAPS))
        self.set_shared(True)
        self.connect("media-configure", self._configure)

    def _configure(self, _factory: Any, media: Any) -> None:
        ended = threading.Event()
        media.connect("unprepared", lambda _media: ended.set())
        # The stream starts only after this callback has returned, so feed it in a thread.
        threading.Thread(target=self._feed, args=(media.get_element(), ended), daemon=True).start()

    def _feed(self, element: Any, ended: threading.Event) -> None:
        """Push access units when they are due, until the stream ends."""
        # The base time, from which the pictures' times count, is known only when the stream plays.
        source = element.get_by_name("source")
        while source.get_clock() is None or source.current_state != Gst.State.PLAYING:
            if ended.wait(0.005):
                return
        position = (time.monotonic_ns() - self._t0_ns) // self._clip.frame_ns + 1
        while not self._clip.is_key_frame(position):  # a decoder cannot begin in between
            position += 1
        while True:
            due_ns = self._t0_ns + position * self._clip.frame_ns
            if ended.wait(max(0, due_ns - time.monotonic_ns()) / 1e9):
                return
            unit = self._clip.unit_at(position)
            # GStreamer's system clock is CLOCK_MONOTONIC: a running time is a difference of its readings.
            unit.pts = max(0, due_ns - source.get_base_time())
            if source.emit("push-buffer", unit) != Gst.FlowReturn.OK:
                return
            position += 1


def main() -> int:
    """Serve until SIGTERM or SIGINT. Print one line when clients may connect."""
    parser = argparse.ArgumentParser(description="Serve rendered clips as RTSP cameras.")
    parser.add_argument("folder", type=Path, help="folder with cam0.ts and so on")
    parser.add_argument("port", type=int, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    clips = sorted(options.folder.glob("cam*.ts"))
    if not clips:
        sys.stderr.write(f"{options.folder} holds no cam*.ts; the simulator renders them.\n")
        return 1
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address(options.host)
    server.set_service(str(options.port))
    # Use several threads: a client blocks one until its camera's next key frame, which would delay the others.
    server.get_thread_pool().set_max_threads(len(clips))
    t0_ns = time.monotonic_ns()
    for path in clips:
        server.get_mount_points().add_factory(f"/{path.stem}", CameraFactory(Clip(path), t0_ns))
    loop = GLib.MainLoop()
    for number in (signal.SIGTERM, signal.SIGINT):
        GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, loop.quit)
    if server.attach(None) == 0:
        sys.stderr.write(f"Port {options.port} of {options.host} cannot be served: it is in use.\n")
        return 1
    sys.stdout.write(f"ready: rtsp://{options.host}:{server.get_bound_port()}/{clips[0].stem} to {clips[-1].stem}\n")
    sys.stdout.flush()
    loop.run()
    # GStreamer's threads still run and call back into Python. An ordinary exit would take the interpreter down beneath
    # them, and was seen to end with a segmentation fault. Nothing here needs to be cleaned up.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
