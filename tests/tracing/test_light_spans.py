"""Spans of packhorse's own provider: cheap until somebody touches them, and then the SDK's to the last byte."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from packhorse import Packhorse
from packhorse.clock import wall_ns
from packhorse.errors import ConfigurationError
from packhorse.observe import exporting
from packhorse.observe.guarded_tracer import ROOT, GuardedTracer, SdkTracer, Sort
from packhorse.observe.otlp import encode_spans
from packhorse.observe.own_provider import LightSpan, LightTracer, OwnProvider
from packhorse.observe.run_spans import RunSpans
from packhorse.observe.spans import Tracing, sort_of
from packhorse.settings import load

from ..worker.working import ended, new_app, until, work

REMOTE = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "x")]))
SORT = sort_of("process", "mail", "email")
OWN = {"messaging.message.id": "j" * 36, "packhorse.job.attempt": 3}


class Kept(SpanProcessor):
    """What ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def own_provider(share: float | None = 1.0) -> tuple[OwnProvider, Kept]:
    provider, kept = OwnProvider(Resource({"service.name": "shop"}), share), Kept()
    provider.send_through(kept)
    return provider, kept


def light(above: Any = REMOTE, links: Any = (), start_ns: int | None = None) -> tuple[LightSpan, Kept]:
    provider, kept = own_provider()
    span = GuardedTracer(provider.tracer("packhorse", "1")).start(SORT, above, OWN, links, start_ns)
    assert type(span) is LightSpan
    return span, kept


def document(spans: list[ReadableSpan]) -> ExportTraceServiceRequest:
    """What is sent of spans, but for what differs each time: ids that were made, and times."""
    request = ExportTraceServiceRequest.FromString(encode_spans(spans))
    for span in request.resource_spans[0].scope_spans[0].spans:
        assert span.end_time_unix_nano >= span.start_time_unix_nano > 0
        span.span_id = b""
        span.start_time_unix_nano = span.end_time_unix_nano = 0
        for event in span.events:
            event.time_unix_nano = 0
        if not span.parent_span_id:
            span.trace_id = b""
    return request


def _raise(span: Any) -> None:
    with span:
        raise KeyError("within")


def _many(span: Any) -> None:
    for number in range(200):
        span.set_attribute(f"key {number}", number)
        span.add_event(f"event {number}", {"number": number})
        span.add_link(SpanContext(1, number + 1, is_remote=False, trace_flags=TraceFlags(1)), {"number": number})


def _bad(span: Any) -> None:
    span.set_attribute("", 1)
    span.set_attribute(None, 1)
    span.set_attribute("object", object())
    span.set_attribute("mixed", [1, "a", None])
    span.set_attributes({"nested": {"a": [1, 2], "": 0}, "half": "\ud800", "large": 1 << 70, "bytes": b"\x00"})
    span.set_attribute("messaging.message.id", "another")
    span.add_event("odd", {"value": object()})
    span.add_link(SpanContext(0, 0, is_remote=False))


def _twice(span: Any) -> None:
    span.end()
    span.end()
    span.set_attribute("late", 1)
    span.set_status(StatusCode.ERROR)
    span.add_event("late")
    span.update_name("late")
    span.add_link(REMOTE)
    span.record_exception(ValueError("late"))
    assert not span.is_recording()


def _read(span: Any) -> None:
    assert span.is_recording()
    assert (span.name, span.kind, span.attributes["packhorse.job.attempt"]) == ("process mail", SpanKind.CONSUMER, 3)
    assert span.parent == REMOTE
    assert span.get_span_context().trace_state.get("vendor") == "x"
    assert span.status.status_code is StatusCode.UNSET
    assert (list(span.events), [link.context for link in span.links]) == ([], [REMOTE])
    assert span.start_time is not None
    assert span.end_time is None
    assert "process mail" in span.to_json()
    assert not hasattr(span, "nothing_of_the_kind")


CALLS: dict[str, Callable[[Any], None]] = {
    "nothing": lambda span: None,
    "an attribute": lambda span: span.set_attribute("key", "value"),
    "attributes": lambda span: span.set_attributes({"a": 1, "b": [True, False], "c": 0.5}),
    "an event": lambda span: span.add_event("seen", {"what": "a"}),
    "a link": lambda span: span.add_link(REMOTE, {"why": "so"}),
    "a name": lambda span: span.update_name("another"),
    "a status": lambda span: span.set_status(Status(StatusCode.ERROR, "it failed")),
    "statuses": lambda span: [span.set_status(code) for code in (StatusCode.OK, StatusCode.ERROR)],
    "an exception": lambda span: span.record_exception(ValueError("no"), {"more": 1}, escaped=True),
    "raises within": _raise,
    "leaves": lambda span: span.__exit__(None, None, None),
    "many": _many,
    "bad values": _bad,
    "ends twice": _twice,
    "reads": _read,
}


