"""What is sent is what the library of OpenTelemetry would send."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as library_encode
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from packhorse.observe.otlp import encode_spans
from packhorse.observe.spans import parent
from packhorse.observe.trace_context import TraceContext

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(),
    TEXTS,
    st.binary(max_size=200),
    st.lists(TEXTS, max_size=5),
    st.lists(st.booleans(), max_size=5),
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=5),
)
ATTRIBUTES = st.dictionaries(TEXTS.filter(bool), VALUES, max_size=8)


class Made:
    """A provider whose spans stay here; few of each thing fit into one."""

    def __init__(self, service: str = "shop") -> None:
        self.kept = InMemorySpanExporter()
        resource = Resource({"service.name": service, "process.pid": 7}, "https://resource.example/1")
        limits = SpanLimits(max_attributes=6, max_events=2, max_links=2, max_event_attributes=3, max_link_attributes=3)
        self.provider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.kept))

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.kept.get_finished_spans())


def same(spans: list[ReadableSpan]) -> ExportTraceServiceRequest:
    """Check that the library writes the same of these spans; answers it."""
    ours = ExportTraceServiceRequest.FromString(encode_spans(spans))
    # as bytes: a NaN is not equal to itself
    assert ours.SerializeToString(deterministic=True) == library_encode(spans).SerializeToString(deterministic=True)
    return ours


def test_nothing_is_an_empty_request() -> None:
    assert encode_spans([]) == b""


@settings(max_examples=200, deadline=None)
@given(name=TEXTS, attributes=ATTRIBUTES, kind=st.sampled_from(SpanKind), links=st.integers(0, 4), events=st.data())
def test_spans_are_written_as_the_library_writes_them(
    name: str, attributes: dict[str, Any], kind: SpanKind, links: int, events: st.DataObject
) -> None:
    made = Made()
    other = SpanContext(7, 9, is_remote=links % 2 == 1, trace_flags=TraceFlags(1))
    span = made.provider.get_tracer("test", "1").start_span(
        name, kind=kind, attributes=attributes, links=[Link(other, attributes) for _ in range(links)]
    )
    for _ in range(events.draw(st.integers(0, 4))):
        span.add_event(events.draw(TEXTS), events.draw(ATTRIBUTES), events.draw(st.integers(0, (1 << 64) - 1)))
    span.set_status(Status(StatusCode.ERROR, events.draw(TEXTS)))
    span.end()
    same(made.spans)


def test_parents_states_scopes_and_resources_are_told_apart() -> None:
    first, second = Made(), Made("till")
    remote = parent(TraceContext("a" * 32, "b" * 16, sampled=True), "vendor=x,other=y")
    for made in (first, second):
        for tracer in (
            made.provider.get_tracer("one", "2", "https://scope.example/1", {"lazy": True}),
            made.provider.get_tracer("two"),
        ):
            with tracer.start_as_current_span("above", context=remote), tracer.start_as_current_span("below") as below:
                below.set_status(StatusCode.OK)
    found = same(first.spans + second.spans)
    (resource, _) = found.resource_spans
    above, below_ = resource.scope_spans[0].spans[1], resource.scope_spans[0].spans[0]
    assert (above.trace_state, above.parent_span_id.hex(), above.flags) == ("vendor=x,other=y", "b" * 16, 0x300)
    assert (below_.parent_span_id, below_.flags) == (above.span_id, 0x100)


def test_a_link_keeps_its_trace_state_which_the_library_drops() -> None:
    made = Made()
    state = TraceState([("vendor", "x")])
    made.provider.get_tracer("test").start_span("a", links=[Link(SpanContext(1, 2, True, TraceFlags(1), state))]).end()
    request = ExportTraceServiceRequest.FromString(encode_spans(made.spans))
    assert request.resource_spans[0].scope_spans[0].spans[0].links[0].trace_state == "vendor=x"


@pytest.mark.parametrize(
    ("value", "kind", "written"),
    [
        ("half \ud800", "string_value", "half ?"),
        (1 << 63, "string_value", str(1 << 63)),
        (-1, "int_value", -1),
        (math.inf, "double_value", math.inf),
        ("", "string_value", ""),
        (0, "int_value", 0),
        (False, "bool_value", False),
        ("é" * 64, "string_value", "é" * 64),
        ("x" * 20_000, "string_value", "x" * 20_000),
    ],
    ids=["surrogate", "large", "negative", "infinite", "empty", "zero", "false", "two bytes each", "long"],
)
def test_any_value_gets_through(value: Any, kind: str, written: Any) -> None:
    made = Made()
    span = made.provider.get_tracer("test").start_span("a")
    span.set_attribute("key", value)
    span.set_attribute("after", 1)
    span.end()
    request = ExportTraceServiceRequest.FromString(encode_spans(made.spans))
    pairs = {pair.key: pair.value for pair in request.resource_spans[0].scope_spans[0].spans[0].attributes}
    assert pairs["key"].WhichOneof("value") == kind
    assert getattr(pairs["key"], kind) == written
    assert pairs["after"].int_value == 1


def test_one_and_true_are_not_the_same() -> None:
    made = Made()
    for value in (1, True, 1.0, 0, False):
        span = made.provider.get_tracer("test").start_span("a")
        span.set_attribute("key", value)
        span.end()
    same(made.spans)
