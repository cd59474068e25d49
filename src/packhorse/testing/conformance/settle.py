"""Settle: an attempt ends once, by the token that owns it, and everything that hangs on it moves along."""

from __future__ import annotations

import asyncio

from ...backends.base import BATCH_MAX, ERRORS_KEPT_MAX, Note, Rerun, Settlement, Verdict
from ...errors import InvalidOption, Unsupported
from ...job import TERMINAL, Claimed, State
from .case import case, equal, raises, true
from .harness import Harness

_NONSENSE = "nonsense"


@case()
async def succeeded_keeps_the_result_and_the_time(h: Harness) -> None:
    job = await h.start()
    await h.advance(h.step_ms)
    equal(await h.settle(job, State.SUCCEEDED, result=b'{"ok":1}'), Verdict.APPLIED, "verdict")
    record = await h.record(job.id)
    equal((record.state, record.result, record.errors), (State.SUCCEEDED, b'{"ok":1}', ()), "state, result, errors")
    equal((record.worker, record.attempt), (None, 1), "worker, attempt")
    took_ms = (record.finished_at_ms or 0) - (record.started_at_ms or 0)
    true(h.step_ms <= took_ms < h.step_ms + 5_000, f"it ran {h.step_ms} ms, recorded as {took_ms}")


@case()
async def failed_keeps_the_error_and_the_time(h: Harness) -> None:
    job = await h.start()
    equal(await h.settle(job, State.FAILED, error=h.error()), Verdict.APPLIED, "verdict")
    record = await h.record(job.id)
    equal((record.state, record.errors, record.result), (State.FAILED, (h.error(),), None), "state, errors, result")
    equal(record.worker, None, "worker")
    true(record.finished_at_ms is not None, "finished_at_ms is not set")


@case()
async def cancelled_by_its_worker_ends(h: Harness) -> None:
    job = await h.start()
    equal(await h.settle(job, State.CANCELLED, error=h.error()), Verdict.APPLIED, "verdict")
    record = await h.record(job.id)
    equal((record.state, record.errors), (State.CANCELLED, (h.error(),)), "state, errors")
    true(record.finished_at_ms is not None, "finished_at_ms is not set")


@case()
async def a_retry_is_scheduled_and_starts_again_when_due(h: Harness) -> None:
    job = await h.start()
    equal(await h.settle(job, State.SCHEDULED, delay_ms=2 * h.step_ms, error=h.error()), Verdict.APPLIED, "verdict")
    record = await h.record(job.id)
    equal((record.state, record.attempt, record.worker), (State.SCHEDULED, 1, None), "state, attempt, worker")
    equal((record.errors, record.finished_at_ms), ((h.error(),), None), "errors, finished_at_ms")
    await h.pass_time(h.step_ms)
    equal(await h.claim(), [], "claimed before it was due")
    await h.pass_time(h.step_ms + 1)
    (again,) = await h.claim(worker="w2")
    equal((again.id, again.attempt), (job.id, 2), "id, attempt")
    true(again.token != job.token, "the second claim got the token of the first")


@case()
async def released_is_pending_at_once(h: Harness) -> None:
    job = await h.start()
    equal(await h.settle(job, State.PENDING), Verdict.APPLIED, "verdict")
    record = await h.record(job.id)
    equal((record.state, record.worker, record.attempt), (State.PENDING, None, 1), "state, worker, attempt")
    equal([again.id for again in await h.claim(worker="w2")], [job.id], "claimed by another")


@case("B14")
async def a_refund_gives_the_attempt_back(h: Harness) -> None:
    job_id = await h.add(max_attempts=1)
    for turn in range(10):
        (job,) = await h.claim()
        equal(job.attempt, 1, f"attempt after {turn} releases")
        state = (State.PENDING, State.SCHEDULED)[turn % 2]
        equal(await h.settle(job, state, delay_ms=turn % 2, refund=True), Verdict.APPLIED, "verdict")
        equal((await h.record(job_id)).attempt, 0, "attempt after the release")
        await h.pass_time(h.step_ms)
    (job,) = await h.claim()
    await h.settle(job, State.SUCCEEDED)
    equal(await h.state(job_id), State.SUCCEEDED, "state after ten rolling restarts")


