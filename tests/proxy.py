"""A TCP proxy that misbehaves on demand: stalls, resets, loses replies, refuses. In a thread of its own.

with FaultProxy(port) as proxy:
    backend = open_backend(proxy.url(url))
    proxy.cut(after_bytes=0)       # the next request goes through, its reply is lost
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit

CHUNK = 65_536
#: A server that has been silent for so long has done what it was asked.
QUIET_S = 0.1
#: What a cut waits for is at most so long.
WHEN_BYTES_MAX = 64
CALL_S = 10.0


class _Connection:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        #: How many bytes of the reply may still pass; None: all.
        self.left: int | None = None

    def reset(self) -> None:
        """Break both sides at once, as a network does, with no orderly end."""
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class FaultProxy:
    """Passes connections to 127.0.0.1:`target_port` on a port of its own, and everything else as it is told."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        #: Bytes that have passed, requests and replies.
        self.sent = 0
        self.received = 0
        self._cut: tuple[int, bytes] | None = None
        self._open: set[_Connection] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    def url(self, url: str) -> str:
        """Answer the URL of a server with this proxy in its place."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}").geturl()

    # ---- what a test tells it --------------------------------------------------------------------------

    def stall(self) -> None:
        """Hold everything back, both ways; connections stay open and new ones are accepted."""
        self._do(self._set_passing(False))

    def resume(self) -> None:
        """Pass what was held back, and all that comes."""
        self._do(self._set_passing(True))

    def cut(self, after_bytes: int = 0, when: bytes = b"") -> None:
        """Let the next request that contains `when` through, but only so many bytes of its reply; then reset.

        0 bytes: the server has done it, the client never hears so. The reset comes when the server has been quiet.
        """
        assert len(when) <= WHEN_BYTES_MAX
        self._cut = (after_bytes, when)

    def reset(self) -> None:
        """Reset all connections now; new ones are accepted."""
        self._do(self._reset())

    def refuse(self) -> None:
        """Reset all connections and refuse new ones, until `accept`."""
        self._do(self._refuse())

    def accept(self) -> None:
        """Take connections again, on the same port."""
        self._do(self._listen())

    def connections(self) -> int:
        """Answer how many are open."""
        return len(self._open)

    # ---- life ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._begin())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._do(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_S)

    async def _begin(self) -> None:
        self._passing = asyncio.Event()
        self._passing.set()
        await self._listen()

    async def _set_passing(self, passing: bool) -> None:
        if passing:
            self._passing.set()
        else:
            self._passing.clear()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _reset(self) -> None:
        for connection in list(self._open):
            connection.reset()

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset()
        self._passing.set()
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=CALL_S)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            to_client.transport.abort()
            self._pumps.discard(task)
            return
        connection = _Connection(to_client, to_server)
        self._open.add(connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_requests(from_client, connection))
                group.create_task(self._pass_replies(from_server, connection))
        finally:
            self._open.discard(connection)
            self._pumps.discard(task)
            to_client.close()
            to_server.close()

    async def _pass_requests(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        before = b""  # the end of what has passed: what a cut waits for may come in two parts
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._passing.wait()
                if self._cut is not None:
                    after_bytes, when = self._cut
                    if when in before[max(0, len(before) + 1 - len(when)) :] + data:
                        connection.left, self._cut = after_bytes, None
                before = (before + data)[-WHEN_BYTES_MAX:]
                self.sent += len(data)
                connection.server.write(data)
                await connection.server.drain()
            connection.server.write_eof()

    async def _pass_replies(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._passing.wait()
                if connection.left is not None:
                    passed, connection.left = data[: connection.left], connection.left - min(connection.left, len(data))
                    connection.client.write(passed)
                    if connection.left == 0:
                        await self._until_quiet(reader)
                        connection.reset()
                        return
                    self.received += len(data)
                else:
                    self.received += len(data)  # first: who reads it may ask at once
                    connection.client.write(data)
                await connection.client.drain()
            connection.client.close()

    async def _until_quiet(self, reader: asyncio.StreamReader) -> None:
        with suppress(TimeoutError):
            while await asyncio.wait_for(reader.read(CHUNK), QUIET_S):
                pass
