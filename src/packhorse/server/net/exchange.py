"""One request and its answer on a connection: uvicorn's, but for how the answer is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

#: What no name and no value of a header may have in it: it would begin another header, or another answer.
_NOT_IN_NAMES = re.compile(rb'[\x00-\x20\x7f()<>@,;:\\\[\]={}/?"]')
_NOT_IN_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@lru_cache(512)
def _line(name: bytes, value: bytes) -> bytes:
    """Answer a header as it is sent. Most come again and again."""
    if _NOT_IN_NAMES.search(name) or _NOT_IN_VALUES.search(value):
        raise RuntimeError("a header of an answer has what would begin another one")
    return b"%b: %b\r\n" % (name, value)


class Exchange(RequestResponseCycle):
    """A request, and what of its answer was written.

    An answer whose length is not known is sent in chunks; in HTTP/1.0, which knows none, it ends with the connection.
    """

    _left: int | None = None  # bytes of its body; None where its length is not known

    async def send(self, message: Any) -> None:
        """Write a part of the answer. Raises RuntimeError for one that is no answer: a bug of the application."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self._write_head(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self._write_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"an answer has no {kind} here")

    def _write_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        lines = [STATUS_LINE[status]]
        length: int | None = None
        for name, value in (*self.default_headers, *headers):
            lines.append(_line(name, value))
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
                lines.pop()  # said below
        self.response_started = True
        self.waiting_for_100_continue = False
        bare = self.scope["method"] == "HEAD" or status in {204, 304}
        self.chunked_encoding = length is None and not bare and self.scope["http_version"] != "1.0"
        self._left = 0 if bare else length
        if self.chunked_encoding:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self.transport.write(b"".join(lines))

    def _write_body(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            body = b""
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the body of an answer is not as long as its head says")
        elif self.chunked_encoding:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        if body:
            self.transport.write(body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