@case()
async def parking_is_judged_from_the_first_time(h: Harness) -> None:
    job = await h.start()
    first_ms = None
    for _ in range(3):
        await h.settle(job, State.SCHEDULED, delay_ms=h.step_ms, refund=True, park=True)
        await h.pass_time(h.step_ms + 1)
        (job,) = await h.claim()
        true(job.parked_at_ms is not None, "a parked job does not say since when")
        first_ms = first_ms if first_ms is not None else job.parked_at_ms
        equal(job.parked_at_ms, first_ms, "parked_at_ms")
        true(job.created_at_ms <= (first_ms or 0), "parked before it was created")


@case()
async def an_attempt_that_was_not_parked_ends_the_parking(h: Harness) -> None:
    job = await h.start()
    await h.settle(job, State.PENDING, refund=True, park=True)
    (job,) = await h.claim()
    await h.settle(job, State.PENDING)
    (job,) = await h.claim()
    equal(job.parked_at_ms, None, "parked_at_ms")


@case()
async def an_error_is_kept_wherever_the_job_goes(h: Harness) -> None:
    job = await h.start(max_attempts=10)
    errors = []
    for state in (State.PENDING, State.SCHEDULED, State.PENDING, State.SUCCEEDED):
        errors.append(h.error(job.attempt, f"on the way to {state}"))
        await h.settle(job, state, error=errors[-1], refund=state is State.SCHEDULED)
        equal((await h.record(job.id)).errors, tuple(errors), f"errors after {state}")
        await h.tick()
        if state is not State.SUCCEEDED:
            (job,) = await h.claim()


@case()
async def errors_are_bounded_to_the_first_and_the_latest(h: Harness) -> None:
    job_id = await h.add(max_attempts=1_000)
    count = ERRORS_KEPT_MAX + 5
    for number in range(1, count + 1):
        (job,) = await h.claim()
        await h.settle(job, State.PENDING, error=h.error(number))
        if number == ERRORS_KEPT_MAX:
            kept = [error.attempt for error in (await h.record(job_id)).errors]
            equal(kept, list(range(1, ERRORS_KEPT_MAX + 1)), "errors kept at the limit, by attempt")
    kept = [error.attempt for error in (await h.record(job_id)).errors]
    equal(kept, [1, *range(count - ERRORS_KEPT_MAX + 2, count + 1)], "errors kept past the limit, by attempt")


# ---- stale: nothing changes ------------------------------------------------------------------------------


async def _counts(h: Harness) -> dict[str, dict[State, int]]:
    """Count jobs by queue and state; ages would go on with the clock."""
    return {queue: found.states for queue, found in (await h.backend.counts()).items()}


async def _stale(h: Harness, job_id: str, token: str, when: str) -> None:
    """Settle in every way with a token that owns nothing: each is STALE, and the store is as before."""
    before, counts = await h.backend.get([job_id]), await _counts(h)
    for state in (*TERMINAL, State.SCHEDULED, State.PENDING):
        follow = h.spec(queue="follow")
        settlement = Settlement(
            id=job_id,
            token=token,
            state=state,
            delay_ms=5 if state is State.SCHEDULED else 0,
            result=b"1" if state is State.SUCCEEDED else None,
            error=h.error(),
            refund=True,
            park=True,
            follow_ups=(follow,),
        )
        equal(await h.backend.settle([settlement]), [Verdict.STALE], f"verdict {when}, to {state}")
        equal(await h.backend.get([job_id, follow.id]), [*before, None], f"job and follow-up {when}, to {state}")
    equal(await _counts(h), counts, f"counts {when}")


@case()
async def settle_of_an_unknown_job_is_stale(h: Harness) -> None:
    await _stale(h, h.new_id(), "1", "for no job")


@case()
async def settle_by_a_token_that_was_never_given_is_stale_and_changes_nothing(h: Harness) -> None:
    job = await h.start()
    for token in ("", "0", "nonsense", job.token + "0", job.token + " ", f"{job.token}' OR '1'='1", "99999999999"):
        await _stale(h, job.id, token, f"with token {token!r}")
    equal(await h.settle(job), Verdict.APPLIED, "verdict of the owner")


@case()
async def settle_by_the_token_of_another_job_is_stale(h: Harness) -> None:
    mine = await h.start(queue="a")
    other = await h.start(queue="b")
    await _stale(h, mine.id, other.token, "with the token of another claim")
    equal(await h.settle(mine), Verdict.APPLIED, "verdict of the owner")


