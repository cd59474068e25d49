"""Spans of a worker's runs, and of the claims and settles around them.

A run that is not kept costs the runner a look at its meta or its id; `begin` is called for what may be kept.
"""

from __future__ import annotations

import contextvars
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import attach
from opentelemetry.trace import Span, SpanContext

from ..backends.base import Settlement
from ..clock import wall_ns
from ..job import Claimed
from ..outcome import Kind, Outcome
from .current import CURRENT_TRACE
from .guarded_tracer import LINKS_MAX
from .meters import Exemplar, Histogram
from .runs import UNCOUNTED
from .spans import Tracing, remote, sort_of, tell_failure
from .trace_context import TRACEPARENT, TRACESTATE, read_traceparent, says_unsampled

#: Runs that ended and whose settlement was not seen: of the oldest beyond these nobody learns which trace they were.
ENDED_MAX = 10_000
#: Characters of an error's text and traceback in its span.
MESSAGE_CHARS_MAX = 1_000
TRACEBACK_CHARS_MAX = 8_000

_queue_of = attrgetter("queue")
_FAILURES = frozenset({Kind.ERROR, Kind.PERMANENT, Kind.RETRY})


class RunSpans:
    """The spans of one worker. For one event loop."""

    def __init__(self, tracing: Tracing) -> None:
        self.tracing = tracing
        self._tracer = tracing.tracer
        #: Of a job without meta: it begins a trace that is kept if the end of its id sorts below this.
        self.below = tracing.below
        #: Of the runs that go on and are traced, by id and token.
        self.open: dict[tuple[str, str], Span] = {}
        #: The runs that ended and are to be settled, by id.
        self._ended: dict[str, _Ended] = {}

    # ---- runs ------------------------------------------------------------------------------------------

    def begin(self, job: Claimed, context: contextvars.Context) -> None:
        """Begin the span of a run if its trace is kept, and make it the current one in `context`."""
        meta = job.meta
        text = meta.get(TRACEPARENT) if meta is not None else None
        if text is not None and says_unsampled(text):
            return
        given = _read(text, meta.get(TRACESTATE)) if text is not None and meta is not None else None
        if given is None:
            if job.id[-12:] >= self.below:
                return
        elif not given.trace_flags.sampled:
            return
        own = {"messaging.message.id": job.id, "packhorse.job.attempt": job.attempt}
        span = self._tracer.start(sort_of("process", job.queue, job.type), given, own)
        if span.is_recording():
            self.open[job.id, job.token] = span
        context.run(_enter, span)

    def end(self, job: Claimed, outcome: Outcome, seconds: Histogram, duration_ns: int) -> str | None:
        """End the span of a run with what it came to, and name its trace at its bucket of `seconds`.

        Answers the id of its trace, None where it has none.
        """
        span = self.open.pop((job.id, job.token), None)
        if span is None:
            return None
        is_success = outcome.kind is Kind.SUCCEEDED
        self._tracer.end(span, None if is_success else lambda span: _tell_outcome(span, outcome))
        trace_id = self._keep_ended(job, span)
        if outcome.kind not in UNCOUNTED:
            place = bisect_left(seconds.bounds_ns, duration_ns)
            seconds.attach(place, Exemplar(trace_id, duration_ns / 1e9, wall_ns() // 1_000_000))
        return trace_id

    def end_otherwise(self, job: Claimed, error_type: str) -> None:
        """End the span of a run whose end is nobody's to settle here, if it is still open."""
        span = self.open.pop((job.id, job.token), None)
        if span is not None:
            self._tracer.end(span, lambda span: tell_failure(span, error_type))

    def _keep_ended(self, job: Claimed, span: Span) -> str:
        """Remember a run until it is settled; answers the id of its trace."""
        found = span.get_span_context()
        self._ended[job.id] = _Ended(job.token, job.queue, found)
        if len(self._ended) > ENDED_MAX:  # settled by themselves, or dropped
            for key in list(islice(self._ended, ENDED_MAX // 2)):
                del self._ended[key]
        return f"{found.trace_id:032x}"

    # ---- claims and settles ----------------------------------------------------------------------------

    def received(self, jobs: Sequence[Claimed], queues: Sequence[str], began_ns: int) -> None:
        """Make the `receive` spans of a claim of `queues` that began at `began_ns` (wall clock), of traced jobs."""
        by_queue: dict[str, dict[str, SpanContext]] = {}
        for job in [job for job in jobs if job.meta is not None]:
            meta = job.meta or {}
            text = meta.get(TRACEPARENT)
            if text is None or says_unsampled(text):
                continue
            found = _read(text, meta.get(TRACESTATE))
            if found is not None and found.trace_flags.sampled:  # jobs of one enqueue have the same
                by_queue.setdefault(job.queue, {})[text] = found
        for queue, links in by_queue.items():
            count = len(jobs) if len(queues) == 1 else list(map(_queue_of, jobs)).count(queue)
            self._tracer.end(self._batch_span("receive", queue, list(links.values()), count, began_ns))

    def ended_of(self, settlements: Sequence[Settlement]) -> list[tuple[str, _Ended]]:
        """Answer the traced runs that these settle, by id of their job."""
        ended = self._ended
        if not ended:
            return []
        return [(one.id, ended[one.id]) for one in settlements if one.id in ended and ended[one.id].token == one.token]

    def settling(self, runs: Sequence[tuple[str, _Ended]]) -> _Settling:
        """Make the `settle` spans of traced runs; they last as long as the block that settles these."""
        by_queue: dict[str, list[SpanContext]] = {}
        for _, run in runs:
            by_queue.setdefault(run.queue, []).append(run.context)
        spans = [self._batch_span("settle", queue, found, len(found), None) for queue, found in by_queue.items()]
        return _Settling(self, runs, spans)

    def forget(self, runs: Sequence[tuple[str, _Ended]]) -> None:
        """Forget runs that were settled."""
        for job_id, run in runs:
            if self._ended.get(job_id) is run:  # not a later one, which ended meanwhile
                del self._ended[job_id]

    def _batch_span(
        self, operation: str, queue: str, found: Sequence[SpanContext], count: int, began_ns: int | None
    ) -> Span:
        """Begin the span of a batch: linked to each of its jobs, and part of their trace if they have one in common."""
        first = found[0]
        is_one_trace = all(other.trace_id == first.trace_id for other in found)
        return self._tracer.start(
            sort_of(operation, queue),
            first if is_one_trace else None,
            {"messaging.batch.message_count": count},
            found[:LINKS_MAX],
            began_ns,
        )


class _Ended(NamedTuple):
    """A run that ended and is to be settled."""

    token: str
    queue: str
    context: SpanContext


class _Settling:
    """A block that settles traced runs. Where it raises they are kept: it is tried again."""

    def __init__(self, owner: RunSpans, runs: Sequence[tuple[str, _Ended]], spans: Sequence[Span]) -> None:
        self._owner = owner
        self._runs = runs
        self._spans = spans

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        self._owner.tracing.end_all(self._spans, kind)
        if kind is None:
            self._owner.forget(self._runs)


@lru_cache(maxsize=1_024)  # read at the claim and again at the run, and the same in all jobs of one enqueue
def _read(text: str, tracestate: str | None) -> SpanContext | None:
    """Answer the span that a job carries; None where that is not valid."""
    given = read_traceparent(text)
    return None if given is None else remote(given, tracestate)


def _enter(span: Span) -> None:
    """Make a span the current one in the context of a run, which ends with it: nothing is to be put back."""
    attach(trace.set_span_in_context(span))
    found = span.get_span_context()
    if found.trace_flags.sampled:
        CURRENT_TRACE.set(f"{found.trace_id:032x}")


def _tell_outcome(span: Span, outcome: Outcome) -> None:
    """Say why a run did not succeed, as the job's own record does: without payload and locals."""
    span.set_attribute("packhorse.job.outcome", str(outcome.kind))
    if outcome.kind not in _FAILURES:
        return
    error_type = outcome.error_kind or "Error"
    tell_failure(span, error_type)
    event = {"exception.type": error_type, "exception.message": outcome.message[:MESSAGE_CHARS_MAX]}
    if outcome.traceback:
        event["exception.stacktrace"] = outcome.traceback[-TRACEBACK_CHARS_MAX:]
    span.add_event("exception", event)
