"""The provider that packhorse makes where the program has none, and its cheap spans.

A span of the SDK costs some 20 us, most of it for what may be done to it: locks, limits, checks of each value. Of the
spans that packhorse makes few are touched by anybody. So they are what they were given and little more, and become
spans of the SDK when somebody does touch them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context, get_value
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, SamplingResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, TraceFlags

from ..chance import CHANCE
from ..clock import wall_ns
from .current import CURRENT_JOB
from .guarded_tracer import KEPT, LINKS_MAX, SdkTracer, Sort

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

#: Attributes that a span of packhorse begins with, at most. Where the limits are lower (OTEL_SPAN_…_LIMIT), the SDK
#: is to see to them.
_ATTRIBUTES_MAX = 16

#: Flags of W3C: that 56 bits of the id of the trace are random is said by later versions of the SDK.
_RANDOM = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)
_SAMPLED, _SAMPLED_RANDOM = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.SAMPLED | _RANDOM)


class Roots(Sampler):
    """Which traces begin: those that packhorse has decided to keep, and of others the same share.

    A span of a handler whose own run is not traced begins none: else each would be a trace without a job.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._bound = round(share * (1 << 64))

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, *args: Any, **kwargs: Any
    ) -> SamplingResult:
        """Decide about a span without a parent."""
        if get_value(KEPT, parent_context) is not None:
            kept = True
        else:
            kept = CURRENT_JOB.get() is None and trace_id & ((1 << 64) - 1) < self._bound
        return (ALWAYS_ON if kept else ALWAYS_OFF).should_sample(parent_context, trace_id, name, *args, **kwargs)

    def get_description(self) -> str:
        """Say what it does."""
        return f"packhorse{{{self._share}}}"


class Ids(IdGenerator):
    """Ids by our own chance: a handler that seeds Python's would let all processes make the same."""

    def generate_span_id(self) -> int:
        """Answer 64 random bits that are not all 0."""
        return CHANCE.bits(64) or 1

    def generate_trace_id(self) -> int:
        """Answer 128 random bits that are not all 0."""
        return CHANCE.bits(128) or 1

    def is_trace_id_random(self) -> bool:
        """Say that all bits are."""
        return True


class OwnProvider(TracerProvider):
    """A provider that knows whether anybody but packhorse looks at its spans.

    `share` is that of the traces that begin here and are kept; None leaves that to OTEL_TRACES_SAMPLER. Raises
    ValueError where OTEL_* says no number.
    """

    def __init__(self, resource: Resource, share: float | None) -> None:
        self._limits = SpanLimits()
        self._sender: SpanProcessor | None = None
        #: Whether somebody else decides about spans, or is to see them when they begin.
        self.is_watched = share is None or _counts_spans()
        super().__init__(
            sampler=None if share is None else ParentBased(Roots(share)),
            resource=resource,
            id_generator=Ids(),
            span_limits=self._limits,
            shutdown_on_exit=False,  # it would wait for a receiver that is away
        )

    def send_through(self, sender: SpanProcessor) -> None:
        """Let `sender`, which asks of a span nothing but to be encoded by `otlp`, have all that ended."""
        super().add_span_processor(sender)
        self._sender = sender

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """Let somebody else see spans too: from now on all are the SDK's."""
        self.is_watched = True
        super().add_span_processor(span_processor)

    def tracer(self, name: str, version: str) -> LightTracer | SdkTracer:
        """Answer what makes spans for packhorse itself: light ones, if nothing was asked for that needs others."""
        made, limits = self.get_tracer(name, version), self._limits
        has_room = _reaches(limits.max_span_attributes, _ATTRIBUTES_MAX) and _reaches(limits.max_links, LINKS_MAX)
        if (
            self._sender is None
            or not isinstance(made, Tracer)  # OTEL_SDK_DISABLED
            or not has_room
            or limits.max_span_attribute_length is not None
        ):
            return SdkTracer(made)
        return LightTracer(self, made, limits, self._sender.on_end, InstrumentationScope(name, version))


def _reaches(limit: int | None, needed: int) -> bool:
    return limit is None or limit >= needed


def _counts_spans() -> bool:
    """Tell whether the SDK counts the spans that it starts."""
    return os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "").strip().lower() == "true"


