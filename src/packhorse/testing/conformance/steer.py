"""Cancel, rerun, delete: answers that tell the truth, and nothing starts after them that should not."""

from __future__ import annotations

import asyncio

from ...backends.base import BATCH_MAX, Note, Rerun, Steered, Verdict
from ...errors import InvalidOption
from ...job import TERMINAL, JobRecord, State
from .case import case, equal, raises, true
from .harness import Harness

# ---- cancel ----------------------------------------------------------------------------------------------


@case()
async def cancel_ends_what_has_not_started(h: Harness) -> None:
    pending, delayed = await h.add(), await h.add(delay_ms=h.step_ms)
    equal(await h.backend.cancel([pending, delayed]), [Steered.DONE, Steered.DONE], "answers")
    for job_id in (pending, delayed):
        record = await h.record(job_id)
        equal((record.state, record.attempt), (State.CANCELLED, 0), "state, attempt")
        true(record.finished_at_ms is not None, "finished_at_ms is not set")
    await h.pass_time(2 * h.step_ms)
    equal(await h.claim(5), [], "claimed after the cancel")


@case()
async def cancel_of_a_running_job_is_a_request(h: Harness) -> None:
    job = await h.start()
    equal(await h.backend.cancel([job.id]), [Steered.REQUESTED], "answer")
    equal(await h.backend.cancel([job.id]), [Steered.REQUESTED], "answer when repeated")
    record = await h.record(job.id)
    equal((record.state, record.cancel_requested), (State.RUNNING, True), "state, cancel_requested")
    equal(await h.settle(job, State.CANCELLED), Verdict.APPLIED, "verdict")
    equal(await h.state(job.id), State.CANCELLED, "state")


@case()
async def cancel_of_an_ended_or_missing_job_changes_nothing(h: Harness) -> None:
    for state in TERMINAL:
        job_id, _ = await h.put(state)
        before = await h.record(job_id)
        equal(await h.backend.cancel([job_id]), [Steered.ENDED], f"answer for a {state} job")
        equal(await h.record(job_id), before, "record")
    equal(await h.backend.cancel([h.new_id()]), [Steered.MISSING], "answer for no job")


@case()
async def cancel_answers_each_in_the_order_given(h: Harness) -> None:
    ended, _ = await h.put(State.SUCCEEDED)
    running, _ = await h.put(State.RUNNING, queue="b")
    pending = await h.add()
    ids = [ended, h.new_id(), pending, running, pending]
    wanted = [Steered.ENDED, Steered.MISSING, Steered.DONE, Steered.REQUESTED, Steered.ENDED]
    equal(await h.backend.cancel(ids), wanted, "answers")


@case()
async def a_job_that_was_asked_to_stop_does_not_run_again(h: Harness) -> None:
    for state in (State.SCHEDULED, State.PENDING):
        for refund in (False, True):
            job = await h.start(max_attempts=5)
            await h.backend.cancel([job.id])
            delay_ms = 9_000 if state is State.SCHEDULED else 0
            follow = h.spec(queue="follow")
            verdict = await h.settle(
                job, state, delay_ms=delay_ms, error=h.error(), refund=refund, follow_ups=(follow,)
            )
            equal(verdict, Verdict.APPLIED, "verdict")
            record = await h.record(job.id)
            equal((record.state, record.errors), (State.CANCELLED, (h.error(),)), f"settled to {state}: state, errors")
            true(record.finished_at_ms is not None, "finished_at_ms is not set")
            equal(await h.state(follow.id), State.PENDING, "its follow-up, as the settlement was applied")
    equal(await h.claim(5), [], "claimed")


@case()
async def a_job_that_was_asked_to_stop_may_still_end_by_itself(h: Harness) -> None:
    for state in TERMINAL:
        job = await h.start()
        await h.backend.cancel([job.id])
        equal(await h.settle(job, state), Verdict.APPLIED, "verdict")
        equal(await h.state(job.id), state, "state")


@case()
async def cancel_and_claim_at_once_agree(h: Harness) -> None:
    """DONE means it never starts; REQUESTED that it did."""
    canceller, claimer = await h.several(2)
    ids = await h.enqueue(40)
    answers: list[Steered] = []

    async def cancel() -> None:
        for job_id in ids[::-1]:
            answers.extend(await canceller.cancel([job_id]))
            await asyncio.sleep(0)

    async def claim() -> list[str]:
        taken = []
        for _ in ids:
            taken += [job.id for job in await h.claim(1, backend=claimer)]
            await asyncio.sleep(0)
        return taken

    _, started = await asyncio.gather(cancel(), claim())
    for job_id, answer in zip(ids[::-1], answers, strict=True):
        equal(answer, Steered.REQUESTED if job_id in started else Steered.DONE, "answer against what started")


