"""Requests, counted and timed by the pattern of their route: never by a path, which is whatever a client makes up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..observe import metrics
from .headers import completed
from .net.limits import ClientGone
from .problems import Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ..clock import Clock
    from ..observe.meters import Histogram, Number, Sheet

log = logging.getLogger("packhorse.requests")

#: Where the operation that a request is for leaves the pattern of its path.
ROUTE_KEY = "packhorse.route"
#: Of requests that were refused before anybody looked which operation they are for, or that are for none.
NO_ROUTE = "none"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: The status of a request whose client went away before there was an answer, as proxies log it.
GONE = 499


class CountedRequests:
    """Wraps an application: counts its answers, and has each say what every response says."""

    def __init__(self, app: ASGIApp, sheet: Sheet, clock: Clock) -> None:
        self._app = app
        self._sheet = sheet
        self._clock = clock
        self._cells: dict[tuple[str, str, int], tuple[Number, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_ns = self._clock.boot_ns()
        began = False

        async def send_counted(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                if not began:
                    began = True
                    self._count(scope, message["status"], began_ns)
                message = completed(message)
            await send(message)

        status = GONE
        try:
            await self._app(scope, receive, send_counted)
        except BaseException as error:  # answered further out, see `net.limits`: this is what it says there
            status = _status_of(error)
            raise
        finally:
            if not began:
                self._count(scope, status, began_ns)

    def _count(self, scope: Scope, status: int, began_ns: int) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        key = (method, scope.get(ROUTE_KEY, NO_ROUTE), status)
        cells = self._cells.get(key)
        if cells is None:
            number = self._sheet.number(metrics.HTTP_REQUESTS, method, key[1], str(status))
            cells = self._cells[key] = (number, self._sheet.histogram(metrics.HTTP_SECONDS, method, key[1]))
        lasted_ns = self._clock.boot_ns() - began_ns
        cells[0].value += 1
        cells[1].observe(lasted_ns)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s %s answers %d", method, key[1], status, extra={"duration_ms": lasted_ns / 1e6})


def _status_of(error: BaseException) -> int:
    if isinstance(error, Problem):
        return error.status
    if isinstance(error, ClientGone):
        return GONE
    return 500 if isinstance(error, Exception) else 503  # cancelled: it took too long, or the server stops
