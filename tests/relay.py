"""A network between a browser and the page, which a test can slow down, stall and cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

from tests.support import free_ports

CHUNK_BYTES = 1 << 16
SLOW_CHUNK_BYTES = 1 << 10
RECEIVE_BUFFER_BYTES = 1 << 13
"""What a slow line holds: large buffers would hide from the server that it is slow."""


class Relay:
    """Passes TCP connections on to a port of this machine, from a thread of its own, as a context."""

    def __init__(self, port: int) -> None:
        self.port = free_ports(1)
        self.bytes_per_s: float = 0
        """What the line to the browser takes, over all connections; 0 for as much as comes."""
        self._free_s = 0.0
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._accepts = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run)
        self._listens = threading.Event()
        self._stop = asyncio.Event()

    def stall(self) -> None:
        """Forward nothing, and keep the connections, as a connection that is lost silently."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def flow(self) -> None:
        """Forward again, also what arrived meanwhile, and accept connections."""
        self._accepts = True
        self._loop.call_soon_threadsafe(self._flows.set)

    def cut(self) -> None:
        """Reset all connections, and each new one, until :meth:`flow`."""
        self._accepts = False
        self._loop.call_soon_threadsafe(self._reset)

    def _reset(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self._listens.set()
        await self._stop.wait()
        server.close()
        self._reset()
        passing = asyncio.all_tasks() - {asyncio.current_task()}
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)
        # A transport closes its socket in a later turn of the loop.
        await asyncio.sleep(0.05)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._accepts:
            writer.transport.abort()
            return
        self._writers.add(writer)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        connection.setblocking(False)
        try:
            await self._loop.sock_connect(connection, ("127.0.0.1", self._target))
            there = await asyncio.open_connection(sock=connection, limit=RECEIVE_BUFFER_BYTES)
        except (OSError, asyncio.CancelledError):
            connection.close()
            writer.transport.abort()
            return
        self._writers.add(there[1])
        await asyncio.gather(self._pass_on(reader, there[1]), self._pass_on(there[0], writer, slowly=True))
        self._writers -= {writer, there[1]}

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slowly: bool = False
    ) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(SLOW_CHUNK_BYTES if self.bytes_per_s and slowly else CHUNK_BYTES):
                await self._flows.wait()
                if self.bytes_per_s and slowly:
                    now_s = self._loop.time()
                    self._free_s = max(self._free_s, now_s) + len(data) / self.bytes_per_s
                    await asyncio.sleep(self._free_s - now_s)
                writer.write(data)
                await writer.drain()

    def __enter__(self) -> Relay:
        self._thread.start()
        self._listens.wait()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
