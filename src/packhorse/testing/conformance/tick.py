"""Tick: due, lapsed and old jobs move on, whoever ticks and however often."""

from __future__ import annotations

import asyncio

import msgspec

from ...backends.base import BATCH_MAX, Backend, Keep, Rerun, Settlement, Ticked, Verdict, WorkerInfo
from ...job import State, Unique
from .case import case, equal, true
from .harness import FOREVER, Harness


def _moved(ticked: Ticked) -> Ticked:
    """Answer what a tick did, without the time it was."""
    return msgspec.structs.replace(ticked, now_ms=0)


# ---- due -------------------------------------------------------------------------------------------------


@case()
async def a_tick_of_nothing_moves_nothing(h: Harness) -> None:
    equal(_moved(await h.tick()), Ticked(), "answer on an empty store")
    await h.add()
    await h.start(queue="other")
    equal(_moved(await h.tick()), Ticked(), "answer with a pending and a running job")


@case()
async def due_jobs_become_pending_and_others_wait(h: Harness) -> None:
    due = await h.enqueue(3, delay_ms=h.step_ms)
    later = await h.add(delay_ms=20 * h.step_ms)
    equal((await h.tick()).promoted, 0, "promoted too early")
    equal((await h.pass_time(h.step_ms)).promoted, 3, "promoted when due")
    equal([await h.state(job_id) for job_id in (*due, later)], [*[State.PENDING] * 3, State.SCHEDULED], "states")
    equal((await h.tick()).promoted, 0, "promoted again")
    record = await h.record(due[0])
    equal((record.attempt, record.errors), (0, ()), "attempt, errors")


@case()
async def a_tick_moves_at_most_its_limit_and_the_next_goes_on(h: Harness) -> None:
    await h.enqueue(7, delay_ms=h.step_ms)
    await h.enqueue(7, queue="b", max_attempts=5)
    await h.claim(7, "b")
    for _ in range(7):
        await h.put(State.SUCCEEDED, queue="c")
    await h.advance(2 * h.lease_ms)
    moved = [await h.tick(limit=3, keep=Keep(succeeded_ms=h.lease_ms)) for _ in range(4)]
    for kind in ("promoted", "lapsed", "dropped"):
        equal([getattr(ticked, kind) for ticked in moved], [3, 3, 1, 0], kind)


@case()
async def what_is_due_first_is_promoted_first(h: Harness) -> None:
    last = await h.add(delay_ms=3 * h.step_ms)
    first = await h.add(delay_ms=h.step_ms)
    await h.advance(4 * h.step_ms)
    equal((await h.tick(limit=1)).promoted, 1, "promoted")
    equal((await h.state(first), await h.state(last)), (State.PENDING, State.SCHEDULED), "states")


@case("B28")
async def many_tickers_at_once_move_each_job_once(h: Harness) -> None:
    delayed = await h.enqueue(100, delay_ms=h.step_ms)
    running = await h.enqueue(100, queue="b", max_attempts=5)
    await h.claim(100, "b")
    connections = await h.several(4)
    await h.advance(2 * h.lease_ms)

    async def drain(backend: Backend) -> list[Ticked]:
        return [await h.tick(limit=7, backend=backend) for _ in range(20)]

    ticked = [each for all_ in await asyncio.gather(*map(drain, connections)) for each in all_]
    equal(sum(each.promoted for each in ticked), 100, "promoted")
    equal(sum(each.lapsed for each in ticked), 100, "lapsed")
    equal({await h.state(job_id) for job_id in delayed}, {State.PENDING}, "states of the delayed")
    errors = [len((await h.record(job_id)).errors) for job_id in running]
    equal(errors, [1] * 100, "lapses recorded for each")


@case()
async def next_due_is_the_earliest_that_is_scheduled(h: Harness) -> None:
    equal((await h.tick()).next_due_ms, None, "with nothing scheduled")
    await h.add(delay_ms=50 * h.step_ms)
    soon = await h.add(delay_ms=10 * h.step_ms)
    for passed in (0, 4):
        await h.advance(passed * h.step_ms)
        due_ms = (await h.tick()).next_due_ms
        wanted_ms = (10 - passed) * h.step_ms
        true(due_ms is not None and wanted_ms - h.step_ms < due_ms <= wanted_ms, f"{due_ms} of {wanted_ms} ms")
    await h.backend.cancel([soon])
    due_ms = (await h.tick()).next_due_ms
    true(due_ms is not None and 44 * h.step_ms < due_ms <= 46 * h.step_ms, f"{due_ms} ms after cancelling the first")