@case()
async def settle_of_a_job_that_never_ran_is_stale(h: Harness) -> None:
    for state in (State.SCHEDULED, State.PENDING):
        job_id, _ = await h.put(state, queue=f"for-{state}")
        for token in ("", "0", "1", "None"):
            await _stale(h, job_id, token, f"of a {state} job")


@case()
async def settling_twice_is_stale_and_changes_nothing(h: Harness) -> None:
    for state in TERMINAL:
        job_id, token = await h.put(state)
        await _stale(h, job_id, token, f"after {state}")


@case()
async def settling_twice_in_one_call_applies_once(h: Harness) -> None:
    job = await h.start()
    settlements = [
        Settlement(id=job.id, token=job.token, state=State.SUCCEEDED, result=b"1"),
        Settlement(id=job.id, token=job.token, state=State.FAILED, error=h.error()),
    ]
    equal(await h.backend.settle(settlements), [Verdict.APPLIED, Verdict.STALE], "verdicts")
    record = await h.record(job.id)
    equal((record.state, record.result, record.errors), (State.SUCCEEDED, b"1", ()), "state, result, errors")


@case()
async def settle_of_an_old_token_is_stale_and_changes_nothing(h: Harness) -> None:
    old = await h.start(max_attempts=10)
    await h.settle(old, State.PENDING)
    await _stale(h, old.id, old.token, "after the release")
    (new,) = await h.claim(worker="w2")
    await _stale(h, old.id, old.token, "while another claim runs it")
    equal(await h.beat("w2"), {new.id: new.token}, "held by the new claimer")
    equal(await h.settle(new), Verdict.APPLIED, "verdict of the new claimer")
    await _stale(h, old.id, old.token, "after the other claim ended it")


@case("B21", "B35")
async def settle_after_a_lapse_is_stale_and_changes_nothing(h: Harness) -> None:
    """A worker that was stopped for three leases and goes on cannot decide anything."""
    zombie = await h.start(max_attempts=10)
    await h.pass_time(3 * h.lease_ms)
    await _stale(h, zombie.id, zombie.token, "after the lapse")
    (new,) = await h.claim(worker="w2")
    await _stale(h, zombie.id, zombie.token, "while the next claim runs")
    equal(await h.settle(new, State.SUCCEEDED, result=b"2"), Verdict.APPLIED, "verdict of the next claim")
    await _stale(h, zombie.id, zombie.token, "after the next claim ended it")


@case()
async def settle_after_retire_is_stale(h: Harness) -> None:
    job = await h.start()
    await h.backend.retire("w1", "its process died")
    await _stale(h, job.id, job.token, "after retire")


@case()
async def settle_after_rerun_is_stale(h: Harness) -> None:
    job_id, token = await h.put(State.FAILED)
    await h.backend.rerun([Rerun(id=job_id)])
    await _stale(h, job_id, token, "after rerun")
    await h.claim(worker="w2")
    await _stale(h, job_id, token, "while the rerun runs")


@case()
async def settle_after_delete_is_stale(h: Harness) -> None:
    job_id, token = await h.put(State.SUCCEEDED)
    await h.backend.delete([job_id])
    await _stale(h, job_id, token, "after delete")
    await h.backend.enqueue([h.spec(id=job_id)])
    await _stale(h, job_id, token, "after the id was enqueued anew")
    await h.claim(worker="w2")
    await _stale(h, job_id, token, "while the new job runs")


@case()
async def a_settlement_counts_while_the_lease_is_over_but_nobody_acted_on_it(h: Harness) -> None:
    """Without a tick nothing was taken away, so the work done is not thrown away either."""
    job = await h.start()
    await h.advance(2 * h.lease_ms)
    equal(await h.settle(job), Verdict.APPLIED, "verdict")
    equal((await h.tick()).lapsed, 0, "lapsed")
    equal(await h.state(job.id), State.SUCCEEDED, "state")


# ---- batches ---------------------------------------------------------------------------------------------


def _done(jobs: list[Claimed], state: State = State.SUCCEEDED) -> list[Settlement]:
    return [Settlement(id=job.id, token=job.token, state=state) for job in jobs]


