"""The application: the table of all operations, behind the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from .counting import CountedRequests
from .door.guard import Guard
from .operation import Operation, Routes, problem_response, routes_of
from .problems import Problem
from .routes import (
    contract,
    dead_letter,
    document,
    events,
    health,
    jobs,
    limits,
    logs,
    metrics,
    plain,
    queues,
    schedules,
    session,
    stats,
    steering,
    types,
    work,
    workflows,
)
from .service import Service
from .tracing import TracedRequests

#: Every table of operations, in the order of the OpenAPI document.
TABLES: list[Routes] = [
    jobs.routes,
    logs.routes,
    steering.routes,
    queues.routes,
    limits.routes,
    dead_letter.routes,
    schedules.routes,
    workflows.routes,
    stats.routes,
    types.routes,
    document.routes,
    work.routes,
    plain.routes,
    health.routes,
    metrics.routes,
    session.routes,
    events.routes,
    contract.routes,
]


def make_application(service: Service, guard: Callable[[ASGIApp], ASGIApp]) -> ASGIApp:
    """Make the ASGI application of a service. `guard` wraps it and leaves a caller in each request's scope."""
    routes = routes_of(TABLES, service)
    router = Router(routes, redirect_slashes=False, default=_not_found, lifespan=_lifespan(service))
    traced = TracedRequests(_Plainly(routes, router), service.app)
    return CountedRequests(guard(traced), service.sheet, service.app.clock)


def guarded_application(service: Service, listening: Iterable[str] = ("127.0.0.1",)) -> ASGIApp:
    """Make the application of a server that listens at these addresses, as it is served: behind the guard.

    Raises ConfigurationError where it would let in others than it is meant to.
    """
    open_to_all = [(operation.method, operation.path) for operation in operations() if operation.may is None]
    return make_application(service, Guard.of(service.settings, service.door, listening, open_to_all))


def operations() -> list[Operation]:
    """Answer all operations there are."""
    return [operation for table in TABLES for operation in table.operations]


def _lifespan(service: Service) -> Any:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()

    return lifespan


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        problem = Problem(404, "not-found", "There is nothing here", "GET /openapi.json lists what there is")
        await problem_response(problem)(scope, receive, send)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close"})


class _Plainly:
    """Finds paths without variable parts by a look, on the way of most requests; asks the router for the others."""

    def __init__(self, routes: Iterable[Route], router: ASGIApp) -> None:
        self._fixed = {route.path: route.app for route in routes if "{" not in route.path}
        self._router = router

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        endpoint = self._fixed.get(scope["path"]) if scope["type"] == "http" else None
        return (endpoint or self._router)(scope, receive, send)
