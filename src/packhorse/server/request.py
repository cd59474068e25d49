"""A request and its answer, as operations have them: no more than what is asked of either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Request:
    """What was asked: the ASGI scope, and where the body comes from."""

    __slots__ = ("receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive

    @property
    def method(self) -> str:
        """The method, in capitals."""
        method: str = self.scope["method"]
        return method

    @property
    def path_params(self) -> Mapping[str, Any]:
        """What the braces of the route stand for."""
        params: Mapping[str, Any] = self.scope.get("path_params", {})
        return params

    def header(self, name: bytes) -> str | None:
        """Answer a header by its name in lower case, the first of that name; None where it is not there."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value, "latin-1")
        return None


class Answer(Response):
    """A whole answer with a body. Starlette's would look through the headers for what is known here."""

    def __init__(
        self,
        content: bytes,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = "application/json",
    ) -> None:
        self.status_code = status
        self.body = content
        self.background = None
        self.raw_headers = [
            (b"content-type", media_type.encode("latin-1")),
            (b"content-length", b"%d" % len(content)),
            *[(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()],
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})
