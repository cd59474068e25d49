"""What clients may take of the server, each and all together: the numbers, and those that hold inside the application.

What holds on the wire (heads, slow clients, connections) is in `protocol` and `connections`. This layer bounds bodies
while they come in, the time of a request, and says 415 to what is compressed (FAILURES C14, C16).
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import msgspec

from ...clock import SYSTEM_CLOCK
from ..problems import MEDIA_TYPE, Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("packhorse.server")

#: Where a request's `Bounded` lies in its scope.
BOUNDS_KEY = "packhorse.bounds"
#: Where `protocol` leaves something whose `disconnected` says that nobody listens any more.
LISTENER_KEY = "packhorse.listener"


_NEVER_MS = 1 << 62


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Every bound of the server. Times in ms, sizes in bytes."""

    #: Beyond it the oldest connection without a request makes room; where all have one, a new one gets 503.
    connections_max: int = 4_096
    #: A connection on which nothing is asked is closed; before its first request already after `head_ms`.
    idle_ms: int = 75_000
    #: A head must be here so long after the connection was made, or after its first byte on a later request.
    head_ms: int = 10_000
    head_bytes_max: int = 65_536
    headers_max: int = 100
    #: Heads of which only a part is here, of all connections; beyond it the oldest are dropped.
    heads_bytes_max: int = 32 << 20
    #: A body must be here so long after its head, and after 5 s never slower than the rate.
    body_ms: int = 30_000
    body_bytes_per_s_min: int = 1_024
    #: What chunks and trailers may add to a body.
    framing_bytes_max: int = 1 << 20
    #: Requests that may wait on one connection behind the one that is being answered.
    pipelined_max: int = 16
    #: A client that takes nothing of its answer for so long is dropped.
    write_ms: int = 30_000
    #: So long we listen on after a refusal, so that the client can read it before the connection is reset.
    linger_ms: int = 2_000
    #: The largest body that any operation takes; operations set lower ones of their own.
    body_bytes_max: int = 16 << 20
    #: Bodies of all requests that are being answered.
    bodies_bytes_max: int = 64 << 20
    #: A whole request, from its head to its answer; streams and long polls take their own time.
    request_ms: int = 60_000


class ClientGone(ConnectionError):
    """Nobody listens any more: an application that goes on answering is stopped by this."""


class Listener(Protocol):
    """The client's end of a request."""

    disconnected: bool


def bounds_of(scope: Scope) -> Bounded | None:
    """Answer the bounds of a request; None where the application runs without this layer, as in a unit test."""
    bounds: Bounded | None = scope.get(BOUNDS_KEY)
    return bounds


