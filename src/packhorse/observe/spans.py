"""Spans of who enqueues, in the words of OpenTelemetry's messaging conventions; `run_spans` has those of a worker.

What is not kept costs no call of OpenTelemetry: whether a job begins a trace of its own is told by its id, whose last
48 bits are random. So the one who enqueues and the worker decide alike, without a word between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import trace
from opentelemetry.context import Context, attach, get_current
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from .current import CURRENT_JOB, CURRENT_TRACE
from .guarded_tracer import GuardedTracer, SdkTracer, Sort
from .own_provider import OwnProvider
from .trace_context import OUTGOING, TRACESTATE, TraceContext, carrying, context_of, read_traceparent, read_tracestate

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from ..job import JobSpec
    from .exporting import Sender

SYSTEM = "packhorse"

_KINDS = {
    "send": SpanKind.PRODUCER,
    "create": SpanKind.PRODUCER,
    "receive": SpanKind.CLIENT,
    "process": SpanKind.CONSUMER,
    "settle": SpanKind.CLIENT,
}


class Waiting(Protocol):
    """Work that becomes a span once something within it is kept, as a request of a server."""

    def begin(self) -> Context | None:
        """Make it one now, and answer the context for what is within; None where it is not kept after all."""


#: The work that goes on in this context and is no span yet.
WAITING: ContextVar[Waiting | None] = ContextVar("packhorse_waiting", default=None)


class Tracing:
    """Makes the spans of one app in one process. `share` is that of the traces which begin here and are kept."""

    def __init__(self, provider: TracerProvider, share: float = 1.0, sender: Sender | None = None) -> None:
        from .. import __version__

        if isinstance(provider, OwnProvider):
            self.tracer = GuardedTracer(provider.tracer(SYSTEM, __version__))
        else:
            self.tracer = GuardedTracer(SdkTracer(provider.get_tracer(SYSTEM, __version__)))
        self.share = share
        #: Of a job without a context: it begins a trace that is kept if the end of its id sorts below this.
        self.below = "g" if share >= 1 else f"{int(share * (1 << 48)):012x}"
        self._sender = sender

    def keeps(self, job_id: str) -> bool:
        """Tell whether a job that nothing above has decided about begins a trace that is kept."""
        return job_id[-12:] < self.below

    async def aflush(self, limit_s: float) -> None:
        """Send the spans made so far, if packhorse sends them; waits for up to `limit_s`."""
        if self._sender is not None:
            await self._sender.aflush(limit_s)

    def flush(self, limit_s: float) -> None:
        """Send the spans made so far, if packhorse sends them; blocks for up to `limit_s`."""
        if self._sender is not None:
            self._sender.flush(limit_s)

    def end_all(self, spans: Iterable[Span], error: type[BaseException] | None) -> None:
        """End spans of what failed with an error, or did not."""
        tell = None if error is None else lambda span: tell_failure(span, error.__name__)
        for span in spans:
            self.tracer.end(span, tell)

    # ---- enqueueing ------------------------------------------------------------------------------------

    @contextmanager
    def sending(self, specs: Sequence[JobSpec]) -> Iterator[Sequence[JobSpec]]:
        """Make a `send` span for each queue while jobs are stored; yields them with its context.

        Those that have a valid context already keep it. Below what is not kept they carry its context, so that nobody
        decides anew; those that would begin a trace which is not kept carry none.
        """
        places = [place for place, spec in enumerate(specs) if context_of(spec.meta) is None]
        above = self._above() if places else None
        if isinstance(above, TraceContext):
            yield _all_carrying(specs, places, str(above))
            return
        if above is None:
            places = [place for place in places if self.keeps(specs[place].id)]
            if places and (waiting := WAITING.get()) is not None:
                above = waiting.begin()
        if not places:
            yield specs
            return
        spans = {
            queue: self._start_send(queue, [spec for spec in specs if spec.queue == queue], above)
            for queue in dict.fromkeys(specs[place].queue for place in places)
        }
        sent = list(specs)
        for place in places:
            sent[place] = _within(sent[place], spans[sent[place].queue])
        outgoing = OUTGOING.set(_written(next(iter(spans.values()))))
        failure: type[BaseException] | None = None
        try:
            yield sent
        except BaseException as error:
            failure = type(error)
            raise
        finally:
            OUTGOING.reset(outgoing)
            self.end_all(spans.values(), failure)

    def _start_send(self, queue: str, specs: Sequence[JobSpec], above: Context | None) -> Span:
        types = {spec.type for spec in specs}
        if len(specs) > 1:
            own: dict[str, Any] = {"messaging.batch.message_count": len(specs)}
        else:
            own = {"messaging.message.id": specs[0].id}
        return self.tracer.start(sort_of("send", queue, types.pop() if len(types) == 1 else None), above, own)

    def created(self, spec: JobSpec) -> JobSpec:
        """Answer a follow-up of the run in this context, which is stored when that ends, as part of its trace."""
        above = self._above() if context_of(spec.meta) is None else None
        if above is None:
            return spec
        if isinstance(above, TraceContext):
            return carrying(spec, str(above))
        span = self.tracer.start(sort_of("create", spec.queue, spec.type), above, {"messaging.message.id": spec.id})
        self.tracer.end(span)
        return _within(spec, span)

    def under_current(self, specs: Sequence[JobSpec]) -> Sequence[JobSpec]:
        """Answer jobs that are stored as they come, in the context of the span that is current, if there is one."""
        above = trace.get_current_span()
        if not above.get_span_context().is_valid:
            return specs
        return [spec if context_of(spec.meta) is not None else _within(spec, above) for spec in specs]

    def _above(self) -> Context | TraceContext | None:
        """Answer what decides about new spans: a context that is kept, one that is not, or None: nothing."""
        current = trace.get_current_span().get_span_context()
        if current.is_valid:
            return get_current() if current.trace_flags.sampled else read_context(current)
        job = CURRENT_JOB.get()
        given = context_of(job.meta) if job is not None else None
        if given is None or job is None:
            return None
        return parent(given, (job.meta or {}).get(TRACESTATE)) if given.sampled else given


def parent(given: TraceContext, tracestate: str | None = None) -> Context:
    """Answer the context of a span below one that was made elsewhere."""
    return trace.set_span_in_context(NonRecordingSpan(remote(given, tracestate)), Context())


def remote(given: TraceContext, tracestate: str | None = None) -> SpanContext:
    """Answer a span that was made elsewhere as OpenTelemetry has it."""
    state = read_tracestate(tracestate)
    return SpanContext(
        int(given.trace_id, 16),
        int(given.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if given.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([state]) if state is not None else None,
    )


def read_context(found: SpanContext) -> TraceContext:
    """Answer a context of OpenTelemetry as ours."""
    return TraceContext(f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags.sampled)


def _written(span: Span) -> str | None:
    """Answer the traceparent of a span; None where it was not made."""
    found = span.get_span_context()
    return str(read_context(found)) if found.is_valid else None


def go_on(traceparent: str) -> None:
    """Go on here, for the rest of this context, below a span of another process that is kept."""
    given = read_traceparent(traceparent)
    if given is not None:
        attach(parent(given))
        CURRENT_TRACE.set(given.trace_id)


def traceparent_here() -> str | None:
    """Answer the traceparent of the span that is current; None where there is none."""
    return _written(trace.get_current_span())


def tell_failure(span: Span, error_type: str) -> None:
    """Say that what a span stands for failed. No text of the error: it may hold what was to be stored."""
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))


@lru_cache(maxsize=512)
def sort_of(operation: str, queue: str, job_type: str | None = None) -> Sort:
    """Answer the sort of messaging spans that do this with jobs of a queue, all of one type where it is given."""
    attributes = {
        "messaging.system": SYSTEM,
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
    }
    if job_type is not None:
        attributes["packhorse.job.type"] = job_type
    return Sort(f"{operation} {queue}", _KINDS[operation], attributes)


def _within(spec: JobSpec, span: Span) -> JobSpec:
    traceparent = _written(span)
    if traceparent is None:
        return spec
    return carrying(spec, traceparent, span.get_span_context().trace_state.to_header())


def _all_carrying(specs: Sequence[JobSpec], places: Sequence[int], traceparent: str) -> Sequence[JobSpec]:
    given = list(specs)
    for place in places:
        given[place] = carrying(given[place], traceparent)
    return given
