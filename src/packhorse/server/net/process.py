"""The process of `packhorse serve`: one server, perhaps a worker beside it, from the first signal to the exit code.

SIGTERM or Ctrl+C once: no new connections, requests and jobs may end in their time. Twice: end now. Nothing is lost:
what was acknowledged is in the store, and what a worker had not ended is given back.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ...backends.opening import redact
from ...errors import ConfigurationError, PackhorseError
from ...event_loop import new_event_loop
from .limits import Limits
from .running import Server

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from ..beside.worker import Beside
    from ..service import Service

log = logging.getLogger("packhorse.server")

#: Objects made, and not let go, after which the youngest are looked through for cycles.
_GARBAGE_LOOKED_FOR = 10_000

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
USAGE = 2


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a server process is to behave. Times in ms."""

    limits: Limits = Limits()
    #: How long requests have to end when the server stops.
    grace_ms: int = 10_000


def serve(
    service: Service,
    application: ASGIApp,
    listeners: Sequence[socket.socket],
    options: ServeOptions,
    *,
    announce: Callable[[str], None],
    beside: Callable[[], Beside] | None = None,
) -> int:
    """Serve until told to stop; answers the exit code: 0, or 2 where the store or the app cannot work as configured.

    `announce` is called with each URL once connections are taken. `beside` makes the worker beside the server.
    """
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_Process(service, application, options, announce, beside).run(listeners))


def _named(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _collect_seldom() -> None:
    """Leave what lives as long as the process out of garbage collections, and begin them seldom.

    Requests make next to no cycles, but so many objects that the collector would look at them all the time: a tenth
    of what a request costs (bench/http_enqueue.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_LOOKED_FOR, 20, 20)


class _Process:
    """What `serve` keeps while it runs."""

    def __init__(
        self,
        service: Service,
        application: ASGIApp,
        options: ServeOptions,
        announce: Callable[[str], None],
        beside: Callable[[], Beside] | None,
    ) -> None:
        self._service = service
        self._options = options
        self._announce = announce
        self._server = Server(application, options.limits, stopping=service.stopping)
        self._make_beside = beside
        self._beside: Beside | None = None
        self._told = asyncio.Event()  # to stop
        self._code = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, listeners: Sequence[socket.socket]) -> int:
        """Serve, and clean up after."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        await self._server.start(listeners)
        self._service.start()
        _collect_seldom()
        self._go(self._open_store())
        if self._make_beside is not None:
            self._beside = self._make_beside()
            self._go(self._run_beside(self._beside))
        for url in self._server.urls:
            self._announce(url)
        where = ", ".join(_named(listener) for listener in listeners)
        log.info("listening on %s, store %s", where, redact(self._service.settings.url))
        await self._told.wait()
        await self._stop()
        for number in _SIGNALS:
            # All is done: an impatient signal more must not turn a clean end into a killed process.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        return self._code

    async def _stop(self) -> None:
        """Stop server and worker at the same time; then let the store go."""
        stops = [self._server.stop(self._options.grace_ms)]
        if self._beside is not None:
            stops.append(self._beside.stop())
        for end in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(end, BaseException):
                log.error("stopping failed, this is a bug: %s: %s", type(end).__name__, end)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._service.close()
        except PackhorseError as error:
            log.warning("the store could not be closed in order: %s", error)

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_signal(self) -> None:
        if not self._told.is_set():
            log.info("stopping: requests have %g s to end", self._options.grace_ms / 1000)
            self._told.set()
            return
        log.info("stopping now")
        self._server.hurry()
        if self._beside is not None:
            self._beside.hurry()

    async def _open_store(self) -> None:
        """Open the store before a request asks for it. One that is away is no reason to stop; a wrong one is."""
        try:
            await self._service.app.backend()
        except ConfigurationError as error:
            self._end(USAGE, f"the store cannot be used: {error}")
        except PackhorseError as error:
            log.warning("%s does not answer yet: %s", redact(self._service.app.settings.url), error)

    async def _run_beside(self, beside: Beside) -> None:
        try:
            code = await beside.run()
        except ConfigurationError as error:
            self._end(USAGE, f"the worker cannot start: {error}")
        except Exception as error:  # the app's own lifespan, and whatever else is user code, may raise anything
            self._end(1, f"the worker cannot start: {type(error).__name__}: {error}")
        else:
            if not self._told.is_set():
                self._end(code, "the worker cannot go on, so the server ends too")

    def _end(self, code: int, why: str) -> None:
        log.error("%s", why)
        self._code = code
        self._told.set()
