"""RTSP cameras for the system's Python: by UDP only, with a log-in, or late. Needs the simulator's rtsp.py.

    /usr/bin/python3 tests/programs/rtsp_cameras.py CLIP '{"udp_only": true, "user": "u", "password": "p"}'

Prints the port. Camera i is /camI; of all of them, the same frames are captured at the same instants.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "services" / "simulator"))
import rtsp  # type: ignore[import-not-found]
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer


class Late(rtsp.CameraFactory):  # type: ignore[misc]  # gi has no types
    """Sends each frame so much later than it was captured; its RTP timestamps tell the capture."""

    def __init__(self, clip: Any, t0_ns: int, late_ms: int) -> None:
        super().__init__(clip, t0_ns)
        self._late_ns = late_ms * 1_000_000

    def _feed(self, element: Any, ended: threading.Event) -> None:
        source = element.get_by_name("source")
        while source.get_clock() is None or source.current_state != Gst.State.PLAYING:
            if ended.wait(0.005):
                return
        position = (time.monotonic_ns() - self._t0_ns) // self._clip.frame_ns + 1
        while not self._clip.is_key_frame(position):
            position += 1
        while True:
            captured_ns = self._t0_ns + position * self._clip.frame_ns
            if ended.wait(max(0, captured_ns + self._late_ns - time.monotonic_ns()) / 1e9):
                return
            unit = self._clip.unit_at(position)
            unit.pts = max(0, captured_ns - source.get_base_time())
            if source.emit("push-buffer", unit) != Gst.FlowReturn.OK:
                return
            position += 1


def main() -> None:
    """Serve until killed."""
    path, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address(wanted.get("address", "127.0.0.1"))
    server.set_service("0")
    server.get_thread_pool().set_max_threads(8)
    if user := wanted.get("user"):
        log_in = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", user)
        log_in.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        log_in.add_digest(user, wanted["password"], token)
        server.set_auth(log_in)
    t0_ns = time.monotonic_ns()
    for number, late_ms in enumerate(wanted.get("late_ms", [0])):
        factory = Late(rtsp.Clip(path), t0_ns, late_ms)
        if wanted.get("udp_only"):
            factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP)
        if user:
            permissions = GstRtspServer.RTSPPermissions()
            permissions.add_permission_for_role(user, "media.factory.access", True)
            permissions.add_permission_for_role(user, "media.factory.construct", True)
            factory.set_permissions(permissions)
        server.get_mount_points().add_factory(f"/cam{number}", factory)
    server.attach(None)
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
