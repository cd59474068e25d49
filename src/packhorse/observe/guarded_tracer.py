"""The one door from packhorse to the makers of spans: what fails behind it costs spans, and nothing else.

Behind it are a program's own processors, samplers and exporters, which OpenTelemetry calls whenever a span starts or
ends. They may raise anything; that is said in the log when it begins, once a minute, and when it is over.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.context import Context, set_value
from opentelemetry.trace import INVALID_SPAN, Link, NonRecordingSpan, Span, SpanContext, SpanKind

from ..clock import SYSTEM_CLOCK
from ..errors import shown
from .outage import Outage

log = logging.getLogger("packhorse.tracing")

#: In the context of a root that packhorse has decided to keep.
KEPT = "packhorse-kept"
#: The context of nobody, and that of a span which begins a trace that is kept.
_EMPTY = Context()
ROOT = set_value(KEPT, True, _EMPTY)
#: Links of one span: the SDK drops what is beyond 128.
LINKS_MAX = 128

_NOTHING: Mapping[str, Any] = {}
#: What nobody means to stop this process with. No task is cancelled within a call of OpenTelemetry: it does not wait.
_FAILURES = (Exception, CancelledError)


class Sort:
    """What the spans of one sort have in common, as all `process mail` of one type of job."""

    __slots__ = ("attributes", "encoded", "kind", "name")

    def __init__(self, name: str, kind: SpanKind, attributes: Mapping[str, Any]) -> None:
        self.name = name
        self.kind = kind
        self.attributes = attributes
        #: As `otlp` writes it, once it has.
        self.encoded: bytes | None = None


class Tracer(Protocol):
    """What makes spans."""

    def start(
        self,
        sort: Sort,
        above: Context | SpanContext | None,
        own: Mapping[str, Any],
        links: Sequence[SpanContext],
        start_ns: int | None,
    ) -> Span:
        """Start a span: see GuardedTracer.start."""


class SdkTracer:
    """Makes spans by any tracer of OpenTelemetry."""

    def __init__(self, inner: trace.Tracer) -> None:
        self._inner = inner

    def start(
        self,
        sort: Sort,
        above: Context | SpanContext | None,
        own: Mapping[str, Any],
        links: Sequence[SpanContext],
        start_ns: int | None,
    ) -> Span:
        """Start a span: see GuardedTracer.start."""
        if above is None:
            above = ROOT
        elif isinstance(above, SpanContext):
            above = trace.set_span_in_context(NonRecordingSpan(above), _EMPTY)
        return self._inner.start_span(
            sort.name,
            context=above,
            kind=sort.kind,
            attributes={**sort.attributes, **own},
            links=[Link(other) for other in links],
            start_time=start_ns,
        )


class GuardedTracer:
    """Starts and ends spans; never raises what `inner`, or anybody it calls, does. From any thread."""

    def __init__(self, inner: Tracer) -> None:
        self._inner = inner
        self._outage = Outage(log, SYSTEM_CLOCK, "make spans", of="OpenTelemetry")

    def start(
        self,
        sort: Sort,
        above: Context | SpanContext | None,
        own: Mapping[str, Any] = _NOTHING,
        links: Sequence[SpanContext] = (),
        start_ns: int | None = None,
    ) -> Span:
        """Start a span with the attributes of its sort and its `own`; answers INVALID_SPAN where that fails.

        It is below the span of `above`; with None it begins a trace that is kept. `links` are of other spans, at most
        LINKS_MAX. It started now, or at `start_ns` (wall clock).
        """
        try:
            return self._inner.start(sort, above, own, links, start_ns)
        except _FAILURES as error:
            self._failed(error)
            return INVALID_SPAN

    def end(self, span: Span, tell: Callable[[Span], object] | None = None) -> None:
        """End a span; `tell` says before what else is known of it."""
        try:
            try:
                if tell is not None:
                    tell(span)
            finally:
                span.end()
        except _FAILURES as error:
            self._failed(error)
        else:
            if span is not INVALID_SPAN:
                self._outage.over()

    def _failed(self, error: BaseException) -> None:
        log.debug("a span was lost", exc_info=error)
        what = f"{type(error).__name__}({shown(error, 80)})"
        self._outage.failed(f"what the program has set up there raised {what}. These spans are lost, no jobs")
