"""Spans of a worker: runs, and the claims and settles around them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from packhorse import Cancel, Context, Fail, Packhorse, Retry, Snooze
from packhorse.backends.base import Settlement, Verdict
from packhorse.errors import Unavailable
from packhorse.job import JobSpec, State
from packhorse.observe import metrics, run_spans
from packhorse.observe.current import CURRENT_TRACE
from packhorse.observe.meters import Histogram
from packhorse.observe.runs import Ended
from packhorse.observe.spans import Tracing
from packhorse.outcome import SUCCEEDED

from ..worker.working import ended, faulty_app, new_app, until, work
from .receiver import is_child, trace_in, traced_app, traceparent_of
from .test_trace_context import GOOD, HOSTILE

UNSAMPLED = GOOD[:-2] + "00"


def running(app: Packhorse, scenario: Any, **options: Any) -> None:
    """Run a scenario while a worker of the app runs."""

    async def main() -> None:
        async with app.worker(**options):
            await scenario()
        await app.aclose()

    work(main)


def test_a_job_is_one_trace_from_send_to_settle() -> None:
    app, spans = traced_app()

    @app.task
    async def email(to: str) -> str:
        return to

    async def scenario() -> None:
        job = await email.using(queue="default").aenqueue(to="canary@example.com")
        await ended(app, job)
        send, process = spans.one("send default"), spans.one("process default")
        assert is_child(process, send)
        assert process.kind is SpanKind.CONSUMER
        assert process.status.status_code is StatusCode.UNSET
        assert dict(process.attributes or {}) == {
            "messaging.system": "packhorse",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": "default",
            "messaging.message.id": job.id,
            "packhorse.job.type": "email",
            "packhorse.job.attempt": 1,
        }
        receive = spans.one("receive default")
        assert receive.kind is SpanKind.CLIENT
        assert [link.context.span_id for link in receive.links] == [send.context.span_id]
        assert is_child(receive, send)
        assert (receive.attributes or {})["messaging.batch.message_count"] == 1
        await until(lambda: spans.named("settle default"))
        settle = spans.one("settle default")
        assert settle.kind is SpanKind.CLIENT
        assert [link.context.span_id for link in settle.links] == [process.context.span_id]
        assert is_child(settle, process)
        assert len(spans.all) == 4
        for span in spans.all:
            assert "canary" not in span.to_json()
            assert (span.start_time or 0) <= (span.end_time or 0)

    running(app, scenario)


def test_a_batch_of_several_traces_is_a_trace_of_its_own_that_is_linked_to_each() -> None:
    app, backend = faulty_app(tracing="on")
    spans = trace_in(app)
    gate = asyncio.Event()

    @app.task
    async def first() -> None: ...

    @app.task
    async def email() -> None:
        await gate.wait()

    async def scenario() -> None:
        await first.aenqueue()
        for _ in range(3):
            await email.aenqueue()
        settle, all_ended = backend.settle, asyncio.Event()

        async def held(settlements: Sequence[Settlement]) -> list[Verdict]:
            """Settle the first job only once the others have ended too: then they are one batch."""
            gate.set()
            await all_ended.wait()
            return await settle(settlements)

        backend.settle = held  # type: ignore[method-assign]
        async with app.worker() as worker:
            await until(lambda: worker.engine.settler.pending == 4)
            all_ended.set()
            await until(lambda: len(spans.named("settle default")) == 2)
        sends = {span.context.span_id for span in spans.named("send default")}
        runs = [span.context.span_id for span in spans.named("process default")]
        receive, settle_of_rest = spans.one("receive default"), spans.named("settle default")[1]
        assert {link.context.span_id for link in receive.links} == sends
        assert {link.context.span_id for link in settle_of_rest.links} == set(runs[1:])
        for span, jobs in ((receive, 4), (settle_of_rest, 3)):
            assert span.parent is None
            assert (span.attributes or {})["messaging.batch.message_count"] == jobs
        await app.aclose()

    work(scenario)


def test_jobs_of_one_enqueue_are_one_link_of_their_claim() -> None:
    app, spans = traced_app()

    @app.task
    async def email() -> None: ...

    async def scenario() -> None:
        await app.aenqueue_many([email.job() for _ in range(5)])
        await email.aenqueue()
        async with app.worker():
            # Each run is settled and linked once; in how many batches is up to the machine.
            await until(lambda: sum(len(span.links) for span in spans.named("settle default")) == 6)
        receive = spans.one("receive default")
        assert [link.context.span_id for link in receive.links] == [
            span.context.span_id for span in spans.named("send default")
        ]
        assert (receive.attributes or {})["messaging.batch.message_count"] == 6
        settled = {link.context.span_id for span in spans.named("settle default") for link in span.links}
        assert settled == {span.context.span_id for span in spans.named("process default")}
        await app.aclose()

    work(scenario)


def test_a_stale_settlement_is_not_taken_for_that_of_a_later_run() -> None:
    app, spans = traced_app()
    recorder = run_spans.RunSpans(app.tracing())  # type: ignore[arg-type]
    seconds = Histogram(metrics.JOB_SECONDS_BY_QUEUE)

    async def scenario() -> None:
        await app.aenqueue("job")
        (claimed,) = await (await app.backend()).claim(["default"], 1, 30_000, "w")
        recorder.begin(claimed, contextvars.copy_context())
        recorder.end(claimed, SUCCEEDED, seconds, 1)
        for token in ("another", claimed.token, claimed.token):
            runs = recorder.ended_of([Settlement(id=claimed.id, token=token, state=State.SUCCEEDED)])
            assert bool(runs) == (token == claimed.token and not spans.named("settle default"))
            if runs:
                with recorder.settling(runs):
                    pass
        assert len(spans.named("settle default")) == 1
        await app.aclose()

    work(scenario)


def test_each_attempt_is_a_run_below_the_same_send() -> None:
    app, spans = traced_app()

    @app.task(max_attempts=3, backoff="1ms", backoff_max="1ms")
    async def flaky(ctx: Context) -> None:
        if ctx.attempt < 3:
            raise ConnectionError("no answer")

    async def scenario() -> None:
        job = await flaky.aenqueue()
        await ended(app, job)
        send, runs = spans.one("send default"), spans.named("process default")
        assert [(run.attributes or {})["packhorse.job.attempt"] for run in runs] == [1, 2, 3]
        assert all(is_child(run, send) for run in runs)
        assert [run.status.status_code for run in runs] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
        await job.arerun()
        await until(lambda: len(spans.named("process default")) == 6)
        assert is_child(spans.named("process default")[3], send)

    running(app, scenario)


def test_c20_a_failure_says_what_it_was_without_locals_and_payload() -> None:
    app, spans = traced_app()

    @app.task(max_attempts=1)
    async def charge(card: str) -> None:
        number = f"local-{card}"
        raise ValueError("the bank said no") from KeyError(len(number))

    async def scenario() -> None:
        await ended(app, await charge.aenqueue(card="canary-4711"))
        run = spans.one("process default")
        assert run.status.status_code is StatusCode.ERROR
        assert (run.attributes or {})["error.type"] == "ValueError"
        (event,) = run.events
        attributes = dict(event.attributes or {})
        assert event.name == "exception"
        assert attributes["exception.type"] == "ValueError"
        assert attributes["exception.message"] == "the bank said no"
        assert "the bank said no" in str(attributes["exception.stacktrace"])
        assert not any("canary" in span.to_json() for span in spans.all)

    running(app, scenario)


@pytest.mark.parametrize(
    ("raised", "outcome", "error_type"),
    [
        (Fail("never"), "permanent", "Fail"),
        (Retry("1h"), "retry", "Retry"),
        (Snooze("1h"), "snooze", None),
        (Cancel("no need"), "cancelled", None),
        (SystemExit(3), "error", "SystemExit"),
    ],
    ids=["fail", "retry", "snooze", "cancel", "exit"],
)
def test_the_end_of_a_run_says_what_it_came_to(raised: BaseException, outcome: str, error_type: str | None) -> None:
    app, spans = traced_app()

    @app.task
    async def job() -> None:
        raise raised

    async def scenario() -> None:
        await job.aenqueue()
        await until(lambda: spans.named("process default"))
        run = spans.named("process default")[0]  # one that failed may be tried again at once
        assert (run.attributes or {})["packhorse.job.outcome"] == outcome
        assert (run.attributes or {}).get("error.type") == error_type
        assert (run.status.status_code is StatusCode.ERROR) == (error_type is not None)

    running(app, scenario)


def test_a_run_that_is_stopped_ends_its_span() -> None:
    app, spans = traced_app()

    @app.task(timeout="50ms", max_attempts=1)
    async def too_slow() -> None:
        await asyncio.sleep(60)

    begun = asyncio.Event()

    @app.task
    async def unwanted() -> None:
        begun.set()
        await asyncio.sleep(60)

    async def scenario() -> None:
        await ended(app, await too_slow.aenqueue())
        (run,) = spans.named("process default")
        assert (run.attributes or {})["error.type"] == "TimedOut"
        job = await unwanted.aenqueue()
        await asyncio.wait_for(begun.wait(), 60)  # before that it would not be started at all
        await job.acancel()
        await ended(app, job)
        run = spans.named("process default")[-1]
        assert (run.attributes or {})["packhorse.job.outcome"] == "cancelled"

    running(app, scenario)


def test_a_run_that_ignores_its_stop_ends_its_span() -> None:
    app, spans = traced_app()
    free = threading.Event()

    @app.task(timeout="20ms", max_attempts=1)
    def stuck() -> None:
        free.wait(60)

    async def scenario() -> None:
        job = await stuck.aenqueue()
        await ended(app, job)
        assert (spans.one("process default").attributes or {})["error.type"] == "TimedOut"
        free.set()

    running(app, scenario, stop_grace_ms=20)


def test_a_run_that_was_lost_ends_its_span() -> None:
    app, spans = traced_app()
    started = asyncio.Event()

    @app.task
    async def slow() -> None:
        started.set()
        await asyncio.sleep(60)

    async def scenario() -> None:
        worker = app.worker()
        async with worker:
            await slow.aenqueue()
            await started.wait()
            assert worker.engine is not None
            worker.engine.apply_pulse({}, frozenset(), app.clock.boot_ms() + 1)
            await until(lambda: spans.named("process default"))
            run = spans.one("process default")
            assert (run.attributes or {})["error.type"] == "LeaseLost"
            assert run.status.status_code is StatusCode.ERROR
            await (await app.backend()).retire(worker.engine.info.id, "over")
        await app.aclose()

    work(scenario)


def test_what_a_handler_does_is_within_its_run() -> None:
    app, spans = traced_app()
    mine = spans.provider.get_tracer("mine")
    seen: list[str | None] = []

    @app.task
    async def on_loop() -> None:
        await asyncio.sleep(0)
        with mine.start_as_current_span("async work"):
            seen.append(CURRENT_TRACE.get())

    @app.task
    def in_thread() -> None:
        with mine.start_as_current_span("thread work"):
            seen.append(CURRENT_TRACE.get())

    async def scenario() -> None:
        assert CURRENT_TRACE.get() is None
        for task, name in ((on_loop, "async work"), (in_thread, "thread work")):
            await ended(app, await task.aenqueue())
            run = spans.named("process default")[-1]
            assert is_child(spans.one(name), run)
            assert seen.pop() == f"{run.context.trace_id:032x}"
        assert not trace.get_current_span().get_span_context().is_valid

    running(app, scenario)


def test_jobs_that_a_run_makes_are_in_its_trace() -> None:
    app, spans = traced_app()

    @app.task
    async def first(ctx: Context) -> None:
        ctx.then(second, queue="after")
        await second.using(queue="beside").aenqueue()

    @app.task
    async def second() -> None: ...

    async def scenario() -> None:
        await first.aenqueue()
        await until(lambda: spans.named("process after") and spans.named("process beside"))
        run = spans.one("process default")
        create, send = spans.one("create after"), spans.one("send beside")
        assert is_child(create, run)
        assert is_child(send, run)
        assert create.kind is send.kind is SpanKind.PRODUCER
        assert (create.attributes or {})["messaging.operation.type"] == "create"
        assert is_child(spans.one("process after"), create)
        assert is_child(spans.one("process beside"), send)

    running(app, scenario, queues=["default", "after", "beside"])


def test_a_schedule_begins_a_trace_with_each_slot() -> None:
    app, spans = traced_app()

    @app.schedule(every="1s")
    @app.task
    async def tick() -> None: ...

    async def scenario() -> None:
        await until(lambda: len(spans.named("process default")) >= 2)
        runs = spans.named("process default")
        assert len({run.context.trace_id for run in runs}) == len(runs)
        assert all(run.parent is None for run in runs)

    running(app, scenario)


# ---- what is not traced ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_job_with_a_context_that_is_not_valid_begins_a_trace(name: str) -> None:
    app, spans = traced_app()

    @app.task
    async def job() -> None: ...

    async def scenario() -> None:
        # Past the door: whatever a client of another version has put there.
        await (await app.backend()).enqueue([JobSpec(id="a" * 36, type="job", meta={"traceparent": HOSTILE[name]})])
        await until(lambda: spans.named("process default"))
        assert spans.one("process default").parent is None
        await until(lambda: spans.named("settle default"))
        assert not spans.named("receive default")

    running(app, scenario)


@pytest.mark.parametrize("made_by", ["a parent", "the dice"])
def test_a_job_that_is_not_kept_makes_no_span_at_all(made_by: str) -> None:
    app, spans = traced_app(share=1.0 if made_by == "a parent" else 0.0)
    metas: list[dict[str, str]] = []

    @app.task
    async def first(ctx: Context) -> None:
        ctx.then(second)
        await second.aenqueue()

    @app.task
    async def second(ctx: Context) -> None:
        assert CURRENT_TRACE.get() is None
        metas.append(ctx.meta)

    async def scenario() -> None:
        await first.using(meta={"traceparent": UNSAMPLED} if made_by == "a parent" else {}).aenqueue()
        await until(lambda: len(metas) == 2)
        assert metas == [{"traceparent": UNSAMPLED} if made_by == "a parent" else {}] * 2
        assert not spans.all

    running(app, scenario)


@pytest.mark.parametrize("given", [GOOD, UNSAMPLED])
def test_a_worker_that_makes_no_spans_hands_the_trace_on(given: str) -> None:
    app = new_app()
    metas: list[dict[str, str]] = []

    @app.task
    async def first(ctx: Context) -> None:
        ctx.then(second)
        await second.aenqueue()

    @app.task
    async def second(ctx: Context) -> None:
        metas.append(ctx.meta)

    async def scenario() -> None:
        await first.using(meta={"traceparent": given, "tracestate": "x=1"}).aenqueue()
        await until(lambda: len(metas) == 2)
        assert metas == [{"traceparent": given, "tracestate": "x=1"}] * 2

    running(app, scenario)


def test_a_provider_that_keeps_nothing_is_obeyed() -> None:
    app = new_app(tracing="on")
    app._tracing = Tracing(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    metas: list[dict[str, str]] = []

    @app.task
    async def job(ctx: Context) -> None:
        assert CURRENT_TRACE.get() is None
        metas.append(ctx.meta)

    async def scenario() -> None:
        await job.aenqueue()
        await until(lambda: metas)
        assert metas[0]["traceparent"].endswith("-00")

    running(app, scenario)


# ---- what others are told ----------------------------------------------------------------------------------


def test_the_end_of_a_run_and_its_bucket_name_its_trace() -> None:
    app, spans = traced_app()
    told: list[Ended] = []

    class Listener:
        def ended(self, end: Ended) -> None:
            told.append(end)

    @app.task(max_attempts=1)
    async def job(fails: bool) -> None:
        if fails:
            raise ValueError("no")

    async def scenario() -> None:
        worker = app.worker()
        async with worker:
            assert worker.engine is not None
            runs = worker.engine.runs
            runs.listeners.append(Listener())
            runs.success_listeners.append(Listener())
            for fails in (False, True):
                await ended(app, await job.aenqueue(fails=fails))
            traces = [f"{run.context.trace_id:032x}" for run in spans.named("process default")]
            assert [end.trace_id for end in told] == traces
            cell = worker.engine.sheet.histogram(metrics.JOB_SECONDS_BY_QUEUE, "default", "job")
            exemplars = (cell.exemplars or {}).values()
            assert {exemplar.trace_id for exemplar in exemplars} <= set(traces)
            assert traces[-1] in {exemplar.trace_id for exemplar in exemplars}
        await app.aclose()

    work(scenario)


def test_a_settle_that_fails_says_so_and_the_next_one_is_linked_again() -> None:
    app, backend = faulty_app(tracing="on")
    spans = trace_in(app)
    left = [1]

    def fail() -> None:
        if left[0]:
            left[0] -= 1
            raise Unavailable("away")

    @app.task
    async def job() -> None: ...

    async def scenario() -> None:
        backend.fail["settle"] = fail
        await ended(app, await job.aenqueue())
        await until(lambda: len(spans.named("settle default")) == 2)
        first, second = spans.named("settle default")
        assert first.status.status_code is StatusCode.ERROR
        assert (first.attributes or {})["error.type"] == "Unavailable"
        assert second.status.status_code is StatusCode.UNSET
        assert len(second.links) == 1

    running(app, scenario)


def test_what_was_kept_for_a_settle_that_never_comes_is_bounded() -> None:
    app, spans = traced_app()
    recorder = run_spans.RunSpans(app.tracing())  # type: ignore[arg-type]
    seconds = Histogram(metrics.JOB_SECONDS_BY_QUEUE)

    async def scenario() -> None:
        await app.aenqueue("job")
        (claimed,) = await (await app.backend()).claim(["default"], 1, 30_000, "w")
        limit = run_spans.ENDED_MAX
        run_spans.ENDED_MAX = 20
        try:
            for number in range(100):
                one = msgspec.structs.replace(claimed, id=str(number))
                recorder.begin(one, contextvars.copy_context())
                assert recorder.end(one, SUCCEEDED, seconds, 1)
                assert len(recorder._ended) <= 20
        finally:
            run_spans.ENDED_MAX = limit
        assert not recorder.open
        await app.aclose()

    work(scenario)
    assert traceparent_of(spans.one("send default"))