@pytest.mark.parametrize("above", [None, REMOTE], ids=["root", "below"])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_sent_is_what_the_sdk_would_send(name: str, above: SpanContext | None) -> None:
    if name == "reads" and above is None:
        above = REMOTE
    documents = []
    for is_light in (True, False):
        provider, kept = own_provider()
        inner = provider.tracer("packhorse", "1") if is_light else SdkTracer(provider.get_tracer("packhorse", "1"))
        span = inner.start(SORT, above, OWN, [REMOTE], None)
        assert (type(span) is LightSpan) is is_light
        try:
            CALLS[name](span)
        except KeyError:
            assert name == "raises within"
        if span.is_recording():
            span.end()
        (ended_,) = kept.spans
        documents.append(document([ended_]))
        context, wanted = span.get_span_context(), TraceFlags(1)
        assert context.is_valid
        assert context.trace_flags & wanted
        documents.append((context.trace_flags, context.trace_state, context.is_remote))  # type: ignore[arg-type]
    assert documents[:2] == documents[2:]


def test_a_span_that_nobody_touches_has_nothing_of_the_sdk() -> None:
    span, kept = light(links=[REMOTE], start_ns=5)
    span.end(7)
    assert kept.spans == [span]
    assert "_attributes" not in vars(span)
    (sent,) = ExportTraceServiceRequest.FromString(encode_spans([span])).resource_spans[0].scope_spans[0].spans
    assert (sent.start_time_unix_nano, sent.end_time_unix_nano) == (5, 7)
    assert (span.start_time, span.end_time) == (5, 7)  # it can be read later too
    assert encode_spans([span]).count(b"process mail") == 1


def test_it_is_a_span_of_the_sdk_to_who_asks() -> None:
    span, _ = light()
    assert isinstance(span, Span)
    assert isinstance(span, ReadableSpan)
    assert span.set_attribute.__self__ is span  # type: ignore[attr-defined]
    with trace.use_span(span):
        assert trace.get_current_span() is span


def test_threads_lose_nothing_of_what_they_set() -> None:
    for _ in range(50):
        span, kept = light()
        begin = threading.Barrier(4)

        def touch(number: int, span: Span = span, begin: threading.Barrier = begin) -> None:
            begin.wait(30)
            span.set_attribute(f"key {number}", number)
            span.add_event(f"event {number}")

        threads = [threading.Thread(target=touch, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        span.end()
        (found,) = kept.spans
        assert {f"key {number}" for number in range(4)} <= set(found.attributes or {})
        assert len(found.events) == 4


def test_a_span_that_threads_end_and_touch_is_sent_once() -> None:
    for _ in range(50):
        span, kept = light()
        begin = threading.Barrier(4)

        def act(number: int, span: Span = span, begin: threading.Barrier = begin) -> None:
            begin.wait(30)
            if number % 2:
                span.end()
            else:
                span.set_attribute("key", number)

        threads = [threading.Thread(target=act, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(kept.spans) == 1
        assert document(kept.spans)


def test_a_second_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    span, kept = light()
    span.end()
    with caplog.at_level(logging.WARNING):
        span.end()
        span.set_attribute("late", 1)
    assert len(caplog.records) == 2
    assert len(kept.spans) == 1
    assert b"late" not in encode_spans(kept.spans)


# ---- when they are the SDK's ---------------------------------------------------------------------------------


def test_who_adds_a_processor_sees_spans_of_the_sdk_begin_and_end() -> None:
    provider, kept = own_provider()
    tracing = Tracing(provider)
    before = tracing.tracer.start(SORT, None)
    began: list[Any] = []

    class Own(Kept):
        def on_start(self, span: Any, parent_context: Context | None = None) -> None:
            began.append(span)

    own = Own()
    provider.add_span_processor(own)
    tracing.tracer.end(before)
    tracing.tracer.end(tracing.tracer.start(SORT, REMOTE, OWN))
    assert [type(span) is LightSpan for span in kept.spans] == [True, False]
    assert [span.name for span in own.spans] == ["process mail"]
    assert began[0].attributes["packhorse.job.attempt"] == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "3"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "3"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "10"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "10"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "1"),
        ("OTEL_SDK_DISABLED", "true"),
    ],
)
def test_who_sets_limits_gets_the_sdk(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    provider, kept = own_provider()
    tracer = provider.tracer("packhorse", "1")
    assert type(tracer) is SdkTracer
    span = tracer.start(SORT, None, OWN, [REMOTE, REMOTE], None)
    span.end()
    assert len(kept.spans) == (name != "OTEL_SDK_DISABLED")
    for found in kept.spans:
        attributes = found.attributes or {}
        assert len(attributes) == (3 if "COUNT" in name and "LINK" not in name else 7)
        assert len(found.links) == (1 if "LINK" in name else 2)
        assert len(str(attributes["messaging.message.id"])) == (10 if "LENGTH" in name else 36)


def test_higher_limits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "1000")
    monkeypatch.setenv("OTEL_ATTRIBUTE_COUNT_LIMIT", "1000")
    assert type(own_provider()[0].tracer("packhorse", "1")) is LightTracer


@pytest.mark.parametrize("name", ["OTEL_SPAN_LINK_COUNT_LIMIT", "OTEL_BSP_MAX_QUEUE_SIZE"])
def test_limits_that_cannot_be_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "-1")
    with pytest.raises(ConfigurationError, match="limits of OpenTelemetry"):
        exporting._make(load({"tracing": "http://127.0.0.1:9"}), "shop")


