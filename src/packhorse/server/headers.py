"""What every response says, unless it says otherwise itself."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: On every response. Nothing here may be framed, sniffed, kept or run (FAILURES C4, C28).
_HEADERS: list[tuple[bytes, bytes]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


def completed(message: Message) -> Message:
    """Answer the beginning of a response with what every response says."""
    headers = message.get("headers", ())
    given = {name for name, _ in headers}
    return {**message, "headers": [*headers, *[pair for pair in _HEADERS if pair[0] not in given]]}


class WithHeaders:
    """Wraps an application: adds what every response says, unless it says otherwise itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        async def send_completed(message: Message) -> None:
            await send(completed(message) if message["type"] == "http.response.start" else message)

        return self._app(scope, receive, send_completed)
