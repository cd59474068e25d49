"""A client of event streams for the tests, over a real connection, and a loop that must end clean."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from packhorse import Packhorse
from packhorse.server.access import LOCAL, Caller
from packhorse.server.app import make_application
from packhorse.server.net.running import serving
from packhorse.server.service import Service

from ..worker.working import work
from .kit import admitting

JOB = ("job",)


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on a fresh loop; no task may be left behind."""

    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        work(lambda: test(*args, **fixtures))

    return run


class Message(NamedTuple):
    """A message of a stream as its client sees it; `id` is the last one that came, as the client would send it back."""

    kind: str
    data: Any
    id: str | None


class Served(NamedTuple):
    """A server at work."""

    service: Service
    port: int

    @asynccontextmanager
    async def listen(self, query: str = "", **headers: str) -> AsyncIterator[Ear]:
        """Open a stream and read its hello."""
        ear = Ear(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            await ear.ask(query, headers)
            yield ear
        finally:
            await ear.close()


@asynccontextmanager
async def served(app: Packhorse, caller: Caller = LOCAL) -> AsyncIterator[Served]:
    """Serve an app on a free port, with everybody as `caller`."""
    service = Service(app)
    application = make_application(service, admitting(caller))
    try:
        async with serving(application, stopping=service.stopping) as url:
            service.webhooks.start()
            yield Served(service, int(url.rpartition(":")[2]))
    finally:
        await service.close()


class Ear:
    """One client of one stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.hello: Message | None = None
        self.id: str | None = None
        self.comments = 0
        self._text = b""

    async def ask(self, query: str, headers: dict[str, str]) -> None:
        lines = [f"GET /api/v1/events{query} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        if self.status == 200:
            self.hello = await self.next()
            assert self.hello.kind == "hello"
        else:
            self._text = await self.reader.readexactly(int(self.headers["content-length"]))

    @property
    def problem(self) -> Any:
        """The body of an answer that is no stream."""
        return json.loads(self._text)

    async def next(self, limit_s: float = 60) -> Message:
        """Answer the next message. Raises EOFError where the stream is over."""
        async with asyncio.timeout(limit_s):
            while True:
                block, found, rest = self._text.partition(b"\n\n")
                if not found:
                    self._text += await self._chunk()
                    continue
                self._text = rest
                if (message := self._read(block.decode())) is not None:
                    return message

    async def job(self, limit_s: float = 60) -> Any:
        """Answer the data of the next event of a job; there may be none of another kind before it."""
        message = await self.next(limit_s)
        assert message.kind == "job", message
        return message.data

    async def jobs(self, count: int) -> list[Any]:
        """Answer the data of the next `count` events of jobs."""
        return [await self.job() for _ in range(count)]

    async def over(self, limit_s: float = 60) -> list[Message]:
        """Read until the stream is over; answers what came."""
        found = []
        try:
            while True:
                found.append(await self.next(limit_s))
        except EOFError:
            return found

    async def close(self) -> None:
        """Go away."""
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def _chunk(self) -> bytes:
        try:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            chunk = await self.reader.readexactly(size + 2)
        except (asyncio.IncompleteReadError, OSError):
            raise EOFError from None
        if size == 0:
            raise EOFError
        return chunk[:-2]

    def _read(self, block: str) -> Message | None:
        """Read a block as a browser does."""
        kind, data = "message", None
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            if line.startswith(":"):
                self.comments += 1
            elif name == "id":
                self.id = value
            elif name == "event":
                kind = value
            elif name == "data":
                assert data is None, "data is one line"
                data = json.loads(value)
        return None if data is None else Message(kind, data, self.id)


@asynccontextmanager
async def listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """Listen on a free port of 127.0.0.1, which it yields; at the end all connections are over."""
    tasks: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await handle(reader, writer)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
