"""Enqueue: stored whole, in order, once, all or none."""

from __future__ import annotations

import asyncio

from ...backends.base import BATCH_MAX, Enqueued, Query
from ...errors import InvalidOption, Unsupported
from ...job import DELAY_MS_MAX, MAX_ATTEMPTS_MAX, TIMEOUT_MS_MAX, JobRecord, JobSpec, State, Unique
from .case import case, equal, raises, true
from .harness import Harness

_META = {"user": "müller", "trace": "00-4bf92f", "empty": ""}


@case()
async def enqueue_keeps_every_field_of_a_spec(h: Harness) -> None:
    spec = h.spec(
        type="image.resize",
        payload=b'{"source":"a.png"}',
        queue="images",
        priority=2,
        max_attempts=7,
        timeout_ms=45_000,
        unique=Unique(key="a.png") if h.backend.capabilities.unique else None,
        key="tenant-7",
        tags=("big", "png"),
        meta=_META,
        workflow="w-1",
        node="resize",
        schedule="nightly",
        slot_at_ms=1_700_000_000_000,
    )
    equal(await h.backend.enqueue([spec]), [Enqueued(spec.id, True)], "answer")
    record = await h.record(spec.id)
    for name in JobSpec.__struct_fields__:
        if name in JobRecord.__struct_fields__ and name != "unique":
            equal(getattr(record, name), getattr(spec, name), name)
    equal(record.unique, "a.png" if h.backend.capabilities.unique else None, "unique")


@case()
async def enqueue_keeps_every_field_at_its_limit(h: Harness) -> None:
    spec = h.spec(
        type="t" * 128,
        queue="Q-._9" * 25,
        priority=9,
        max_attempts=MAX_ATTEMPTS_MAX,
        timeout_ms=TIMEOUT_MS_MAX,
        delay_ms=DELAY_MS_MAX,
        key="k🐴" * 128,
        tags=tuple(f"tag-{number}" for number in range(32)),
        meta={f"name-{number}": "ü" * 1_024 for number in range(32)},
    )
    await h.backend.enqueue([spec])
    record = await h.record(spec.id)
    for name in ("type", "queue", "priority", "max_attempts", "timeout_ms", "key", "tags", "meta"):
        equal(getattr(record, name), getattr(spec, name), name)
    equal(record.due_at_ms - record.created_at_ms, DELAY_MS_MAX, "due after creation, ms")


@case()
async def a_new_job_has_no_past(h: Harness) -> None:
    record = await h.record(await h.add())
    equal(record.attempt, 0, "attempt")
    equal((record.result, record.errors, record.worker), (None, (), None), "result, errors, worker")
    equal((record.started_at_ms, record.finished_at_ms), (None, None), "started, finished")
    equal((record.progress, record.progress_note, record.cancel_requested), (None, None, False), "progress, cancel")
    equal((record.unique, record.key, record.tags, record.meta), (None, None, (), None), "what was not given")


@case()
async def a_job_without_delay_is_pending(h: Harness) -> None:
    record = await h.record(await h.add())
    equal(record.state, State.PENDING, "state")
    equal(record.due_at_ms, record.created_at_ms, "due at")


@case()
async def a_job_with_a_delay_is_scheduled_and_due_after_it(h: Harness) -> None:
    record = await h.record(await h.add(delay_ms=5_000))
    equal(record.state, State.SCHEDULED, "state")
    equal(record.due_at_ms - record.created_at_ms, 5_000, "due after creation, ms")


@case()
async def a_job_is_created_at_the_time_of_the_store(h: Harness) -> None:
    first = await h.record(await h.add())
    await h.advance(h.step_ms)
    second = await h.record(await h.add())
    passed_ms = second.created_at_ms - first.created_at_ms
    true(h.step_ms <= passed_ms <= h.step_ms + 5_000, f"{h.step_ms} ms apart, recorded as {passed_ms}")


@case()
async def answers_come_in_the_order_given(h: Harness) -> None:
    old = await h.add()
    specs = [h.spec(), h.spec(id=old), h.spec(delay_ms=9_000), h.spec(queue="other")]
    answers = await h.backend.enqueue(specs)
    equal([answer.id for answer in answers], [spec.id for spec in specs], "ids")
    equal([answer.created for answer in answers], [True, False, True, True], "created")


@case()
async def enqueue_of_nothing_answers_nothing(h: Harness) -> None:
    equal(await h.backend.enqueue([]), [], "answer")
    equal(await h.all(), [], "jobs")


@case()
async def an_id_repeated_in_a_later_call_changes_nothing(h: Harness) -> None:
    spec = h.spec(payload=b"[1]")
    await h.backend.enqueue([spec])
    before = await h.record(spec.id)
    again = h.spec(id=spec.id, payload=b"[2]", queue="other", type="else", priority=0, delay_ms=5_000)
    equal(await h.backend.enqueue([again]), [Enqueued(spec.id, False)], "answer")
    equal(await h.record(spec.id), before, "record")
    equal(len(await h.claim(5)), 1, "claimable copies")


@case()
async def an_id_repeated_within_a_call_is_stored_once(h: Harness) -> None:
    spec = h.spec()
    equal(await h.backend.enqueue([spec, spec]), [Enqueued(spec.id, True), Enqueued(spec.id, False)], "answers")
    equal(len(await h.all()), 1, "jobs")
    equal(len(await h.claim(5)), 1, "claimable copies")


