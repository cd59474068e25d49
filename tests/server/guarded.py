"""A guarded application with tokens of each kind, asked without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from packhorse import Packhorse
from packhorse.server.app import guarded_application
from packhorse.server.service import Service

from ..worker.working import new_app

#: Tokens of the setting, by what they are for.
TOKENS = {
    "admin": "ph_admin-0123456789abcdef0123456789",
    "work": "ph_work-0123456789abcdef0123456789",
    "submit": "ph_submit-0123456789abcdef0123456789",
    "read": "ph_read-0123456789abcdef0123456789",
    "admin@mail": "ph_admin-mail-0123456789abcdef0123456789",
    "work@mail+sms": "ph_work-mail-sms-0123456789abcdef0123456789",
}
#: Methods there are, one that is not, and paths: of every kind of operation, and of none.
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"]
PATHS = ["/api/v1/jobs", "/jobs", "/health", "/livez", "/", "/api/v1/session", "/nothing/here"]

SETTING = ",".join(f"{scope}:{token}" for scope, token in TOKENS.items())


def bearer(scope: str = "admin") -> dict[str, str]:
    """The header of a caller with this token."""
    return {"Authorization": f"Bearer {TOKENS[scope]}"}


class Guarded:
    """The application behind its guard, and its service."""

    def __init__(self, app: Packhorse, listening: Iterable[str]) -> None:
        self.service = Service(app)
        self.application = guarded_application(self.service, listening)

    def client(self, address: str = "127.0.0.1", base_url: str = "http://127.0.0.1:8080") -> httpx.AsyncClient:
        """A client at `address`; it keeps cookies."""
        transport = httpx.ASGITransport(self.application, client=(address, 50_000))
        return httpx.AsyncClient(transport=transport, base_url=base_url)


@asynccontextmanager
async def guarded(
    *, app: Packhorse | None = None, listening: Iterable[str] = ("127.0.0.1",), **settings: Any
) -> AsyncIterator[Guarded]:
    """An application on an empty store, behind its guard. Without `tokens` everybody on this machine comes in."""
    made = Guarded(app or new_app(**settings), listening)
    try:
        yield made
    finally:
        await made.service.close()


def headers_of(response: httpx.Response) -> set[str]:
    """The names of the headers of a response."""
    return {name.lower() for name in response.headers}


async def status_of(application: Any, headers: list[tuple[bytes, bytes]], **scope: Any) -> int:
    """Ask with exactly these headers; answers the status."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    whole = {"type": "http", "method": "GET", "path": "/livez", "query_string": b"", "headers": headers}
    await application({**whole, "client": ("127.0.0.1", 1), **scope}, receive, send)
    return int(sent[0]["status"])
