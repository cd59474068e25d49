"""One HTTP/1.1 connection on a hostile network: uvicorn's, with a limit on everything a client can make us wait for.

httptools reads strictly; what it leaves open is closed here (one Host, one length, no other coding than chunked, no
trailers, no upgrade). Every refusal is a problem document, and the connection ends with it. FAILURES C15, C25, C32.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..problems import Problem
from .exchange import Exchange
from .limits import LISTENER_KEY, problem_headers

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from .connections import Connections

log = logging.getLogger("packhorse.server")

METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})

#: What a connection is reading.
WAITING, HEAD, BODY, LEAVING = range(4)

_NEVER_MS = 1 << 62
#: SO_LINGER on, for 0 s: closing resets.
_RESET = struct.pack("ii", 1, 0)
#: How long a body may be slower than its rate: a client may have to begin.
_SLOW_START_MS = 5_000

#: What is written next is joined to what came before, up to this many bytes: a copy of more costs more than a syscall.
_JOINED_BYTES_MAX = 65_536

_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class _Refusal(Exception):
    """Raised inside the parser's callbacks: what came is not taken."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Wire(asyncio.Transport):
    """A transport whose `close` lets the client read what was written last, and takes a bounded time.

    What is written in one step of the loop goes out together: the head of an answer and its body are one syscall.
    """

    __slots__ = ("_connection", "_held", "_is_over", "_loop", "_raw", "get_extra_info")

    def __init__(self, raw: asyncio.Transport, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._raw = raw
        self._connection: Connection | None = connection
        self._loop = loop
        self._held = b""
        self._is_over = False  # nothing more goes out
        self.get_extra_info = raw.get_extra_info  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, with what is written next if that comes at once; nothing where the connection is ending."""
        if self._is_over:
            return
        if self._held:
            held, self._held = self._held, b""
            if len(data) <= _JOINED_BYTES_MAX:
                self._raw.write(held + data)
            else:
                self._raw.write(held)
                self._raw.write(data)
        else:
            self._held = bytes(data)
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._raw.write(held)

    def close(self) -> None:
        """End the connection in order."""
        if self._connection is not None:
            self._connection.leave()

    def is_closing(self) -> bool:
        """Answer whether nothing more will be sent."""
        return self._connection is None or self._connection.reading == LEAVING or self._raw.is_closing()

    def abort(self) -> None:
        """Cut the connection off; what the client has not read is thrown away."""
        raw_socket = self._raw.get_extra_info("socket")
        if raw_socket is not None:
            # Without this the system goes on sending for minutes, to somebody who does not read.
            with suppress(OSError):
                raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._is_over = True
        self._held = b""
        self._raw.abort()

    def pause_reading(self) -> None:
        """Let the client wait."""
        if not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if not self._raw.is_closing():
            self._raw.resume_reading()

    def hang_up(self) -> None:
        """Send what is written, then close."""
        self._flush()
        self._is_over = True
        self._raw.close()

    def finish(self) -> bool:
        """Send what is written, then say that it was all; False where the transport cannot."""
        if self._raw.is_closing() or not self._raw.can_write_eof():
            return False
        self._flush()
        self._is_over = True
        self._raw.write_eof()
        return True

    def let_go(self) -> None:
        """Forget the connection, so that both are freed at once."""
        self._connection = None


class Connection(HttpToolsProtocol):
    """One connection, and how long what it does now may take."""

    transport: Wire  # ours, made in connection_made

    def __init__(
        self, config: Config, state: ServerState, connections: Connections, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config, state, {}, loop)
        self.parser = httptools.HttpRequestParser(self)  # without the leniency of uvicorn's
        self.logger = log
        self.access_log = False
        self._all = connections
        self._limits = connections.limits
        self._head_bytes_max = self._limits.head_bytes_max
        self._headers_max = self._limits.headers_max
        self.reading = WAITING
        self._deadline_ms = _NEVER_MS
        self._write_deadline_ms = _NEVER_MS
        self._first = True  # no request has begun
        self._deaf = False  # what comes in is not looked at any more
        self._answering: RequestResponseCycle | None = None  # begun last; `cycle` was read last, and may wait behind it
        self._requests = 0  # read whole
        self._head_bytes = 0  # of the head being read, as the parser told us
        self.unread_bytes = 0  # of a head that is not whole: the parser holds them
        self._body_bytes = self._body_raw_bytes = 0
        self._body_since_ms = 0

    # ---- the transport's calls -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, or answer 503 where there are too many."""
        raw = cast("asyncio.Transport", transport)  # uvloop's own has the methods but not the base class
        super().connection_made(Wire(raw, self, self.loop))
        if self._all.admit(self):
            self._deadline_ms = self._all.after(self._limits.head_ms)
        else:
            self._answer(Problem(503, "busy", "The server is busy", "all connections are taken; try again later"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that nobody listens any more."""
        self.reading = LEAVING
        self._let_go()
        self._all.gone(self)
        self._tell_gone()
        super().connection_lost(exc)
        self.transport.let_go()

    def data_received(self, data: bytes) -> None:
        """Read what came in; a request that is not HTTP as we take it is refused."""
        if self._deaf or self.reading == LEAVING:
            return
        if self.reading == BODY:
            self._body_raw_bytes += len(data)
        requests = self._requests
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # we speak nothing else: the answer is plain HTTP, then the connection ends
            self.cycle.keep_alive = False
        except httptools.HttpParserCallbackError as error:
            self._refuse_for(error.__context__)
        except httptools.HttpParserError:
            self._refuse(400, "this is not HTTP/1.1")
        else:
            self._check_held(len(data) if requests == self._requests else 0)

    def pause_writing(self) -> None:
        """Stop the application from answering faster than the client reads."""
        super().pause_writing()
        self._write_deadline_ms = self._all.after(self._limits.write_ms)

    def resume_writing(self) -> None:
        """Let the application go on."""
        super().resume_writing()
        self._write_deadline_ms = _NEVER_MS

    # ---- the parser's calls ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin to read a request: from now on its head must be here in time."""
        super().on_message_begin()
        self.reading = HEAD
        self._head_bytes = 0
        if not self._first:
            self._deadline_ms = self._all.after(self._limits.head_ms)
        self._first = False

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._head_bytes += len(url)
        if self._head_bytes > self._head_bytes_max:
            raise self._too_long()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers, which come behind a body, are left out: nothing here has a use for them."""
        if self.reading == BODY:
            return
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._head_bytes_max:
            raise self._too_long()
        if len(self.headers) >= self._headers_max:
            raise _Refusal(431, f"at most {self._headers_max} headers are taken")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application; its body may still be on the way."""
        version = self.parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            raise _Refusal(505, "this server speaks HTTP/1.1")
        if self.parser.get_method() not in METHODS:
            raise _Refusal(501, f"this server knows {', '.join(sorted(name.decode() for name in METHODS))}")
        check_head(version, self.url, self.headers)
        if len(self.pipeline) >= self._limits.pipelined_max:
            raise _Refusal(400, f"at most {self._limits.pipelined_max} requests may wait on one connection")
        self.reading = BODY
        self._body_bytes = self._body_raw_bytes = 0
        self._let_go()
        self._body_since_ms = self._all.after(0)
        self._deadline_ms = self._all.after(self._limits.body_ms)
        self._all.work(self)
        super().on_headers_complete()
        self.cycle.__class__ = Exchange  # uvicorn has just made it, and it has not begun
        self.scope[LISTENER_KEY] = self.cycle  # type: ignore[literal-required]  # uvicorn lists its own keys

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Have read the request whole: what it takes from now on is our own doing."""
        self.reading = WAITING
        self._deadline_ms = _NEVER_MS
        self._requests += 1
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.reading == BODY and self.cycle.response_complete:
            self.leave()  # the answer came before all of the body: nobody will read the rest
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self.reading != BODY:
            if self.reading == WAITING:
                self._deadline_ms = self._all.after(self._limits.idle_ms)
            self._all.wait(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    # ---- limits ----------------------------------------------------------------------------------------

    def _too_long(self) -> _Refusal:
        return _Refusal(431, f"a head has at most {self._head_bytes_max:,} bytes")

    def _check_held(self, size: int) -> None:
        """Refuse what the parser keeps without telling us: an endless header, extension of a chunk, or trailer."""
        if self.reading in {WAITING, HEAD}:
            if size:
                self.unread_bytes += size
                self._all.hold(size)
            if self.unread_bytes > self._head_bytes_max:
                refusal = self._too_long()
                self._refuse(refusal.status, refusal.detail)
        elif self._body_raw_bytes - self._body_bytes > self._limits.framing_bytes_max:
            self._refuse(400, "the chunks of this body are more frame than picture; send larger ones")

    def _let_go(self) -> None:
        if self.unread_bytes:
            self._all.hold(-self.unread_bytes)
            self.unread_bytes = 0

    def look(self, now_ms: int) -> None:
        """End what takes too long."""
        if now_ms >= self._write_deadline_ms:
            self.abort()
        elif self.reading == BODY:
            # While the application has us hold the client back, the client is not slow.
            if not self.flow.read_paused and (now_ms >= self._deadline_ms or self._too_slow(now_ms)):
                self._refuse(408, "the body did not come in time")
        elif now_ms < self._deadline_ms:
            return
        elif self.reading == LEAVING:
            self.abort()
        elif self.reading == HEAD:
            self._refuse(408, "the head did not come in time")
        else:
            self.leave()

    def _too_slow(self, now_ms: int) -> bool:
        counted_ms = now_ms - self._body_since_ms - _SLOW_START_MS
        return counted_ms > 0 and self._body_bytes * 1_000 < self._limits.body_bytes_per_s_min * counted_ms

    # ---- endings ---------------------------------------------------------------------------------------

    def _refuse_for(self, cause: BaseException | None) -> None:
        if isinstance(cause, _Refusal):
            self._refuse(cause.status, cause.detail)
        elif isinstance(cause, httptools.HttpParserError):  # of the URL, which is parsed inside a callback
            self._refuse(400, "the target is not a path")
        else:
            log.error("reading a request failed, this is a bug: %s", type(cause).__name__)
            self._refuse(500, "the server's log says what")

    def _refuse(self, status: int, detail: str) -> None:
        """Refuse what came, and end the connection."""
        self._deaf = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:  # type: ignore[redundant-expr]  # uvicorn says never None
            self._answer(Problem(status, "bad-request", _REASONS[status], detail))
        elif self.reading != BODY:
            cycle.keep_alive = False  # an earlier request is being answered: that first, and then no more
        elif cycle.response_started or self.pipeline:
            self.leave()
        else:
            self._answer(Problem(status, "bad-request", _REASONS[status], detail))

    def _answer(self, problem: Problem) -> None:
        """Answer a problem past the application, and end the connection."""
        lines = [b"HTTP/1.1 %d %s\r\n" % (problem.status, _REASONS[problem.status].encode())]
        for name, value in [*self.server_state.default_headers, *problem_headers(problem)]:
            lines += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join([*lines, b"\r\n", problem.body()]))
        self.leave(lingering=True)

    def leave(self, *, lingering: bool | None = None) -> None:
        """End the connection once all is sent. `lingering`: listen on a little, or a reset may eat the answer.

        Closing while the client still sends resets the connection, and then it may never see what we said.
        """
        if self.reading == LEAVING:
            return
        if lingering is None:
            lingering = self.reading in {HEAD, BODY}
        self.reading = LEAVING
        self._deaf = True
        self._let_go()
        self._tell_gone()
        allowed_ms = self._limits.linger_ms if lingering else self._limits.write_ms
        self._deadline_ms = self._all.after(allowed_ms)
        room = self._all.leave(self)
        if not (room and lingering and self.transport.finish()):
            self.transport.hang_up()
            if not room:
                self.abort()
        else:
            self.flow.resume_reading()

    def _tell_gone(self) -> None:
        """Tell the application that nobody hears the rest of its answer; what waits behind it is not begun."""
        self.pipeline.clear()
        cycle = self._answering
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def drop(self) -> None:
        """Make room for another connection."""
        self.leave(lingering=False)

    def abort(self) -> None:
        """Cut the connection off."""
        self.transport.abort()


def check_head(version: str, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a head that two programs could read differently. Raises _Refusal.

    Some of it httptools refuses as well, in the versions we know.
    """
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    if len(hosts) != 1 and (hosts or version == "1.1"):
        raise _Refusal(400, "a request has one Host")
    if len(lengths) > 1 or (lengths and codings):
        raise _Refusal(400, "a body has one length: Content-Length or Transfer-Encoding, once")
    if codings and (version == "1.0" or [coding.strip().lower() for coding in codings] != [b"chunked"]):
        raise _Refusal(400, "Transfer-Encoding can only be chunked")
    if b"#" in target:
        raise _Refusal(400, "a target has no fragment")
    if not target.startswith(b"/") and target != b"*" and not _names(target, hosts):
        raise _Refusal(400, "this server is no proxy")


def _names(target: bytes, hosts: list[bytes]) -> bool:
    """Answer whether an absolute target names the very Host."""
    rest = target[len(b"http://") :] if target[:7].lower() == b"http://" else b""
    return bool(hosts) and rest.startswith(hosts[0] + b"/")


def connection_factory(config: Config, state: ServerState, connections: Connections) -> Any:
    """Answer what makes a protocol for each new connection of this event loop."""
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return Connection(config, state, connections, loop)

    return make