@case()
async def an_id_repeated_while_its_job_runs_or_has_ended_changes_nothing(h: Harness) -> None:
    for state in (State.SCHEDULED, State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED):
        job_id, _ = await h.put(state, queue=f"for-{state}")
        before = await h.record(job_id)
        equal(await h.backend.enqueue([h.spec(id=job_id)]), [Enqueued(job_id, False)], f"answer while {state}")
        equal(await h.record(job_id), before, f"record of a {state} job")


@case()
async def an_id_enqueued_on_several_connections_at_once_is_stored_once(h: Harness) -> None:
    connections = await h.several(4)
    specs = h.specs(20)
    calls = [backend.enqueue(specs) for backend in connections]
    answers = await asyncio.gather(*calls)
    created = [answer.id for each in answers for answer in each if answer.created]
    equal(sorted(created), sorted(spec.id for spec in specs), "ids created, each by one connection")
    equal(len(await h.all()), 20, "jobs")


@case()
async def concurrent_calls_get_their_own_answers(h: Harness) -> None:
    batches = [h.specs(1 + number % 3) for number in range(60)]
    answers = await asyncio.gather(*(h.backend.enqueue(batch) for batch in batches))
    for batch, answer in zip(batches, answers, strict=True):
        equal(answer, [Enqueued(spec.id, True) for spec in batch], "answer of one of many calls")
    equal(len(await h.all()), sum(len(batch) for batch in batches), "jobs")


@case()
async def one_refused_call_among_concurrent_ones_harms_no_other(h: Harness) -> None:
    if not h.backend.capabilities.unique:
        return
    holder = await h.add(unique=Unique(key="k"))
    refused = [h.spec(), h.spec(unique=Unique(key="k", on_conflict="refuse"))]
    batches = [[h.spec()], refused, [h.spec()], [h.spec()]]
    answers = await asyncio.gather(*(h.backend.enqueue(batch) for batch in batches), return_exceptions=True)
    true(isinstance(answers[1], Exception), "the conflicting call was not refused")
    stored = {job.id for job in await h.all()}
    equal(stored, {holder, *(batch[0].id for batch in batches if batch is not refused)}, "jobs stored")


@case()
async def a_batch_at_the_limit_is_stored(h: Harness) -> None:
    specs = h.specs(BATCH_MAX)
    answers = await h.backend.enqueue(specs)
    equal(len(answers), BATCH_MAX, "answers")
    true(all(answer.created for answer in answers), "some were not created")
    equal((await h.backend.counts())["default"].states, {State.PENDING: BATCH_MAX}, "counts")


@case()
async def a_batch_past_the_limit_is_refused_whole(h: Harness) -> None:
    await raises(InvalidOption, h.backend.enqueue(h.specs(BATCH_MAX + 1)), "enqueue of one too many")
    equal(await h.all(), [], "jobs")


@case()
async def one_impossible_spec_refuses_the_whole_call(h: Harness) -> None:
    if h.backend.capabilities.dependencies:
        return
    specs = [*h.specs(3), h.spec(after=(h.new_id(),))]
    error = await raises(Unsupported, h.backend.enqueue(specs), "enqueue with `after`")
    equal(error.flag, "dependencies", "flag")
    equal(await h.all(), [], "jobs")


@case()
async def an_acknowledged_job_is_seen_by_another_connection_at_once(h: Harness) -> None:
    other = await h.open()
    for _ in range(20):
        job_id = await h.add()
        equal((await other.get([job_id]))[0], await h.record(job_id), "record on the other connection")


@case()
async def a_cancelled_call_is_done_or_not_done(h: Harness) -> None:
    """Each call is cancelled after another number of turns of the loop; all its jobs are there or none."""
    for turns in range(12):
        specs = h.specs(30, queue=f"turn-{turns}")
        call = asyncio.create_task(_enqueue(h, specs))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        answers = await h.backend.enqueue(specs)  # also waits for whatever the call still had in flight
        equal(len({answer.created for answer in answers}), 1, f"mixed answers after cancelling in turn {turns}")
        equal(len(await h.all(queue=f"turn-{turns}")), 30, "jobs after repeating the call")


async def _enqueue(h: Harness, specs: list[JobSpec]) -> None:
    await h.backend.enqueue(specs)


@case("B1")
async def a_job_delayed_by_five_leases_starts_once_when_it_is_due(h: Harness) -> None:
    delay_ms = 5 * h.lease_ms if h.clock is not None else 2 * h.lease_ms
    job_id = await h.add(delay_ms=delay_ms)
    starts = []
    for _ in range(12):
        await h.tick()
        starts += [((await h.record(job.id)).started_at_ms, job.id) for job in await h.claim(5)]
        await h.advance(delay_ms // 6)
        await h.beat()
    equal([started_id for _, started_id in starts], [job_id], "starts")
    record = await h.record(job_id)
    true((record.started_at_ms or 0) >= record.due_at_ms, "it started before it was due")


@case()
async def what_the_caller_changes_afterwards_is_not_stored(h: Harness) -> None:
    """Memory must hand out copies as a server does, or tests on it lie (FAILURES A, memory)."""
    meta = {"user": "one"}
    job_id = await h.add(meta=meta)
    meta["user"] = "two"
    equal((await h.record(job_id)).meta, {"user": "one"}, "meta after the caller changed its own")
    found = (await h.backend.find(Query())).jobs[0]
    found.state = State.FAILED
    (job,) = await h.claim()
    for answered in (found.meta, (await h.record(job_id)).meta, job.meta):
        (answered or {})["user"] = "three"
    equal((await h.record(job_id)).meta, {"user": "one"}, "meta after the caller changed an answer")
    equal(await h.state(job_id), State.RUNNING, "state after the caller changed an answer")