class Limited:
    """An ASGI application within its bounds: whatever it does, the client gets an answer or a closed connection."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        #: Bytes of bodies that requests have taken in and not yet answered.
        self._held_bytes = 0
        self._running: set[Bounded] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Bounded(self, scope, receive, send)
        self._running.add(request)
        if self._timer is None:
            self._look()
        try:
            await request.answer()
        finally:
            self._running.discard(request)

    def _look(self) -> None:
        """End requests whose time is up; one look for all costs next to nothing, a timer for each does not."""
        self._timer = None
        if self._running:
            now_ms = SYSTEM_CLOCK.boot_ms()
            for request in list(self._running):
                request.end_if_due(now_ms)
            look_s = max(10, min(1_000, self.limits.request_ms // 4)) / 1000
            self._timer = asyncio.get_running_loop().call_later(look_s, self._look)

    def hold(self, size: int) -> None:
        """Count bytes of a body; negative ones are let go. Raises Problem (503) where all bodies are too many."""
        self._held_bytes += size
        if size > 0 and self._held_bytes > self.limits.bodies_bytes_max:
            detail = "the bodies that are being worked on are too many bytes together; send it again later"
            headers = {"Retry-After": "1", "Connection": "close"}
            raise Problem(503, "busy", "The server is busy", detail, headers=headers)


class Bounded:
    """One request on its way through `Limited`, and what it may take. It lies in the scope, for operations to change.

    `body_bytes_max` is the largest body, and `due_ms` the boot time at which the request is ended.
    """

    __slots__ = (
        "_declared_bytes",
        "_held_bytes",
        "_listener",
        "_overdue",
        "_receive",
        "_scope",
        "_send",
        "_server",
        "_started",
        "_taken_bytes",
        "_task",
        "body_bytes_max",
        "due_ms",
    )

    def __init__(self, server: Limited, scope: Scope, receive: Receive, send: Send) -> None:
        self._server = server
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = False
        self._taken_bytes = 0
        self._held_bytes = 0  # of those: what counts among the bodies of all
        self._declared_bytes = 0
        self._overdue = False
        self._task = asyncio.current_task()
        self.body_bytes_max = server.limits.body_bytes_max
        self.due_ms = SYSTEM_CLOCK.boot_ms() + server.limits.request_ms
        self._listener: Listener | None = scope.get(LISTENER_KEY)
        scope[BOUNDS_KEY] = self

    def take_time(self, ms: int | None) -> None:
        """Give the request `ms` from now, to about a second; None: as long as it likes, for a stream.

        Call it when the body was read: what waits that long no longer counts it among those that are held.
        """
        self._let_go_body()
        self.due_ms = _NEVER_MS if ms is None else SYSTEM_CLOCK.boot_ms() + ms

    async def answer(self) -> None:
        """Run the application, bounded; turn what it lets through into an answer. Never raises."""
        try:
            self._declared_bytes = _look_at(self._scope["headers"])
            await self._server.app(self._scope, self.receive, self.send)
        except ClientGone:
            return
        except Problem as problem:
            await self._end(problem)
        except asyncio.CancelledError:  # by us, or by the server, which stops now and waits for nobody
            if self._overdue:
                log.warning("%s took too long", self._name())
                await self._end(Problem(503, "too-slow", "The server took too long", "it may be done all the same"))
            else:
                await self._end(Problem(503, "stopping", "The server is stopping", "it may be done all the same"))
        except Exception as error:  # the end of every road: a bug
            await self._fail(error)
        finally:
            self._let_go_body()

    def _let_go_body(self) -> None:
        if self._held_bytes:
            self._server.hold(-self._held_bytes)
            self._held_bytes = 0

    def end_if_due(self, now_ms: int) -> None:
        """Stop the application if the request's time is up."""
        if now_ms >= self.due_ms and self._task is not None:
            self._overdue = True
            self._task.cancel()

    async def receive(self) -> Message:
        """Answer the next part of the body. Raises Problem (413, 503)."""
        if not self._taken_bytes and self._declared_bytes > self.body_bytes_max:
            raise too_large(self.body_bytes_max)  # before the client is told to go on and send it
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._taken_bytes += size
            self._held_bytes += size
            self._server.hold(size)
            if self._taken_bytes > self.body_bytes_max:
                raise too_large(self.body_bytes_max)
        return message

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on. Raises ClientGone: or a long answer to nobody would hold up all others."""
        if self._listener is not None and self._listener.disconnected:
            raise ClientGone
        if message["type"] == "http.response.start":
            self._started = True
            for name, value in message.get("headers", ()):
                if name == b"content-type" and value.startswith(b"text/event-stream"):
                    self.take_time(None)
        await self._send(message)

    async def _fail(self, error: Exception) -> None:
        # Where, and of what kind, but not its message: that may quote a payload (FAILURES C20).
        steps = traceback.extract_tb(error.__traceback__)[-4:]
        where = " > ".join(f"{step.filename.rpartition('/')[2]}:{step.lineno} {step.name}" for step in steps)
        log.error("%s failed, this is a bug: %s at %s", self._name(), type(error).__name__, where)
        await self._end(Problem(500, "internal", "Something went wrong here", "the server's log says what"))

    def _name(self) -> str:
        return f"{self._scope['method']} {self._scope['path'][:200]}"

    async def _end(self, problem: Problem) -> None:
        """Answer a problem, if no answer has begun; else the connection is closed by who called us."""
        if self._started:
            return
        self._started = True
        body, headers = problem.body(), problem_headers(problem)
        await self._send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def problem_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """Answer the headers of a problem that is answered outside the application. The connection ends with it."""
    headers = {
        "content-type": MEDIA_TYPE,
        "content-length": str(len(problem.body())),
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "connection": "close",
    }
    headers |= {name.lower(): value for name, value in problem.headers.items()}
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def too_large(bytes_max: int) -> Problem:
    """Answer the problem of a body that is too large. The connection ends: nobody reads the rest."""
    detail = f"at most {bytes_max:,} bytes are taken"
    return Problem(413, "too-large", "The body is too large", detail, headers={"Connection": "close"})


def _look_at(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Answer how long the body says it is, 0 where it does not say; `protocol` let only plain numbers through.

    Raises Problem (415) for a compressed one: 10 kB may stand for 10 GB (FAILURES C14).
    """
    size = 0
    for name, value in headers:
        if name == b"content-length":
            size = int(value[:20]) if value.isdigit() else 0
        elif name == b"content-encoding" and value.strip().lower() != b"identity":
            raise Problem(
                415,
                "content-encoding",
                "The body must not be compressed",
                "send it as it is, without Content-Encoding",
                headers={"Accept-Encoding": "identity"},
            )
    return size