class LightTracer:
    """Makes light spans below what is kept, while nobody else is to see them begin; all others by the SDK."""

    def __init__(
        self,
        provider: OwnProvider,
        sdk: Tracer,
        limits: SpanLimits,
        on_end: Callable[[ReadableSpan], None],
        scope: InstrumentationScope,
    ) -> None:
        self._provider = provider
        self._full = SdkTracer(sdk)
        self.sdk = sdk
        self.limits = limits
        self.on_end = on_end
        self.scope = scope

    def start(
        self,
        sort: Sort,
        above: Context | SpanContext | None,
        own: Mapping[str, Any],
        links: Sequence[SpanContext],
        start_ns: int | None,
    ) -> trace.Span:
        """Start a span: see GuardedTracer.start. Attributes are short texts and numbers: they are not checked."""
        if isinstance(above, Context):
            found = trace.get_current_span(above).get_span_context()
            parent = found if found.is_valid else None
            is_kept = KEPT in above if parent is None else parent.trace_flags.sampled
        else:
            parent, is_kept = above, above is None or above.trace_flags.sampled
        if self._provider.is_watched or not is_kept:
            return self._full.start(sort, above, own, links, start_ns)
        if parent is None:
            here = SpanContext(CHANCE.bits(128) or 1, CHANCE.bits(64) or 1, False, _SAMPLED_RANDOM)
        else:
            flags = _SAMPLED_RANDOM if parent.trace_flags & _RANDOM else _SAMPLED
            here = SpanContext(parent.trace_id, CHANCE.bits(64) or 1, False, flags, parent.trace_state)
        return LightSpan(self, sort, here, parent, own, links, wall_ns() if start_ns is None else start_ns)


class LightSpan(Span):
    """A span that has nothing of the SDK's until somebody asks it for more than its context.

    Then it gets all of that at once, and is a span of the SDK from there on. What ended before is written by `otlp`
    from its own fields, which do not change any more.
    """

    def __init__(
        self,
        tracer: LightTracer,
        sort: Sort,
        here: SpanContext,
        above: SpanContext | None,
        own: Mapping[str, Any],
        linked: Sequence[SpanContext],
        started_ns: int,
    ) -> None:
        self.tracer = tracer
        self.sort = sort
        self.here = here
        self.above = above
        self.own = own
        self.linked = linked
        self.started_ns = started_ns  # wall clock
        self.ended_ns: int | None = None
        self._is_whole = False
        self._change = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        """Answer what it has not yet, as the SDK has it."""
        if name.startswith("__") or name in _OWN:
            raise AttributeError(name)
        with self._change:
            if not self._is_whole:
                # At once: another thread must not see it half made.
                self.__dict__.update(self._fields_of_sdk(), _is_whole=True)
        return object.__getattribute__(self, name)

    def _fields_of_sdk(self) -> dict[str, Any]:
        tracer = self.tracer
        made = object.__new__(LightSpan)
        Span.__init__(
            made,
            name=self.sort.name,
            context=self.here,
            parent=self.above,
            sampler=tracer.sdk.sampler,
            resource=tracer.sdk.resource,
            attributes={**self.sort.attributes, **self.own},
            links=[Link(other) for other in self.linked],
            kind=self.sort.kind,
            span_processor=tracer.sdk.span_processor,
            limits=tracer.limits,
            instrumentation_scope=tracer.scope,
        )
        return vars(made) | {"_start_time": self.started_ns, "_end_time": self.ended_ns}

    def end(self, end_time: int | None = None) -> None:
        """End it, now or at `end_time` (wall clock, ns)."""
        with self._change:
            ends_light = not self._is_whole and self.ended_ns is None
            if ends_light:
                self.ended_ns = wall_ns() if end_time is None else end_time
        if ends_light:
            self.tracer.on_end(self)
        else:
            super().end(end_time)

    def is_recording(self) -> bool:
        """Tell whether it has not ended."""
        return super().is_recording() if self._is_whole else self.ended_ns is None

    def get_span_context(self) -> SpanContext:
        """Answer its ids."""
        return self.here

    @property
    def context(self) -> SpanContext:
        """Its ids."""
        return self.here

    @property
    def resource(self) -> Resource:
        """What all spans of this process have in common."""
        return self.tracer.sdk.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        """Who makes these spans."""
        return self.tracer.scope


#: What a light span sets itself: where that is missing, it is being made.
_OWN = frozenset({"tracer", "sort", "here", "above", "own", "linked", "started_ns", "ended_ns", "_is_whole", "_change"})