@case()
async def cancel_delete_and_rerun_are_bounded(h: Harness) -> None:
    ids = await h.enqueue(BATCH_MAX)
    too_many = [*ids, h.new_id()]
    await raises(InvalidOption, h.backend.cancel(too_many), "cancel of one too many")
    equal((await h.backend.counts())["default"].states, {State.PENDING: BATCH_MAX}, "counts after the refusal")
    equal(set(await h.backend.cancel(ids)), {Steered.DONE}, "answers of cancel")
    await raises(InvalidOption, h.backend.rerun([Rerun(id=job_id) for job_id in too_many]), "rerun of one too many")
    equal((await h.backend.counts())["default"].states, {State.CANCELLED: BATCH_MAX}, "counts after the refusal")
    equal(set(await h.backend.rerun([Rerun(id=job_id) for job_id in ids])), {Steered.DONE}, "answers of rerun")
    await raises(InvalidOption, h.backend.delete(too_many), "delete of one too many")
    equal((await h.backend.counts())["default"].states, {State.PENDING: BATCH_MAX}, "counts after the refusal")
    equal(set(await h.backend.delete(ids)), {Steered.DONE}, "answers of delete")
    equal(await h.all(), [], "jobs")
    for verb in (h.backend.cancel, h.backend.delete):
        equal(await verb([]), [], "answer for nothing")
    equal(await h.backend.rerun([]), [], "answer for nothing")


# ---- rerun -----------------------------------------------------------------------------------------------


@case()
async def rerun_starts_an_ended_job_over(h: Harness) -> None:
    for state in TERMINAL:
        job = await h.start(max_attempts=2)
        await h.beat(notes=[Note(id=job.id, token=job.token, progress=0.5, text="half")])
        await h.settle(job, state, result=b"1" if state is State.SUCCEEDED else None, error=h.error())
        before = await h.record(job.id)
        await h.advance(h.step_ms)
        equal(await h.backend.rerun([Rerun(id=job.id)]), [Steered.DONE], f"answer for a {state} job")
        after = await h.record(job.id)
        equal((after.state, after.attempt, after.result), (State.PENDING, 0, None), "state, attempt, result")
        equal(
            (after.started_at_ms, after.finished_at_ms, after.worker), (None, None, None), "started, finished, worker"
        )
        equal((after.progress, after.progress_note), (None, None), "progress, note")
        equal(after.errors, before.errors, "errors stay")
        true(after.due_at_ms >= before.created_at_ms + h.step_ms, "it is due before it was rerun")
        for name in ("type", "queue", "payload", "priority", "max_attempts", "timeout_ms", "created_at_ms"):
            equal(getattr(after, name), getattr(before, name), name)
        (again,) = await h.claim()
        equal((again.id, again.attempt), (job.id, 1), "id, attempt")
        true(again.token != job.token, "the token of the first run")
        await h.settle(again)


@case()
async def a_rerun_job_has_all_its_attempts_again(h: Harness) -> None:
    job = await h.start(max_attempts=2)
    await h.settle(job, State.FAILED)
    await h.backend.rerun([Rerun(id=job.id)])
    for attempt in (1, 2):
        (job,) = await h.claim(worker=f"w{attempt}")
        equal(job.attempt, attempt, "attempt")
        await h.pass_time(2 * h.lease_ms)
    equal(await h.state(job.id), State.FAILED, "state")


@case()
async def rerun_with_a_delay_is_scheduled(h: Harness) -> None:
    job_id, _ = await h.put(State.FAILED)
    equal(await h.backend.rerun([Rerun(id=job_id, delay_ms=2 * h.step_ms)]), [Steered.DONE], "answer")
    equal(await h.state(job_id), State.SCHEDULED, "state")
    equal(await h.claim(), [], "claimed at once")
    await h.pass_time(2 * h.step_ms + 1)
    equal([job.id for job in await h.claim()], [job_id], "claimed when due")


@case()
async def rerun_takes_edits_and_keeps_the_rest(h: Harness) -> None:
    job_id, _ = await h.put(State.FAILED, payload=b"[1]", priority=5, max_attempts=2)
    edits = Rerun(id=job_id, payload=b"[2]", queue="other", priority=0, max_attempts=7)
    equal(await h.backend.rerun([edits]), [Steered.DONE], "answer")
    equal(await h.claim(), [], "claimed from the old queue")
    (job,) = await h.claim(1, "other")
    equal((job.payload, job.priority, job.max_attempts), (b"[2]", 0, 7), "payload, priority, max_attempts")
    await h.settle(job)
    equal(await h.backend.rerun([Rerun(id=job_id)]), [Steered.DONE], "answer without edits")
    (job,) = await h.claim(1, "other")
    equal((job.payload, job.priority, job.max_attempts), (b"[2]", 0, 7), "payload, priority, max_attempts kept")


