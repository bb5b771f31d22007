"""A network between a browser and the page that a test can stall and cut."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from tests.support import free_ports

CHUNK_BYTES = 1 << 16


class Relay:
    """Passes TCP connections on to a port of this machine, from a thread of its own, as a context."""

    def __init__(self, port: int) -> None:
        self.port = free_ports(1)
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._accepts = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run)
        self._stop = asyncio.Event()

    def stall(self) -> None:
        """Pass nothing on, and keep the connections: a line that is lost without a sign."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def flow(self) -> None:
        """Pass on again, also what came meanwhile, and accept connections."""
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
        async with await asyncio.start_server(self._accept, "127.0.0.1", self.port):
            await self._stop.wait()
            self._reset()
            await asyncio.sleep(0.05)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._accepts:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, there[1]}
        self._writers |= both
        await asyncio.gather(self._pass_on(reader, there[1]), self._pass_on(there[0], writer))
        self._writers -= both

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
