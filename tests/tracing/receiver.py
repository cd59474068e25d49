"""A receiver of OTLP over HTTP, and an app whose spans stay in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from packhorse import Packhorse
from packhorse.observe.spans import Tracing

from ..worker.working import new_app


class Seen(NamedTuple):
    """A span as it arrived; ids in hex."""

    name: str
    kind: str
    trace: str
    span: str
    parent: str
    attributes: dict[str, Any]
    links: list[str]  # the spans that it names
    status: str
    events: list[tuple[str, dict[str, Any]]]
    service: str
    starts_ns: int
    ends_ns: int
    text: str  # all of it, as text


class Receiver:
    """What arrived. `answer` may be a status, or None: it never answers."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer: int | None = 200
        self.asked = 0
        self.url = ""
        self.over = threading.Event()

    def named(self, name: str) -> list[Seen]:
        return [span for span in list(self.seen) if span.name == name]

    def one(self, name: str) -> Seen:
        (span,) = self.named(name)
        return span

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.seen += [_seen(span, service) for span in scope.spans]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _seen(span: ProtoSpan, service: str) -> Seen:
    return Seen(
        name=span.name,
        kind=ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace=span.trace_id.hex(),
        span=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=_attributes(span.attributes),
        links=[link.span_id.hex() for link in span.links],
        status={0: "UNSET", 1: "OK", 2: "ERROR"}[span.status.code],
        events=[(event.name, _attributes(event.attributes)) for event in span.events],
        service=service,
        starts_ns=span.start_time_unix_nano,
        ends_ns=span.end_time_unix_nano,
        text=str(span),
    )


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive spans while the block runs."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.asked += 1
            if receiver.answer is None:
                receiver.over.wait(60)
                return
            if receiver.answer == 200:
                assert self.path == "/v1/traces"
                receiver.take(body)
            self.send_response(receiver.answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.over.set()
        server.shutdown()
        server.server_close()
        thread.join(60)


class Spans:
    """The spans that an app in this process has made and ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


def trace_in(app: Packhorse, share: float = 1.0) -> Spans:
    """Let an app make spans that stay here."""
    spans = Spans()
    app._tracing = Tracing(spans.provider, share)
    return spans


def traced_app(share: float = 1.0, **settings: Any) -> tuple[Packhorse, Spans]:
    """An app on a memory store of its own whose spans stay here."""
    app = new_app(**{"tracing": "on", **settings})
    return app, trace_in(app, share)


def is_child(child: ReadableSpan, above: ReadableSpan) -> bool:
    """Tell whether a span is the child of another."""
    return (
        child.parent is not None
        and child.parent.span_id == above.context.span_id
        and child.context.trace_id == above.context.trace_id
    )


def traceparent_of(span: ReadableSpan) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
