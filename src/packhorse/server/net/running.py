"""A server at work: from bound sockets to the last answer.

Stopping: no new connections, `stopping` tells long polls and streams to end at once, requests have a grace time to end,
and `hurry` ends what is left. The store does not have to be there: who needs it answers 503 until it is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
from uvicorn.config import Config
from uvicorn.server import ServerState

from ...wording import quantity
from .connections import Connections
from .limits import Limited, Limits
from .listening import BACKLOG, bind, close_all, raise_file_limit, resolve, url_of
from .protocol import connection_factory

if TYPE_CHECKING:
    from starlette.types import ASGIApp

log = logging.getLogger("packhorse.server")

#: How long requests have to end, unless it is said.
GRACE_MS = 10_000
#: How long those have that were told to end now.
_HURRY_S = 1.0
#: Open files that are no connections: the store, logs, modules being loaded, connections on their way out.
_FILES_KEPT = 512


class Server:
    """Serves an ASGI application on bound sockets, in the running event loop."""

    def __init__(
        self, application: ASGIApp, limits: Limits | None = None, *, stopping: asyncio.Event | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._application = Limited(application, self._limits)
        #: Set when the server begins to stop.
        self.stopping = stopping or asyncio.Event()
        self._hurry = asyncio.Event()
        self._state = ServerState()
        self._servers: list[asyncio.AbstractServer] = []
        self._connections: Connections | None = None
        self.urls: list[str] = []

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections) if self._connections is not None else 0

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        """Accept connections. The sockets are the server's from now on."""
        loop = asyncio.get_running_loop()
        config = Config(
            self._application,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,  # `connections` sets it
        )
        config.load()
        self._connections = Connections(_within_files(self._limits), self._state, loop)
        make = connection_factory(config, self._state, self._connections)
        for listener in listeners:
            self._servers.append(await loop.create_server(make, sock=listener, backlog=BACKLOG))
            self.urls.append(url_of(listener))

    async def stop(self, grace_ms: int = GRACE_MS) -> None:
        """Accept nothing more, let requests end within `grace_ms`, cut off the rest. Idempotent."""
        self.stopping.set()
        for server in self._servers:
            server.close()
        self._servers.clear()
        connections = self._connections
        if connections is None:
            return
        connections.shut()
        if not await self._over(grace_ms / 1000):
            log.warning("%s cut off at the end of the grace time", quantity(len(self._state.tasks), "request"))
            for task in list(self._state.tasks):
                task.cancel()
            self._hurry.clear()
            await self._over(_HURRY_S)
        connections.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(_HURRY_S):
                await connections.ended()
        connections.close()

    def hurry(self) -> None:
        """End now: what is being answered is cut off."""
        self._hurry.set()

    async def _over(self, seconds: float) -> bool:
        """Wait until nothing is open or being answered; False where that takes too long or `hurry` is called."""
        over = asyncio.ensure_future(self._ended())
        hurried = asyncio.ensure_future(self._hurry.wait())
        done, _ = await asyncio.wait({over, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (over, hurried):
            waiting.cancel()
        await asyncio.gather(over, hurried, return_exceptions=True)
        return over in done

    async def _ended(self) -> None:
        assert self._connections is not None
        await self._connections.ended()
        while tasks := set(self._state.tasks):  # a request whose client is gone goes on to its end
            await asyncio.wait(tasks)


def _within_files(limits: Limits) -> Limits:
    """Answer limits with no more connections than this process may have open files for."""
    files = raise_file_limit()
    if not files or files - _FILES_KEPT >= limits.connections_max:
        return limits
    allowed = max(16, files - _FILES_KEPT, files // 2)
    log.warning("the bound of connections is %d, as that of open files is %d (ulimit -n)", allowed, files)
    return msgspec.structs.replace(limits, connections_max=min(allowed, limits.connections_max))


@asynccontextmanager
async def serving(
    application: ASGIApp,
    limits: Limits | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    stopping: asyncio.Event | None = None,
    grace_ms: int = GRACE_MS,
) -> AsyncIterator[str]:
    """Serve in the running loop while the block runs; yields the URL. For tests and small programs, on the loopback.

    Whoever may connect may do what the application lets him: tokens are the application's business. Raises
    ConfigurationError where the address is not to be had.
    """
    listeners = bind(host, port, resolve(host, port))
    server = Server(application, limits, stopping=stopping)
    try:
        await server.start(listeners)
    except BaseException:
        close_all(listeners)
        raise
    try:
        yield server.urls[0]
    finally:
        await server.stop(grace_ms)