@case()
async def next_due_forgets_what_is_not_scheduled_any_more(h: Harness) -> None:
    promoted = await h.add(delay_ms=h.step_ms)
    await h.pass_time(2 * h.step_ms)
    cancelled, deleted = await h.enqueue(2, delay_ms=9 * h.step_ms)
    await h.backend.cancel([cancelled])
    await h.backend.delete([deleted])
    equal((await h.tick()).next_due_ms, None, "next due")
    equal(await h.state(promoted), State.PENDING, "state")


@case()
async def next_due_is_now_while_due_jobs_are_left(h: Harness) -> None:
    await h.enqueue(3, delay_ms=h.step_ms)
    await h.advance(2 * h.step_ms)
    equal((await h.tick(limit=2)).next_due_ms, 0, "next due after a tick that left one")
    equal((await h.tick(limit=2)).next_due_ms, None, "next due after all")


@case()
async def next_due_sees_retries_and_reruns(h: Harness) -> None:
    await h.settle(await h.start(), State.SCHEDULED, delay_ms=30 * h.step_ms)
    due_ms = (await h.tick()).next_due_ms or 0
    true(29 * h.step_ms < due_ms <= 30 * h.step_ms, f"{due_ms} ms for a retry")
    job_id, _ = await h.put(State.FAILED)
    await h.backend.rerun([Rerun(id=job_id, delay_ms=20 * h.step_ms)])
    due_ms = (await h.tick()).next_due_ms or 0
    true(19 * h.step_ms < due_ms <= 20 * h.step_ms, f"{due_ms} ms for a rerun")


# ---- lapsed ----------------------------------------------------------------------------------------------


