"""A store behind a real server on a port of 127.0.0.1, in this process, and backends that reach it over HTTP."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Self

from packhorse import Packhorse
from packhorse.backends.http.backend import HTTPBackend
from packhorse.backends.memory import MemoryBackend
from packhorse.backends.opening import forget_memory, open_backend
from packhorse.clock import SYSTEM_CLOCK, Clock, ManualClock
from packhorse.server.app import guarded_application
from packhorse.server.net.running import serving
from packhorse.server.service import Service
from packhorse.testing.conformance import Harness

MEMORY = "memory://behind-a-server"


@asynccontextmanager
async def served(url: str = MEMORY, clock: Clock = SYSTEM_CLOCK, **settings: object) -> AsyncIterator[str]:
    """Serve a store; yields the URL of the server. It does not tick."""
    app = Packhorse(url, clock=clock, **settings)
    service = Service(app)
    try:
        async with serving(guarded_application(service), stopping=service.stopping, grace_ms=2_000) as served_at:
            yield served_at
    finally:
        await service.close()
        forget_memory(url, clock)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[HTTPBackend]:
    """Open a backend and close it."""
    backend = open_backend(url)
    assert isinstance(backend, HTTPBackend)
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()


class HTTPHarness(Harness):
    """A new store and a server for it; the clock moved by hand is the store's."""

    def __init__(self, url: str = MEMORY) -> None:
        clock = ManualClock()
        super().__init__(lambda: open_backend(self.served_at), clock)
        self.any_payload = False
        self.url = url
        self.served_at = ""
        self._server = AsyncExitStack()

    async def __aenter__(self) -> Self:
        assert self.clock is not None
        self.served_at = await self._server.enter_async_context(served(self.url, self.clock))
        return await super().__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await super().__aexit__(*exc_info)
        await self._server.aclose()

    def drop_workers(self) -> None:
        if self.url.startswith("memory:"):
            behind = open_backend(self.url, self.clock or SYSTEM_CLOCK)
            assert isinstance(behind, MemoryBackend)
            behind.store.workers.clear()
            return
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute("DELETE FROM workers")


def sqlite_url(directory: Path) -> str:
    """Answer the URL of a new store."""
    return f"sqlite:///{directory / 'jobs.db'}"


async def until(condition, what: str, limit_s: float = 60.0) -> None:
    """Wait until `condition()` (which may be a coroutine function) is true."""
    try:
        async with asyncio.timeout(limit_s):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {limit_s} s: {what}") from None