@case()
async def rerun_of_a_live_job_changes_nothing(h: Harness) -> None:
    for state in (State.SCHEDULED, State.PENDING, State.RUNNING):
        job_id, token = await h.put(state, queue=f"for-{state}")
        before = await h.record(job_id)
        edits = Rerun(id=job_id, payload=b"[2]", queue="other", priority=0, max_attempts=7, delay_ms=5)
        equal(await h.backend.rerun([edits]), [Steered.LIVE], f"answer for a {state} job")
        equal(await h.record(job_id), before, "record")
        if state is State.RUNNING:
            equal(await h.beat(), {job_id: token}, "held")
    equal(await h.backend.rerun([Rerun(id=h.new_id())]), [Steered.MISSING], "answer for no job")


@case()
async def rerun_forgets_the_request_to_stop(h: Harness) -> None:
    pending = await h.add()
    running = await h.start(queue="b", max_attempts=5)
    await h.backend.cancel([pending, running.id])
    await h.settle(running, State.PENDING)
    equal(await h.backend.rerun([Rerun(id=pending), Rerun(id=running.id)]), [Steered.DONE] * 2, "answers")
    for job in await h.claim(5, "default", "b"):
        equal((await h.record(job.id)).cancel_requested, False, "cancel_requested")
        await h.settle(job, State.PENDING)
        equal(await h.state(job.id), State.PENDING, "state after a release")


@case()
async def a_job_is_rerun_once_however_often_it_is_asked(h: Harness) -> None:
    job_id, _ = await h.put(State.FAILED)
    equal(await h.backend.rerun([Rerun(id=job_id), Rerun(id=job_id)]), [Steered.DONE, Steered.LIVE], "answers")
    equal(len(await h.claim(5)), 1, "claimable copies")
    job_id, _ = await h.put(State.FAILED, queue="b")
    connections = await h.several(4)
    answers = await asyncio.gather(*(backend.rerun([Rerun(id=job_id)]) for backend in connections))
    equal(sorted(answer for each in answers for answer in each), sorted([Steered.DONE, *[Steered.LIVE] * 3]), "answers")
    equal(len(await h.claim(5, "b")), 1, "claimable copies")


# ---- delete ----------------------------------------------------------------------------------------------


@case()
async def delete_removes_a_job_and_all_that_is_kept_of_it(h: Harness) -> None:
    for state in (State.SCHEDULED, State.PENDING, *TERMINAL):
        job_id, _ = await h.put(state, tags=("t",), key="k")
        equal(await h.backend.delete([job_id]), [Steered.DONE], f"answer for a {state} job")
        equal(await h.backend.get([job_id]), [None], "get")
        equal((await h.all(), await h.all(tag="t"), await h.all(key="k")), ([], [], []), "find")
        equal({name: each.states for name, each in (await h.backend.counts()).items() if each.states}, {}, "counts")
        equal(await h.backend.delete([job_id]), [Steered.MISSING], "answer when repeated")
        await h.pass_time(h.step_ms)
        equal(await h.claim(5), [], "claimed")


@case()
async def delete_of_a_running_job_is_refused(h: Harness) -> None:
    job = await h.start()
    equal(await h.backend.delete([job.id]), [Steered.LIVE], "answer")
    equal(await h.beat(), {job.id: job.token}, "held")
    equal(await h.settle(job), Verdict.APPLIED, "verdict")


@case()
async def delete_answers_each_in_the_order_given(h: Harness) -> None:
    running, _ = await h.put(State.RUNNING, queue="b")
    pending, other = await h.enqueue(2)
    ids = [pending, running, h.new_id(), pending]
    wanted = [Steered.DONE, Steered.LIVE, Steered.MISSING, Steered.MISSING]
    equal(await h.backend.delete(ids), wanted, "answers")
    equal({job.id for job in await h.all()}, {running, other}, "jobs left")


@case()
async def an_id_that_was_deleted_may_be_enqueued_anew(h: Harness) -> None:
    for state in (State.SCHEDULED, State.PENDING, *TERMINAL):
        job_id, _ = await h.put(state, payload=b"[1]", tags=("old",))
        await h.backend.delete([job_id])
        answers = await h.backend.enqueue([h.spec(id=job_id, payload=b"[2]")])
        true(answers[0].created, "the id of a deleted job is still taken")
        record: JobRecord = await h.record(job_id)
        equal((record.payload, record.tags, record.attempt, record.errors), (b"[2]", (), 0, ()), "the new job")
        claimed = await h.claim(5)
        equal([(job.id, job.payload, job.attempt) for job in claimed], [(job_id, b"[2]", 1)], "claimed")
        await h.settle(claimed[0])
        await h.backend.delete([job_id])
