"""An application of a store, asked without a network; `tests/server/test_running.py` and others use a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from packhorse import Packhorse
from packhorse.server.access import CALLER_KEY, LOCAL, Caller
from packhorse.server.app import make_application
from packhorse.server.service import Service


def admitting(caller: Caller):
    """Make a guard that takes every request for one of `caller`."""

    def guard(app: ASGIApp) -> ASGIApp:
        async def admit(scope: Scope, receive: Receive, send: Send) -> None:
            scope[CALLER_KEY] = caller
            await app(scope, receive, send)

        return admit

    return guard


@asynccontextmanager
async def client_of(app: Packhorse, caller: Caller = LOCAL) -> AsyncIterator[httpx.AsyncClient]:
    """Ask the application of `app`, as `caller`, in this event loop."""
    service = Service(app)
    application = make_application(service, admitting(caller))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://127.0.0.1") as client:
        try:
            yield client
        finally:
            await service.close()
