"""Spans as OTLP has them on the wire: `ExportTraceServiceRequest` of opentelemetry-proto, protobuf written by hand.

A third of the time that the library of OpenTelemetry takes, without protobuf itself: it makes an object of each value
first, and looks for spans of one resource by its JSON. That both write the same is a test (tests/tracing/test_otlp.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .own_provider import LightSpan

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext

    from .guarded_tracer import Sort

#: Characters of a text that is remembered as it was written: 4,096 of them are below 2 MB.
_SHORT_CHARS = 64
#: Of `SpanFlags`: whether the span above is of another process is known; it is.
_KNOWN, _REMOTE = 0x100, 0x200

_pack_times = struct.Struct("<BQBQ").pack  # fields 7 and 8 of a span, fixed64
_pack_time = struct.Struct("<BQ").pack
_pack_flags = struct.Struct("<I").pack
_pack_double = struct.Struct("<Bd").pack


def encode_spans(spans: Sequence[ReadableSpan]) -> bytes:
    """Answer the request that sends these spans. Half a surrogate pair becomes `?`, an int of over 64 bits a text."""
    resources: dict[int, tuple[Any, dict[int, tuple[Any, list[bytes]]]]] = {}
    for span in spans:  # by identity: those of a process have the same objects
        _, scopes = resources.setdefault(id(span.resource), (span.resource, {}))
        scope = span.instrumentation_scope
        _, written = scopes.setdefault(id(scope), (scope, []))
        written += (b"\x12", _sized(_light(span) if type(span) is LightSpan else _span(span)))
    return b"".join(
        b"\x0a" + _sized(_resource_spans(resource, scopes.values())) for resource, scopes in resources.values()
    )


def _resource_spans(resource: Any, scopes: Iterable[tuple[InstrumentationScope | None, list[bytes]]]) -> bytes:
    parts = [b"\x0a", _sized(_attributes(b"\x0a", resource.attributes))]
    for scope, written in scopes:
        body = [b"\x0a", _sized(_scope(scope)), *written]
        if scope is not None and scope.schema_url:
            body += (b"\x1a", _text(scope.schema_url))
        parts += (b"\x12", _sized(b"".join(body)))
    if resource.schema_url:
        parts += (b"\x1a", _text(resource.schema_url))
    return b"".join(parts)


def _scope(scope: InstrumentationScope | None) -> bytes:
    if scope is None:
        return b""
    parts = [b"\x0a", _text(scope.name)]
    if scope.version:
        parts += (b"\x12", _text(scope.version))
    return b"".join(parts) + _attributes(b"\x1a", getattr(scope, "attributes", None))


# ---- spans -------------------------------------------------------------------------------------------------


def _light(span: LightSpan) -> bytes:
    """Write a span that nobody has touched: as `_span` does, what is as in all of its sort from memory."""
    here, above = span.here, span.above
    parts = [_ids(here)]
    if here.trace_state:
        parts += (b"\x1a", _text(here.trace_state.to_header()))
    if above is not None:
        parts += (b"\x22\x08", above.span_id.to_bytes(8, "big"))
    parts += (
        span.sort.encoded or _sort(span.sort),
        _pack_times(0x39, span.started_ns, 0x41, span.ended_ns or 0),
    )
    for key, value in span.own.items():  # not remembered: many are the only one of their kind, as ids are
        parts += (b"\x4a", _text_pair(key, value) if type(value) is str else _short_pair(key, value))
    for other in span.linked:
        parts += (b"\x6a", _sized(_link_context(other) + b"\x35" + _flags(other)))
    parts += (b"\x7a\x00\x85\x01", _flags(above))
    return b"".join(parts)


def _sort(sort: Sort) -> bytes:
    attributes = _attributes(b"\x4a", sort.attributes)
    sort.encoded = b"\x2a" + _text(sort.name) + b"\x30" + _varint(sort.kind.value + 1) + attributes
    return sort.encoded


def _span(span: ReadableSpan) -> bytes:
    context, above, status = span.context, span.parent, span.status
    parts = [_ids(context)]
    if context.trace_state:
        parts += (b"\x1a", _text(context.trace_state.to_header()))
    if above is not None:
        parts += (b"\x22\x08", above.span_id.to_bytes(8, "big"))
    parts += (
        b"\x2a",
        _text(span.name),
        b"\x30",
        _varint(span.kind.value + 1),  # OTLP has 0 for what is not known
        _pack_times(0x39, span.start_time or 0, 0x41, span.end_time or 0),
        _attributes(b"\x4a", span.attributes),
        _count(b"\x50", span.dropped_attributes),
    )
    for event in span.events:
        parts += (b"\x5a", _sized(_event(event)))
    parts.append(_count(b"\x60", span.dropped_events))
    for link in span.links:
        parts += (b"\x6a", _sized(_link(link)))
    about = b"\x12" + _text(status.description) if status.description else b""
    parts += (
        _count(b"\x70", span.dropped_links),
        b"\x7a",
        _sized(about + _count(b"\x18", status.status_code.value)),
        b"\x85\x01",
        _flags(above),
    )
    return b"".join(parts)


def _event(event: Event) -> bytes:
    head = _pack_time(0x09, event.timestamp) + b"\x12" + _text(event.name)
    return head + _attributes(b"\x1a", event.attributes) + _count(b"\x20", event.dropped_attributes)


def _link(link: Link) -> bytes:
    context = link.context
    written = _link_context(context)
    if link.attributes:
        written += _attributes(b"\x22", link.attributes)
    return written + _count(b"\x28", link.dropped_attributes) + b"\x35" + _flags(context)


def _link_context(context: SpanContext) -> bytes:
    written = _ids(context)
    return written + b"\x1a" + _text(context.trace_state.to_header()) if context.trace_state else written


def _ids(context: SpanContext) -> bytes:
    """Write fields 1 and 2, the same in spans and links."""
    return b"\x0a\x10" + context.trace_id.to_bytes(16, "big") + b"\x12\x08" + context.span_id.to_bytes(8, "big")


def _flags(context: SpanContext | None) -> bytes:
    return _pack_flags(_KNOWN | _REMOTE if context is not None and context.is_remote else _KNOWN)


# ---- values ------------------------------------------------------------------------------------------------


def _attributes(tag: bytes, attributes: Any) -> bytes:
    if not attributes:
        return b""
    parts: list[bytes] = []
    for key, value in attributes.copy().items():  # to look each up in what the SDK has takes a lock
        kind = type(value)
        is_short = kind is int or kind is bool or (kind is str and len(value) <= _SHORT_CHARS)
        parts += (tag, _short_pair(key, value) if is_short and len(key) <= _SHORT_CHARS else _pair(key, value))
    return b"".join(parts)


def _pair(key: str, value: Any) -> bytes:
    """Write a `KeyValue`."""
    return _sized(b"\x0a" + _text(key) + b"\x12" + _sized(_value(value)))


def _text_pair(key: str, text: str) -> bytes:
    return _sized(_key(key) + _sized(b"\x0a" + _text(text)))


@lru_cache(maxsize=256)
def _key(key: str) -> bytes:
    return b"\x0a" + _text(key) + b"\x12"


_short_pair = lru_cache(maxsize=4_096, typed=True)(_pair)


def _value(value: Any) -> bytes:
    """Write an `AnyValue`."""
    match value:
        case None:
            return b""
        case bool():
            return b"\x10\x01" if value else b"\x10\x00"
        case str():
            return b"\x0a" + _text(value)
        case int() if -(1 << 63) <= value < 1 << 63:
            return b"\x18" + _varint(value & (1 << 64) - 1)
        case float():
            return _pack_double(0x21, value)
        case bytes():
            return b"\x3a" + _sized(value)
        case Mapping():
            return b"\x32" + _sized(b"".join(b"\x0a" + _pair(str(key), each) for key, each in value.items()))
        case Sequence():
            return b"\x2a" + _sized(b"".join(b"\x0a" + _sized(_value(each)) for each in value))
    return b"\x0a" + _text(str(value))


def _text(text: str) -> bytes:
    return _sized(text.encode(errors="replace"))


def _sized(body: bytes) -> bytes:
    size = len(body)
    return (_BYTES[size] if size < 128 else _varint(size)) + body


def _count(tag: bytes, count: int) -> bytes:
    return tag + _varint(count) if count else b""


_BYTES = [bytes([number]) for number in range(256)]


def _varint(number: int) -> bytes:
    if number < 128:
        return _BYTES[number]
    parts = []
    while number >= 128:
        parts.append(_BYTES[number & 127 | 128])
        number >>= 7
    return b"".join(parts) + _BYTES[number]