@case("B17", "B13")
async def a_dead_workers_job_is_pending_again_after_its_lease(h: Harness) -> None:
    """The time-out of the job (three days) does not delay it."""
    job = await h.start(timeout_ms=3 * 86_400_000)
    equal((await h.pass_time(h.lease_ms - h.lease_ms // 4)).lapsed, 0, "lapsed before the end of the lease")
    equal((await h.pass_time(h.lease_ms // 4 + 1)).lapsed, 1, "lapsed after it")
    record = await h.record(job.id)
    equal((record.state, record.attempt, record.worker), (State.PENDING, 1, None), "state, attempt, worker")
    equal([(error.kind, error.attempt) for error in record.errors], [("LeaseLapsed", 1)], "errors")
    equal(record.finished_at_ms, None, "finished_at_ms")
    (again,) = await h.claim(worker="w2")
    equal((again.id, again.attempt), (job.id, 2), "id, attempt")
    true(again.token != job.token, "the same token after a lapse")


@case("B3")
async def a_job_that_kills_its_workers_fails_after_its_attempts(h: Harness) -> None:
    job_id = await h.add(max_attempts=3)
    neighbour = await h.add(queue="other")
    for attempt in range(1, 4):
        (job,) = await h.claim(worker=f"w{attempt}")
        equal(job.attempt, attempt, "attempt")
        equal((await h.pass_time(2 * h.lease_ms)).lapsed, 1, "lapsed")
    record = await h.record(job_id)
    equal((record.state, record.attempt), (State.FAILED, 3), "state, attempt")
    equal([error.attempt for error in record.errors], [1, 2, 3], "errors")
    true(record.finished_at_ms is not None, "finished_at_ms is not set")
    equal(await h.claim(worker="w9"), [], "claimed once more")
    equal(await h.state(neighbour), State.PENDING, "state of its neighbour")


@case()
async def a_lapsed_job_that_was_asked_to_stop_is_cancelled(h: Harness) -> None:
    for max_attempts in (1, 5):
        job = await h.start(max_attempts=max_attempts)
        await h.backend.cancel([job.id])
        await h.pass_time(2 * h.lease_ms)
        record = await h.record(job.id)
        equal((record.state, len(record.errors)), (State.CANCELLED, 1), "state, number of errors")
        true(record.finished_at_ms is not None, "finished_at_ms is not set")


@case(needs=("unique",))
async def a_lapse_frees_the_key_if_and_only_if_it_ends_the_job(h: Harness) -> None:
    key = Unique(key="k")
    job = await h.start(max_attempts=2, unique=key)
    await h.pass_time(2 * h.lease_ms)
    equal((await h.try_add(unique=key)).id, job.id, "holder after a lapse to pending")
    await h.claim(worker="w2")
    await h.pass_time(2 * h.lease_ms)
    equal(await h.state(job.id), State.FAILED, "state")
    true((await h.try_add(unique=key)).created, "the key is not free after a lapse to failed")


@case()
async def jobs_of_a_live_worker_do_not_lapse(h: Harness) -> None:
    """The write of the lapse itself checks the lease: another connection renewed it meanwhile."""
    await h.enqueue(5)
    await h.claim(5)
    other = await h.open()
    await h.advance(2 * h.lease_ms)
    await other.heartbeat(WorkerInfo(id="w1"), h.lease_ms)
    equal((await h.tick()).lapsed, 0, "lapsed")
    equal(len(await h.beat()), 5, "held")


@case("B24")
async def a_heartbeat_and_a_tick_at_once_never_half_lapse(h: Harness) -> None:
    """Whichever comes first decides for the worker: what the heartbeat says is held, is held."""
    ticker, beater = await h.several(2)
    for turn in range(10):
        worker = f"w{turn}"
        await h.enqueue(5, queue=worker, max_attempts=50)
        await h.claim(5, worker, worker=worker)
        await h.advance(2 * h.lease_ms)
        tick = ticker.tick(BATCH_MAX, FOREVER)
        beat = beater.heartbeat(WorkerInfo(id=worker), h.lease_ms)
        if turn % 2:
            ticked, pulse = await asyncio.gather(tick, beat)
        else:
            pulse, ticked = await asyncio.gather(beat, tick)
        running = {job.id for job in await h.all(queue=worker, states=(State.RUNNING,))}
        lapsed = {job.id for job in await h.all(queue=worker, states=(State.PENDING,))}
        equal(set(pulse.held), running, "held as the heartbeat said, and running")
        equal(ticked.lapsed, len(lapsed), "lapsed as the tick said, and pending")
        await h.backend.retire(worker, "end of the turn")


@case("B24")
async def completion_and_reaper_never_both_win(h: Harness) -> None:
    """Every job is settled while it lapses: it succeeded, or its settlement was stale and it is pending."""
    count = 300
    await h.enqueue(count, max_attempts=5)
    jobs = await h.claim(count)
    await h.advance(2 * h.lease_ms)
    settler, ticker = await h.several(2)
    verdicts: dict[str, Verdict] = {}
    lapsed = 0

    async def settle() -> None:
        for job in jobs:
            settlement = Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)
            verdicts[job.id] = (await settler.settle([settlement]))[0]
            await asyncio.sleep(0)

    async def reap() -> None:
        nonlocal lapsed
        for _ in range(count // 2):
            lapsed += (await h.tick(limit=1, backend=ticker)).lapsed
            await asyncio.sleep(0)

    await asyncio.gather(settle(), reap())
    records = await h.all()
    done = {job.id for job in records if job.state is State.SUCCEEDED}
    equal(done, {job_id for job_id, verdict in verdicts.items() if verdict is Verdict.APPLIED}, "succeeded")
    pending = [job for job in records if job.state is State.PENDING]
    equal((len(done) + len(pending), len(pending)), (count, lapsed), "all jobs, lapsed jobs")
    equal({len(job.errors) for job in pending} <= {1}, True, "one lapse each")


@case("B25")
async def many_long_running_jobs_do_not_hide_a_dead_one(h: Harness) -> None:
    await h.enqueue(3_000)
    for number in range(3):
        await h.claim(BATCH_MAX, worker=f"alive-{number}", lease_ms=100 * h.lease_ms)
    for number in range(50):
        await h.backend.heartbeat(WorkerInfo(id=f"idle-{number}"), 100 * h.lease_ms)
    dead = await h.start(queue="last", worker="zz-dead")
    await h.enqueue(500, delay_ms=1_000 * h.lease_ms)
    await h.advance(h.lease_ms + 1)
    equal((await h.tick(limit=50)).lapsed, 1, "lapsed in the first tick")
    equal(await h.state(dead.id), State.PENDING, "state")


@case("B19")
async def a_dead_worker_keeps_nothing_busy(h: Harness) -> None:
    job = await h.start(max_attempts=2, worker="dead")
    await h.pass_time(2 * h.lease_ms)
    equal([info.id for info in await h.backend.workers()], [], "workers")
    equal([again.id for again in await h.claim(worker="w2")], [job.id], "claimed by another")
    equal([(info.id, info.running) for info in await h.backend.workers()], [("w2", 1)], "workers, running")


@case("B26")
async def a_ticker_needs_to_know_nothing_of_the_jobs(h: Harness) -> None:
    job = await h.start(type="only-known-elsewhere", queue="elsewhere", worker="dead")
    await h.pass_time(2 * h.lease_ms)
    record = await h.record(job.id)
    equal((record.state, record.type), (State.PENDING, "only-known-elsewhere"), "state, type")


@case("B36", needs=("manual_clock",))
async def a_wall_clock_that_is_set_loses_no_lease_that_is_kept(h: Harness) -> None:
    for jump_ms in (3_600_000, -3_600_000):
        job = await h.start()
        h.jump(jump_ms)
        for _ in range(6):
            equal(await h.beat(), {job.id: job.token}, f"held after a jump of {jump_ms} ms")
            equal((await h.tick()).lapsed, 0, f"lapsed after a jump of {jump_ms} ms")
            await h.advance(h.lease_ms // 3)
        equal(await h.settle(job), Verdict.APPLIED, "verdict")


@case("B36", needs=("manual_clock",))
async def a_wall_clock_that_is_set_back_stops_no_new_work(h: Harness) -> None:
    delayed = await h.add(delay_ms=h.step_ms, queue="later")
    before = await h.add()
    h.jump(-3_600_000)
    after = await h.add()
    claimed = await h.claim(5)
    equal({job.id for job in claimed}, {before, after}, "claimed")
    for job in claimed:
        await h.settle(job)
    true((await h.tick()).next_due_ms is not None, "the delayed job is forgotten")
    await h.pass_time(3_600_000 + h.step_ms)
    equal([job.id for job in await h.claim(5, "later")], [delayed], "claimed when the clock came round")
    equal((await h.backend.counts())["later"].states, {State.RUNNING: 1}, "counts")


# ---- retention -------------------------------------------------------------------------------------------


@case()
async def ended_jobs_are_dropped_when_they_were_kept_long_enough(h: Harness) -> None:
    keep = Keep(succeeded_ms=4 * h.step_ms, failed_ms=8 * h.step_ms, cancelled_ms=12 * h.step_ms)
    ids = {state: (await h.put(state))[0] for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)}
    equal((await h.tick(keep=keep)).dropped, 0, "dropped at once")
    for turn, state in enumerate(ids, start=1):
        await h.advance(2 * h.step_ms)
        equal((await h.tick(keep=keep)).dropped, 0, f"dropped in turn {turn}, before it was time")
        await h.advance(2 * h.step_ms + 1)
        equal((await h.tick(keep=keep)).dropped, 1, f"dropped in turn {turn}")
        equal(await h.state(ids[state]), None, f"state of the {state} job")
    equal(await h.all(), [], "jobs")


@case()
async def retention_counts_from_the_end_of_a_job(h: Harness) -> None:
    keep = Keep(succeeded_ms=4 * h.step_ms)
    job = await h.start()
    for _ in range(8):
        await h.advance(h.step_ms)
        await h.beat()
    await h.settle(job)
    equal((await h.tick(keep=keep)).dropped, 0, "dropped at the end of a long run")
    await h.advance(4 * h.step_ms + 1)
    equal((await h.tick(keep=keep)).dropped, 1, "dropped later")


@case()
async def jobs_that_have_not_ended_are_never_dropped(h: Harness) -> None:
    keep = Keep(succeeded_ms=0, failed_ms=0, cancelled_ms=0)
    states = (State.SCHEDULED, State.PENDING, State.RUNNING)
    ids = [(await h.put(state, queue=f"for-{state}"))[0] for state in states]
    await h.backend.heartbeat(WorkerInfo(id="w1"), 100 * h.lease_ms)
    await h.advance(2 * h.lease_ms)
    equal((await h.tick(keep=keep)).dropped, 0, "dropped")
    equal([await h.state(job_id) for job_id in ids], list(states), "states")


@case()
async def a_rerun_job_is_kept_by_its_new_end(h: Harness) -> None:
    keep = Keep(failed_ms=4 * h.step_ms, succeeded_ms=4 * h.step_ms)
    job_id, _ = await h.put(State.FAILED)
    await h.advance(3 * h.step_ms)
    await h.backend.rerun([Rerun(id=job_id)])
    await h.advance(3 * h.step_ms)
    equal((await h.tick(keep=keep)).dropped, 0, "dropped while pending")
    (job,) = await h.claim()
    await h.settle(job)
    equal((await h.tick(keep=keep)).dropped, 0, "dropped at its new end")
    await h.advance(4 * h.step_ms + 1)
    equal((await h.tick(keep=keep)).dropped, 1, "dropped after it")


@case()
async def the_id_of_a_dropped_job_is_free(h: Harness) -> None:
    job_id, _ = await h.put(State.SUCCEEDED)
    await h.advance(2)
    await h.tick(keep=Keep(succeeded_ms=0))
    true((await h.backend.enqueue([h.spec(id=job_id)]))[0].created, "the id of a dropped job is still taken")
    equal([job.attempt for job in await h.claim()], [1], "attempt of the new job")
