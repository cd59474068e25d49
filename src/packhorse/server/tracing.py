"""Requests as spans, and the trace that a request belongs to handed on to the jobs it stores.

Where nothing above has decided, the jobs of a request decide whether its trace is kept, as they do elsewhere (their ids
say so); of requests without jobs the share of `tracing_sample` is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..clock import wall_ns
from ..observe.trace_context import TRACEPARENT, TRACESTATE, passed_on, read_traceparent
from .counting import GONE, METHODS, ROUTE_KEY

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ..app import Packhorse
    from ..job import JobSpec
    from ..observe.spans import Tracing
    from .request import Request

#: Asked all the time, by whom nobody traces.
_UNTRACED = frozenset({"/health", "/livez", "/readyz", "/metrics"})
_CONTEXT_HEADERS = {TRACEPARENT.encode(): TRACEPARENT, TRACESTATE.encode(): TRACESTATE}


def headers_of(scope: Scope) -> dict[str, str]:
    """Answer the trace context that a request says it belongs to, unread; none where it says two."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in _CONTEXT_HEADERS:
            known = _CONTEXT_HEADERS[name]
            if known in found and known == TRACEPARENT:
                return {}
            found[known] = value.decode("latin-1")
    return found


def within_request(app: Packhorse, request: Request, specs: Sequence[JobSpec]) -> Sequence[JobSpec]:
    """Answer jobs that are stored as they came, in the trace of the request, unless they are in one already."""
    tracing = app.tracing()
    return passed_on(specs, headers_of(request.scope)) if tracing is None else tracing.under_current(specs)


def _nothing() -> None:
    return


class TracedRequests:
    """Wraps an application: each request that is let in is a SERVER span, while tracing is on."""

    def __init__(self, inner: ASGIApp, app: Packhorse) -> None:
        self._inner = inner
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tracing = self._app.tracing() if scope["type"] == "http" and scope["path"] not in _UNTRACED else None
        if tracing is None:
            await self._inner(scope, receive, send)
            return
        request = _TracedRequest(tracing, scope)
        request.enter()

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)

        error: BaseException | None = None
        try:
            await self._inner(scope, receive, send_seen)
        except BaseException as raised:
            error = raised
            raise
        finally:
            request.end(self._app.chance.happens(tracing.share), error)


class _TracedRequest:
    """One request, which is a span once it is known to be kept."""

    def __init__(self, tracing: Tracing, scope: Scope) -> None:
        self._tracing = tracing
        self._scope = scope
        self._began_ns = wall_ns()
        self._span: Span | None = None
        self._decided = False
        self._leave: Callable[[], object] = _nothing
        self.status = 0

    def enter(self) -> None:
        """Go on in the trace that the headers name; else wait for what is within to decide."""
        from opentelemetry.context import attach, detach

        from ..observe.spans import WAITING, parent

        headers = headers_of(self._scope)
        given = read_traceparent(headers.get(TRACEPARENT))
        if given is None:
            waiting = WAITING.set(self)
            self._leave = lambda: WAITING.reset(waiting)
            return
        self._decided = True
        above = parent(given, headers.get(TRACESTATE))
        attached = attach(self._start(above) if given.sampled else above)
        self._leave = lambda: detach(attached)

    def begin(self) -> Context | None:
        """Make it a span now: a job within is kept."""
        self._decided = True
        return self._start(None)

    def _start(self, above: Context | None) -> Context:
        from opentelemetry.trace import SpanKind, set_span_in_context

        from ..observe.guarded_tracer import Sort

        if self._span is None:
            method = self._method
            sort = Sort(method, SpanKind.SERVER, {"http.request.method": method})
            own = {"url.scheme": self._scope.get("scheme", "http")}
            self._span = self._tracing.tracer.start(sort, above, own, start_ns=self._began_ns)
        return set_span_in_context(self._span)

    @property
    def _method(self) -> str:
        method: str = self._scope["method"]
        return method if method in METHODS else "_OTHER"

    def end(self, is_kept: bool, error: BaseException | None) -> None:
        """End it; `is_kept` decides where nothing else has."""
        self._leave()
        if self._span is None and not self._decided and is_kept:
            self.begin()
        if self._span is not None:
            self._tracing.tracer.end(self._span, lambda span: self._tell(span, error))

    def _tell(self, span: Span, error: BaseException | None) -> None:
        """Say what came of it."""
        from ..observe.spans import tell_failure

        route = self._scope.get(ROUTE_KEY)
        if route is not None:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        status = self.status or (500 if isinstance(error, Exception) else GONE)
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            tell_failure(span, str(status) if error is None else type(error).__name__)
