"""Spans of who enqueues, and what jobs carry of them."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from packhorse import Packhorse, chain
from packhorse.backends.base import Query, QueueChange
from packhorse.errors import QueueFull
from packhorse.job import META_MAX, META_VALUE_CHARS_MAX
from packhorse.observe.spans import remote
from packhorse.observe.trace_context import read_traceparent

from ..worker.working import new_app, work
from .receiver import is_child, traced_app, traceparent_of
from .test_trace_context import GOOD, HOSTILE

UNSAMPLED = GOOD[:-2] + "00"


async def meta_of(app: Packhorse, *ids: str) -> list[dict[str, str]]:
    return [record.meta or {} for record in await (await app.backend()).get(ids) if record is not None]


def test_an_enqueue_is_a_send_span_whose_context_the_job_carries() -> None:
    app, spans = traced_app()

    async def scenario() -> None:
        job = await app.aenqueue("email", {"to": "a"}, queue="mail")
        (meta,) = await meta_of(app, job.id)
        span = spans.one("send mail")
        assert meta == {"traceparent": traceparent_of(span)}
        assert span.kind is SpanKind.PRODUCER
        assert span.parent is None
        assert dict(span.attributes or {}) == {
            "messaging.system": "packhorse",
            "messaging.operation.type": "send",
            "messaging.operation.name": "send",
            "messaging.destination.name": "mail",
            "messaging.message.id": job.id,
            "packhorse.job.type": "email",
        }
        await app.aclose()

    work(scenario)


def test_many_jobs_in_one_call_are_one_span_for_each_queue() -> None:
    app, spans = traced_app()

    async def scenario() -> None:
        jobs = await app.aenqueue_many(
            [{"type": "a"}, {"type": "b"}, {"type": "c", "queue": "other"}, {"type": "c", "queue": "third"}]
        )
        metas = await meta_of(app, *[job.id for job in jobs])
        default = spans.one("send default")
        assert [meta["traceparent"] for meta in metas[:2]] == [traceparent_of(default)] * 2
        assert (default.attributes or {})["messaging.batch.message_count"] == 2
        assert "messaging.message.id" not in (default.attributes or {})
        other = spans.one("send other")
        assert "messaging.batch.message_count" not in (other.attributes or {})
        assert metas[2]["traceparent"] == traceparent_of(other)
        assert len(spans.all) == 3
        await app.aclose()

    work(scenario)


def test_blocking_code_enqueues_below_its_own_span() -> None:
    app, spans = traced_app()
    with spans.provider.get_tracer("mine").start_as_current_span("checkout"):
        app.enqueue("email")
    assert is_child(spans.one("send default"), spans.one("checkout"))
    app.close()


def test_below_a_span_that_is_not_kept_nothing_is_made_and_the_job_says_so() -> None:
    app, spans = traced_app()
    given = read_traceparent(UNSAMPLED)
    assert given is not None
    with trace.use_span(trace.NonRecordingSpan(remote(given))):
        job = app.enqueue("email")
    assert app.job(job.id).record().meta == {"traceparent": UNSAMPLED}
    assert not spans.all
    app.close()


def test_a_root_that_is_not_kept_leaves_no_context_and_no_span() -> None:
    app, spans = traced_app(share=0)
    job = app.enqueue("email", meta={"user": "u"})
    assert app.job(job.id).record().meta == {"user": "u"}
    assert not spans.all
    app.close()


def test_of_jobs_that_begin_traces_the_share_is_kept_and_the_worker_decides_alike() -> None:
    app, _ = traced_app(share=0.25)

    async def scenario() -> None:
        ids = [job.id for start in range(4) for job in await app.aenqueue_many([{"type": "t"}] * 500)]
        tracing = app.tracing()
        assert tracing is not None
        for job_id, meta in zip(ids[:1000], await meta_of(app, *ids[:1000]), strict=True):
            assert ("traceparent" in meta) == tracing.keeps(job_id)
        kept = sum(map(tracing.keeps, ids))
        assert 350 < kept < 650  # 500 of 2,000; more than 7 standard deviations
        await app.aclose()

    work(scenario)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_context_that_the_job_was_given_is_left_alone(share: float) -> None:
    app, spans = traced_app(share)
    for given in (GOOD, UNSAMPLED):
        job = app.enqueue("email", meta={"traceparent": given, "tracestate": "x=1"})
        assert app.job(job.id).record().meta == {"traceparent": given, "tracestate": "x=1"}
    assert not spans.all
    app.close()


@pytest.mark.parametrize("name", [name for name, text in HOSTILE.items() if len(text) <= META_VALUE_CHARS_MAX])
def test_a_context_that_is_not_valid_is_replaced(name: str) -> None:
    app, spans = traced_app()
    job = app.enqueue("email", meta={"traceparent": HOSTILE[name]})
    assert app.job(job.id).record().meta == {"traceparent": traceparent_of(spans.one("send default"))}
    app.close()


def test_a_job_whose_meta_is_full_is_stored_all_the_same() -> None:
    app, spans = traced_app()
    meta = {f"name{number}": "x" for number in range(META_MAX)}
    job = app.enqueue("email", meta=meta)
    assert app.job(job.id).record().meta == meta
    assert spans.one("send default")
    app.close()


def test_a_refused_enqueue_is_an_error_without_the_payload() -> None:
    app, spans = traced_app(enqueue_timeout=0)

    async def scenario() -> None:
        await (await app.backend()).queues([QueueChange(queue="default", capacity=1)])
        await app.aenqueue("email")
        with pytest.raises(QueueFull):
            await app.aenqueue("email", {"password": "canary"})
        _, refused = spans.named("send default")
        assert refused.status.status_code is StatusCode.ERROR
        assert (refused.attributes or {})["error.type"] == "QueueFull"
        assert "canary" not in refused.to_json()
        await app.aclose()

    work(scenario)


def test_jobs_of_a_workflow_are_in_one_trace() -> None:
    app, spans = traced_app()

    @app.task
    async def step() -> None: ...

    async def scenario() -> None:
        run = await app.workflow(chain(step.job(), step.job(), step.job())).aenqueue()
        assert run.id
        span = spans.one("send default")
        page = await (await app.backend()).find(Query())
        assert {(job.meta or {})["traceparent"] for job in page.jobs} == {traceparent_of(span)}
        await app.aclose()

    work(scenario)


def test_a_schedule_does_not_remember_where_it_was_defined() -> None:
    app, spans = traced_app()

    async def scenario() -> None:
        with spans.provider.get_tracer("mine").start_as_current_span("setting up"):
            await app.aenqueue("report", recurring={"cron_expression": "0 9 * * *"})
        (schedule,) = await (await app.backend()).schedules()
        assert "traceparent" not in (schedule.spec.meta or {})
        await app.aclose()

    work(scenario)


def test_off_loads_nothing_and_changes_nothing() -> None:
    app = new_app()
    assert app.tracing() is None
    job = app.enqueue("email")
    assert app.job(job.id).record().meta is None
    app.close()
