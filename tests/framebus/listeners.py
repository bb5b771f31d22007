"""Listeners to notifications with plain ZeroMQ, as other programs use it."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import parse_monitor_message

from framebus import Publisher
from framebus.notify.server import NotificationServer


def listens(server: NotificationServer) -> int:
    """Poll the server, and return how many peers subscribe now."""
    server.poll(0)
    return len(server.listening)


def listens_to(publisher: Publisher) -> int:
    """Return how many peers subscribe to the publisher's notifications now, without publishing anything."""
    return listens(publisher._served.server)


class PlainListener:
    """A SUB socket of libzmq's."""

    def __init__(self, endpoint: str, heartbeat_ms: int = 0) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.HEARTBEAT_IVL, heartbeat_ms)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_ALL)
        self.events: set[int] = set()
        """What has happened to its connection, as zmq_socket_monitor(3) numbers it."""
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)

    def take(self, timeout_ms: int = 0) -> bytes | None:
        """Return the next message, or ``None`` if none arrives in time."""
        return self._socket.recv() if self._socket.poll(timeout_ms) else None

    def has_seen(self, event: int) -> bool:
        """Return whether the event has happened to its connection."""
        while self._monitor.poll(0):
            self.events.add(parse_monitor_message(self._monitor.recv_multipart())["event"])
        return event in self.events

    def close(self) -> None:
        """Close the socket."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()