def test_a_sampler_of_the_environment_decides_about_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    provider, kept = own_provider(None)
    tracing = Tracing(provider)
    tracing.tracer.end(tracing.tracer.start(SORT, None))
    assert kept.spans == []


@pytest.mark.parametrize("is_kept", [True, False])
def test_below_a_span_of_somebody_that_one_decides(is_kept: bool) -> None:
    provider, kept = own_provider()
    tracing = Tracing(provider)
    above = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(is_kept))
    for given in (above, trace.set_span_in_context(trace.NonRecordingSpan(above), Context())):
        span = tracing.tracer.start(SORT, given)
        assert span.get_span_context().trace_id == 7
        assert span.get_span_context().trace_flags.sampled == is_kept
        tracing.tracer.end(span)
    assert [span.parent for span in kept.spans] == ([above] * 2 if is_kept else [])


def test_nobody_begins_a_trace_without_saying_so() -> None:
    provider, kept = own_provider(0.0)
    tracing = Tracing(provider)
    for context in (Context(), ROOT):
        tracing.tracer.end(tracing.tracer.start(SORT, context))
    assert len(kept.spans) == 1


def test_a_handler_that_seeds_pythons_chance_does_not_make_the_same_ids() -> None:
    seen = set()
    provider, kept = own_provider()
    tracer = provider.tracer("packhorse", "1")
    for _ in range(2):
        random.seed(7)
        tracer.start(SORT, None, {}, (), None).end()
        provider.get_tracer("mine").start_span("of a handler").end()
    for span in kept.spans:
        seen |= {span.context.trace_id, span.context.span_id}
    assert len(seen) == 2 * len(kept.spans) == 8


# ---- in a worker ---------------------------------------------------------------------------------------------


def test_a_handler_may_do_with_its_span_what_it_likes() -> None:
    app: Packhorse = new_app(tracing="on")
    provider, kept = own_provider()
    app._tracing = Tracing(provider)

    @app.task
    async def touches() -> None:
        span = trace.get_current_span()
        span.set_attribute("shop.order", 7)
        span.add_event("asked the bank")
        with provider.get_tracer("mine").start_as_current_span("below"):
            pass

    @app.task
    async def ends() -> None:
        trace.get_current_span().end()

    @app.task(max_attempts=1)
    async def fails() -> None:
        raise ValueError("no")

    async def scenario() -> None:
        async with app.worker():
            for task in (touches, ends, fails):
                await ended(app, await task.aenqueue())
            await until(lambda: sum(span.name == "settle default" for span in kept.spans) == 3)
        await app.aclose()

    work(scenario)
    named: dict[str, list[ReadableSpan]] = {}
    for span in kept.spans:
        named.setdefault(span.name, []).append(span)
    touched, ended_, failed = named["process default"]
    assert (touched.attributes or {})["shop.order"] == 7
    assert [event.name for event in touched.events] == ["asked the bank"]
    (below,) = named["below"]
    assert below.parent is not None
    assert below.parent.span_id == touched.context.span_id
    assert ended_.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["packhorse.job.outcome"] == "error"
    assert len(named["send default"]) == len(named["receive default"]) == 3
    assert document(kept.spans)


def test_a_job_whose_span_is_light_costs_no_link_objects() -> None:
    provider, kept = own_provider()
    spans = RunSpans(Tracing(provider))
    spans.tracing.tracer.end(spans._batch_span("settle", "default", [REMOTE] * 200, 200, wall_ns()))
    (span,) = kept.spans
    assert type(span) is LightSpan
    assert len(span.linked) == 128
    sent = ExportTraceServiceRequest.FromString(encode_spans(kept.spans)).resource_spans[0].scope_spans[0].spans[0]
    assert len(sent.links) == 128
    assert sent.links[0].trace_state == "vendor=x"
    assert Link(REMOTE).context == REMOTE


def test_a_sort_is_written_once() -> None:
    sort = Sort("GET", SpanKind.SERVER, {"http.request.method": "GET"})
    provider, kept = own_provider()
    tracer = provider.tracer("packhorse", "1")
    for _ in range(2):
        tracer.start(sort, None, {"url.scheme": "http"}, (), None).end()
    assert sort.encoded is None
    first = encode_spans(kept.spans)
    written = sort.encoded
    assert written is not None
    assert first.count(written) == 2
    assert encode_spans(kept.spans) == first
    assert sort.encoded is written
