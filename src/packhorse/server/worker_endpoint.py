"""What `packhorse worker APP --metrics ADDRESS:PORT` answers over HTTP: metrics and health of a keeper's runners.

It listens only where that is asked for (FAILURES C26), behind the same door as `packhorse serve`: Host, Origin and
tokens are looked at, and everything a client can take is bounded.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from starlette.responses import Response

from ..clock import SYSTEM_CLOCK
from ..errors import PackhorseError
from ..observe.exposition import Scrapes
from ..observe.store_gauges import StoreGauges
from .access import CALLER_KEY, Caller, Permission, lacks, refuse_scoped
from .door.entry import Door
from .door.guard import Guard
from .headers import WithHeaders
from .net.limits import Limits
from .net.listening import Words, bind, close_all, refuse_open_address, resolve
from .net.running import Server
from .operation import problem_response
from .problems import Problem, as_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from ..backends.base import Backend, WorkerInfo
    from ..observe.meters import Meters
    from ..settings import Settings

log = logging.getLogger("packhorse.keeper")

#: A scraper, a load balancer and a person at a time: not a server for many.
_LIMITS = Limits(connections_max=64, bodies_bytes_max=1 << 20, body_bytes_max=1_024, request_ms=30_000)
_GRACE_MS = 1_000
_OPEN = ("/health", "/livez", "/readyz")
_WORDS = Words("--metrics", "port in --metrics")


class Watched(Protocol):
    """The keeper, as far as it is asked here."""

    @property
    def meters(self) -> Meters:
        """What it and its runners counted."""

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""

    @property
    def runners(self) -> tuple[int, int]:
        """How many runners there are, and how many of them are ready to work."""

    @property
    def in_trouble(self) -> Sequence[WorkerInfo]:
        """The runners with which something is wrong now, such as a handler that blocks the event loop."""

    async def backend(self) -> Backend:
        """Answer its connection to the store. Raises Unavailable."""


class WorkerEndpoint:
    """The address of one worker. It is bound when made, and answers from `start` to `stop`."""

    def __init__(self, settings: Settings) -> None:
        """Take the address of the setting `metrics`. Raises ConfigurationError where it is taken or open to others."""
        assert settings.metrics is not None
        host, _, port = settings.metrics.rpartition(":")
        self._settings = settings
        self._door = Door.of(settings, SYSTEM_CLOCK)
        self._host = host
        addresses = resolve(host, int(port), _WORDS)
        refuse_open_address(host, addresses, has_tokens=bool(self._door.tokens), words=_WORDS)
        self._listeners: list[socket.socket] = bind(host, int(port), addresses, _WORDS)
        heard_at = [host, *(listener.getsockname()[0] for listener in self._listeners)]
        self._guard = Guard.of(settings, self._door, heard_at, [("GET", path) for path in _OPEN])
        self._server: Server | None = None
        self._page: _Page | None = None

    async def start(self, keeper: Watched) -> None:
        """Answer for this keeper, in the running event loop."""
        self._page = _Page(keeper)
        self._server = Server(WithHeaders(self._guard(self._page)), _LIMITS)
        await self._server.start(self._listeners)
        log.info("metrics and health at %s", ", ".join(f"{url}/metrics" for url in self._server.urls))

    async def stop(self) -> None:
        """Answer nothing more. Idempotent."""
        if self._server is not None:
            await self._server.stop(_GRACE_MS)
        if self._page is not None:
            await self._page.scrapes.close()
        self.close()

    def close(self) -> None:
        """Let the address go."""
        close_all(self._listeners)


class _Page:
    """The application: four paths."""

    def __init__(self, keeper: Watched) -> None:
        self._keeper = keeper
        store = StoreGauges(keeper.backend, SYSTEM_CLOCK, keeper.meters)
        self.scrapes = Scrapes(keeper.meters, store)
        self._answers = {
            "/metrics": self._metrics,
            "/health": self._health,
            "/livez": self._liveness,
            "/readyz": self._readiness,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await (await self._answer(scope))(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        answer = self._answers.get(scope["path"])
        if answer is None:
            paths = ", ".join(self._answers)
            return problem_response(Problem(404, "not-found", "There is nothing here", f"a worker answers {paths}"))
        if scope["method"] not in {"GET", "HEAD"}:
            return problem_response(
                Problem(405, "method-not-allowed", "This URL takes other methods", headers={"Allow": "GET, HEAD"})
            )
        try:
            return await answer(scope, scope[CALLER_KEY])
        except PackhorseError as error:
            problem = as_problem(error)
            assert problem is not None
            return problem_response(problem)

    async def _metrics(self, scope: Scope, caller: Caller) -> Response:
        if not caller.may(Permission.LOOK):
            raise lacks(caller, Permission.LOOK)
        refuse_scoped(caller)
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        found = await self.scrapes.answer(accept.decode("latin-1"))
        return Response(found.content, headers={"Content-Type": found.media_type})

    async def _liveness(self, scope: Scope, caller: Caller) -> Response:
        return _health_response("OK")

    async def _readiness(self, scope: Scope, caller: Caller) -> Response:
        status = "STOPPING" if self._keeper.is_stopping else "UNAVAILABLE" if await self._problems() else "OK"
        return _health_response(status)

    async def _health(self, scope: Scope, caller: Caller) -> Response:
        from .. import __version__

        problems = await self._problems()
        status = "UNAVAILABLE" if problems else "OK"
        if not caller.may(Permission.LOOK):
            return _health_response(status)
        every, ready = self._keeper.runners
        trouble = [{"id": one.id, "pid": one.pid, "trouble": one.trouble} for one in self._keeper.in_trouble]
        return _health_response(
            status, version=__version__, runners=every, ready=ready, problems=problems, trouble=trouble
        )

    async def _problems(self) -> list[str]:
        """Answer why this worker cannot run a job. A runner in trouble does not count as long as another can.

        Neither does a blocked event loop: a job runs there, and who ends the worker for it costs the job an attempt.
        The keeper itself kills a runner that is blocked beyond the time-outs of its jobs.
        """
        problems = await self.scrapes.store.problems()
        if not self._keeper.runners[1]:
            problems.append("no runner is ready")
        return problems


def _health_response(status: str, **more: Any) -> Response:
    content = msgspec.json.encode({"status": status, "service": "packhorse", **more})
    if status == "OK":
        return Response(content, media_type="application/json")
    return Response(content, 503, {"Retry-After": "1"}, media_type="application/json")
