"""What others have hung up in OpenTelemetry may fail at any call. That costs spans; no worker, job or request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext

from packhorse import Context, Fail, Packhorse
from packhorse.errors import Unavailable
from packhorse.job import State
from packhorse.observe.spans import Tracing

from ..server.kit import client_of
from ..worker.working import ended, faulty_app, new_app, work

WAYS = ["on_start", "on_end", "cancelled", "sampler", "span"]


class Foreign(TracerProvider):
    """A provider with something in it that fails, as long as `fails`."""

    def __init__(self, way: str) -> None:
        self.fails = True
        self.spans = InMemorySpanExporter()
        super().__init__(sampler=_Sampler(self) if way == "sampler" else ALWAYS_ON, shutdown_on_exit=False)
        self.add_span_processor(_Processor(self, way))
        self.add_span_processor(SimpleSpanProcessor(self.spans))
        self._way = way

    def break_if(self, is_here: bool) -> None:
        if is_here and self.fails:
            raise asyncio.CancelledError if self._way == "cancelled" else ZeroDivisionError("not ours")

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        tracer = super().get_tracer(*args, **kwargs)
        return _Tracer(self, tracer) if self._way == "span" else tracer


class _Processor(SpanProcessor):
    def __init__(self, provider: Foreign, way: str) -> None:
        self._provider = provider
        self._way = way

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self._provider.break_if(self._way == "on_start")

    def on_end(self, span: Any) -> None:
        self._provider.break_if(self._way in {"on_end", "cancelled"})


class _Sampler(Sampler):
    def __init__(self, provider: Foreign) -> None:
        self._provider = provider

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        self._provider.break_if(True)
        return ALWAYS_ON.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "failing"


class _Tracer:
    """Makes spans that tell what they are, of which no other call works."""

    def __init__(self, provider: Foreign, inner: Any) -> None:
        self._provider = provider
        self._inner = inner

    def start_span(self, *args: Any, **kwargs: Any) -> Any:
        span = self._inner.start_span(*args, **kwargs)
        return _Span(span.get_span_context()) if self._provider.fails else span


class _Span(NonRecordingSpan):
    def __init__(self, context: SpanContext) -> None:
        super().__init__(context)

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("not ours")

    def is_recording(self) -> bool:
        return True

    end = set_attribute = set_attributes = set_status = add_event = update_name = _fail


def foreign(app: Packhorse, way: str) -> Foreign:
    provider = Foreign(way)
    app._tracing = Tracing(provider)
    return provider


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "span" in record.getMessage()]


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_and_its_jobs_go_on_whatever_a_foreign_processor_does(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = new_app(tracing="on")
    provider = foreign(app, way)

    @app.task
    async def first(ctx: Context) -> str:
        ctx.then(second)
        await second.aenqueue()
        return "done"

    @app.task
    def second() -> None: ...

    @app.task(max_attempts=1)
    async def fails() -> None:
        raise KeyError("mine")

    @app.task
    async def gives_up() -> None:
        raise Fail("never")

    @app.task(timeout="20ms", max_attempts=1)
    async def hangs() -> None:
        await asyncio.sleep(60)

    async def scenario() -> None:
        worker = app.worker()
        async with worker:
            with caplog.at_level(logging.INFO):
                jobs = await app.aenqueue_many([first.job() for _ in range(20)])
                for job in jobs:
                    record = await ended(app, job)
                    assert (record.state, record.attempt) == (State.SUCCEEDED, 1)
                for task, kind in ((fails, "KeyError"), (gives_up, "Fail"), (hangs, "TimedOut")):
                    record = await ended(app, await task.aenqueue())
                    assert record.state is State.FAILED
                    assert record.errors[-1].kind == kind
                assert len(said(caplog)) == 1
                assert worker.engine is not None
                provider.fails = False
                await ended(app, await second.aenqueue())
                assert [span.name for span in provider.spans.get_finished_spans()][-3:].count("process default") == 1
                assert len(said(caplog)) == 2
                assert "again" in said(caplog)[1]
        assert not trace.get_current_span().get_span_context().is_valid
        await app.aclose()

    work(scenario)


@pytest.mark.parametrize("way", WAYS)
def test_a_program_enqueues_whatever_a_foreign_processor_does(way: str, caplog: pytest.LogCaptureFixture) -> None:
    app = new_app(tracing="on")
    foreign(app, way)
    for _ in range(3):
        job = app.enqueue("email")
        text = (app.job(job.id).record().meta or {}).get("traceparent")
        assert (text is None) == (way in {"on_start", "sampler"})  # nothing that is not valid is carried
    assert len(said(caplog)) == 1
    app.close()


@pytest.mark.parametrize("way", WAYS)
def test_the_error_of_the_store_is_what_a_failed_enqueue_says(way: str) -> None:
    app, backend = faulty_app(tracing="on")
    foreign(app, way)

    def fail() -> None:
        raise Unavailable("away")

    async def enqueue(specs: Any) -> Any:
        fail()

    backend.enqueue = enqueue  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="away"):
        app.enqueue("email")
    app.close()


@pytest.mark.parametrize("way", WAYS)
def test_requests_are_answered_whatever_a_foreign_processor_does(way: str, caplog: pytest.LogCaptureFixture) -> None:
    app = new_app(tracing="on")
    foreign(app, way)

    async def scenario() -> None:
        async with client_of(app) as client:
            await _ask(client)

    async def _ask(client: httpx.AsyncClient) -> None:
        for _ in range(3):
            assert (await client.post("/api/v1/jobs", json={"type": "email"})).status_code == 201
            assert (await client.get("/api/v1/jobs/none")).status_code == 404
        assert len(said(caplog)) == 1
        assert not trace.get_current_span().get_span_context().is_valid

    work(scenario)