@case()
async def each_settlement_of_a_call_is_judged_by_itself(h: Harness) -> None:
    ids = await h.enqueue(6)
    jobs = await h.claim(6)
    await h.settle(jobs[1])
    settlements = _done(jobs)
    settlements[3] = Settlement(id=ids[3], token=_NONSENSE, state=State.FAILED)
    settlements[4] = Settlement(id=h.new_id(), token=jobs[4].token, state=State.FAILED)
    applied, stale = Verdict.APPLIED, Verdict.STALE
    equal(await h.backend.settle(settlements), [applied, stale, applied, stale, stale, applied], "verdicts")
    states = [await h.state(job_id) for job_id in ids]
    done, running = State.SUCCEEDED, State.RUNNING
    equal(states, [done, done, done, running, running, done], "states")


@case()
async def a_call_may_end_jobs_in_all_ways(h: Harness) -> None:
    await h.enqueue(5)
    jobs = await h.claim(5)
    states = [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SCHEDULED, State.PENDING]
    settlements = [
        Settlement(id=job.id, token=job.token, state=state, delay_ms=9_000 if state is State.SCHEDULED else 0)
        for job, state in zip(jobs, states, strict=True)
    ]
    equal(await h.backend.settle(settlements), [Verdict.APPLIED] * 5, "verdicts")
    equal([await h.state(job.id) for job in jobs], states, "states")


@case()
async def settle_takes_a_whole_batch_and_no_more(h: Harness) -> None:
    await h.enqueue(BATCH_MAX + 1)
    jobs = await h.claim(BATCH_MAX) + await h.claim(1)
    await raises(InvalidOption, h.backend.settle(_done(jobs)), "settle of one too many")
    equal((await h.backend.counts())["default"].states, {State.RUNNING: BATCH_MAX + 1}, "counts after the refusal")
    equal(set(await h.backend.settle(_done(jobs[:BATCH_MAX]))), {Verdict.APPLIED}, "verdicts")
    equal(await h.backend.settle([]), [], "verdicts of nothing")


@case()
async def a_job_may_be_settled_on_another_connection(h: Harness) -> None:
    job = await h.start()
    other = await h.open()
    equal(await h.settle(job, backend=other), Verdict.APPLIED, "verdict")
    equal(await h.settle(job), Verdict.STALE, "verdict of the second, on the first connection")


@case()
async def of_many_settlements_of_one_token_one_is_applied(h: Harness) -> None:
    connections = await h.several(4)
    for turn in range(10):
        job = await h.start(max_attempts=100)
        states = [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SCHEDULED]
        calls = [
            h.settle(job, state, backend=backend, delay_ms=9_000 if state is State.SCHEDULED else 0)
            for backend, state in zip(connections, states, strict=True)
        ]
        verdicts = await asyncio.gather(*calls)
        equal(sorted(verdicts), [Verdict.APPLIED, *[Verdict.STALE] * 3], f"verdicts in turn {turn + 1}")
        equal(await h.state(job.id), states[verdicts.index(Verdict.APPLIED)], "state")


@case()
async def settling_clears_what_belonged_to_the_attempt(h: Harness) -> None:
    """A note that comes after the end belongs to nobody."""
    job = await h.start()
    await h.beat(notes=[Note(id=job.id, token=job.token, progress=0.5)])
    await h.settle(job)
    equal(await h.beat(notes=[Note(id=job.id, token=job.token, progress=0.9)]), {}, "held")
    equal((await h.record(job.id)).progress, 0.5, "progress")


@case()
async def an_impossible_follow_up_refuses_the_whole_call(h: Harness) -> None:
    if h.backend.capabilities.dependencies:
        return
    await h.enqueue(2)
    jobs = await h.claim(2)
    settlements = _done(jobs)
    settlements[1] = Settlement(
        id=jobs[1].id,
        token=jobs[1].token,
        state=State.SUCCEEDED,
        follow_ups=(h.spec(), h.spec(after=(h.new_id(),))),
    )
    error = await raises(Unsupported, h.backend.settle(settlements), "settle with a follow-up with `after`")
    equal(error.flag, "dependencies", "flag")
    equal({job.state for job in await h.all()}, {State.RUNNING}, "states")
    equal(len(await h.all()), 2, "jobs")
