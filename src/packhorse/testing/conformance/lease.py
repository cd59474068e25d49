"""Leases: a heartbeat keeps all jobs of a worker, a retired or silent one loses them."""

from __future__ import annotations

from ...backends.base import BATCH_MAX, Note, Steered, Verdict, WorkerInfo
from ...errors import InvalidOption
from ...job import State
from .case import case, equal, raises, true
from .harness import FOREVER, Harness

_NONSENSE = "nonsense"


@case()
async def a_heartbeat_says_what_the_worker_holds(h: Harness) -> None:
    await h.enqueue(5)
    mine, other = await h.claim(3), await h.claim(2, worker="w2")
    equal(await h.beat("w1"), {job.id: job.token for job in mine}, "held by w1")
    equal(await h.beat("w2"), {job.id: job.token for job in other}, "held by w2")
    equal(await h.beat("w3"), {}, "held by a worker that claimed nothing")


@case()
async def what_was_settled_is_not_held(h: Harness) -> None:
    await h.enqueue(4)
    jobs = await h.claim(4)
    await h.settle(jobs[0], State.SUCCEEDED)
    await h.settle(jobs[1], State.PENDING)
    await h.settle(jobs[2], State.SCHEDULED, delay_ms=9_000)
    equal(await h.beat(), {jobs[3].id: jobs[3].token}, "held")


@case("B7", "B32")
async def heartbeats_keep_a_job_of_many_leases(h: Harness) -> None:
    await h.enqueue(5)
    jobs = await h.claim(5)
    for _ in range(15):
        await h.advance(h.lease_ms // 3)
        equal(len(await h.beat()), 5, "held")
        equal((await h.tick()).lapsed, 0, "lapsed")
    equal([(await h.record(job.id)).attempt for job in jobs], [1] * 5, "attempts after five leases")
    equal(await h.settle(jobs[0]), Verdict.APPLIED, "verdict after five leases")


@case()
async def a_heartbeat_gives_the_whole_lease_from_now(h: Harness) -> None:
    await h.start()
    await h.advance(h.lease_ms // 4)
    await h.beat()
    equal((await h.pass_time(h.lease_ms - h.lease_ms // 8)).lapsed, 0, "lapsed within a lease since the heartbeat")
    equal((await h.pass_time(h.lease_ms // 4)).lapsed, 1, "lapsed after it")


@case()
async def one_heartbeat_keeps_any_number_of_jobs(h: Harness) -> None:
    await h.enqueue(2 * BATCH_MAX + 10)
    for _ in range(3):
        await h.claim(BATCH_MAX)
    await h.advance(h.lease_ms * 2 // 3)
    equal(len(await h.beat()), 2 * BATCH_MAX + 10, "held")
    equal((await h.pass_time(h.lease_ms * 2 // 3)).lapsed, 0, "lapsed")


@case()
async def a_heartbeat_keeps_only_its_own_worker(h: Harness) -> None:
    await h.enqueue(2)
    (mine,) = await h.claim(worker="w1")
    (other,) = await h.claim(worker="w2")
    await h.advance(h.lease_ms * 2 // 3)
    await h.beat("w1")
    equal((await h.pass_time(h.lease_ms * 2 // 3)).lapsed, 1, "lapsed")
    equal((await h.state(mine.id), await h.state(other.id)), (State.RUNNING, State.PENDING), "states")


@case()
async def a_lease_that_ran_out_unnoticed_is_kept_alive(h: Harness) -> None:
    job = await h.start()
    await h.advance(2 * h.lease_ms)
    equal(await h.beat(), {job.id: job.token}, "held")
    equal((await h.tick()).lapsed, 0, "lapsed after the heartbeat")
    equal(await h.settle(job), Verdict.APPLIED, "verdict")


@case()
async def a_claim_keeps_alive_what_the_worker_held(h: Harness) -> None:
    job = await h.start()
    await h.advance(2 * h.lease_ms)
    other = await h.start()
    equal((await h.tick()).lapsed, 0, "lapsed after the claim")
    equal(await h.beat(), {job.id: job.token, other.id: other.token}, "held")


@case("B21")
async def what_was_taken_away_is_not_held_any_more(h: Harness) -> None:
    job = await h.start(max_attempts=10)
    await h.pass_time(2 * h.lease_ms)
    equal(await h.beat(), {}, "held after the lapse")
    (again,) = await h.claim(worker="w2")
    equal(await h.beat("w1"), {}, "held by the old worker")
    equal(await h.beat("w2"), {again.id: again.token}, "held by the new one")
    (record,) = [await h.record(job.id)]
    equal(record.worker, "w2", "worker")


@case()
async def a_heartbeat_says_which_jobs_shall_stop(h: Harness) -> None:
    await h.enqueue(3)
    jobs = await h.claim(3)
    pulse = await h.backend.heartbeat(WorkerInfo(id="w1"), h.lease_ms)
    equal(pulse.cancel, frozenset(), "to stop at first")
    equal(await h.backend.cancel([jobs[1].id]), [Steered.REQUESTED], "answer")
    pulse = await h.backend.heartbeat(WorkerInfo(id="w1"), h.lease_ms)
    equal(pulse.cancel, frozenset({jobs[1].id}), "to stop")
    true(jobs[1].id in pulse.held, "a job that shall stop is still held until it is settled")
    equal((await h.backend.heartbeat(WorkerInfo(id="w2"), h.lease_ms)).cancel, frozenset(), "to stop, other worker")
    await h.settle(jobs[1], State.CANCELLED)
    equal((await h.backend.heartbeat(WorkerInfo(id="w1"), h.lease_ms)).cancel, frozenset(), "to stop afterwards")


# ---- notes -----------------------------------------------------------------------------------------------


@case()
async def notes_of_a_running_job_are_recorded(h: Harness) -> None:
    job = await h.start()
    for progress, text in ((0.25, "a quarter"), (None, "ümlaut 🐴"), (1.0, None), (0.0, "")):
        before = await h.record(job.id)
        await h.beat(notes=[Note(id=job.id, token=job.token, progress=progress, text=text)])
        record = await h.record(job.id)
        equal(record.progress, progress if progress is not None else before.progress, "progress")
        equal(record.progress_note, text if text is not None else before.progress_note, "progress_note")


@case()
async def notes_stay_when_the_job_ends(h: Harness) -> None:
    job = await h.start()
    await h.beat(notes=[Note(id=job.id, token=job.token, progress=0.75, text="nearly")])
    await h.settle(job)
    record = await h.record(job.id)
    equal((record.progress, record.progress_note), (0.75, "nearly"), "progress, note")


@case("B21")
async def notes_of_a_job_that_is_not_held_are_dropped(h: Harness) -> None:
    old = await h.start(max_attempts=10)
    await h.settle(old, State.PENDING)
    (new,) = await h.claim(worker="w2")
    pending = await h.add()
    await h.beat(
        notes=[
            Note(id=old.id, token=old.token, progress=0.9, text="zombie"),
            Note(id=old.id, token=_NONSENSE, progress=0.8),
            Note(id=pending, token=old.token, progress=0.7),
            Note(id=h.new_id(), token=old.token, progress=0.6),
        ]
    )
    for job_id in (old.id, pending):
        record = await h.record(job_id)
        equal((record.progress, record.progress_note), (None, None), "progress, note")
    await h.beat("w2", notes=[Note(id=new.id, token=new.token, progress=0.1)])
    equal((await h.record(new.id)).progress, 0.1, "progress from the owner")


@case()
async def notes_are_bounded(h: Harness) -> None:
    await h.enqueue(BATCH_MAX + 1)
    jobs = await h.claim(BATCH_MAX) + await h.claim(1)
    notes = [Note(id=job.id, token=job.token, progress=0.5) for job in jobs]
    call = h.backend.heartbeat(WorkerInfo(id="w1"), h.lease_ms, notes)
    await raises(InvalidOption, call, "heartbeat with one note too many")
    equal({job.progress for job in await h.all()}, {None}, "progress after the refusal")
    await h.beat(notes=notes[:BATCH_MAX])
    equal(sum(job.progress == 0.5 for job in await h.all()), BATCH_MAX, "jobs with progress")


# ---- workers ---------------------------------------------------------------------------------------------


@case()
async def a_heartbeat_makes_the_worker_known_with_all_it_says(h: Harness) -> None:
    info = WorkerInfo(
        id="w-ü",
        host="box",
        pid=4_711,
        queues=("a", "b"),
        types=("email", "math"),
        concurrency=100,
        busy=3,
        started_at_ms=1_700_000_000_000,
        version="1.2.3",
    )
    await h.backend.heartbeat(info, h.lease_ms)
    (known,) = await h.backend.workers()
    for name in ("id", "host", "pid", "queues", "types", "concurrency", "busy", "started_at_ms", "version"):
        equal(getattr(known, name), getattr(info, name), name)
    true(0 < known.lease_left_ms <= h.lease_ms, f"lease_left_ms is {known.lease_left_ms} of {h.lease_ms}")


@case()
async def workers_are_listed_with_their_lease_and_their_running_jobs(h: Harness) -> None:
    await h.enqueue(3)
    await h.claim(2, worker="w1", lease_ms=2 * h.lease_ms)
    await h.claim(1, worker="w2", lease_ms=2 * h.lease_ms)
    await h.beat("w3")
    await h.advance(h.lease_ms // 2)
    known = {info.id: info for info in await (await h.open()).workers()}
    equal({name: info.running for name, info in known.items()}, {"w1": 2, "w2": 1, "w3": 0}, "running")
    for name, lease_ms in (("w1", 2 * h.lease_ms), ("w2", 2 * h.lease_ms), ("w3", h.lease_ms)):
        left_ms = known[name].lease_left_ms
        true(0 < left_ms <= lease_ms - h.lease_ms // 2, f"{name} has {left_ms} ms left")


@case()
async def a_worker_whose_lease_ran_out_is_not_listed(h: Harness) -> None:
    await h.enqueue(2)
    await h.claim(worker="w1")
    await h.claim(worker="w2", lease_ms=3 * h.lease_ms)
    await h.advance(2 * h.lease_ms)
    equal([info.id for info in await h.backend.workers()], ["w2"], "workers before the tick")
    await h.tick()
    equal([info.id for info in await h.backend.workers()], ["w2"], "workers after the tick")


@case("B18")
async def a_worker_that_restarts_at_once_does_not_hide_its_dead_self(h: Harness) -> None:
    """The same host and pid as in a container, a new id as at every start."""
    await h.backend.heartbeat(WorkerInfo(id="first", host="pod-0", pid=1), h.lease_ms)
    job = await h.start(worker="first")
    await h.backend.heartbeat(WorkerInfo(id="second", host="pod-0", pid=1), h.lease_ms)
    equal(await h.beat("second"), {}, "held by the new worker")
    await h.advance(h.lease_ms * 2 // 3)
    await h.backend.heartbeat(WorkerInfo(id="second", host="pod-0", pid=1), h.lease_ms)
    equal((await h.pass_time(h.lease_ms * 2 // 3)).lapsed, 1, "lapsed")
    equal(await h.state(job.id), State.PENDING, "state")


# ---- retire ----------------------------------------------------------------------------------------------


@case()
async def retire_lapses_what_the_worker_holds_at_once(h: Harness) -> None:
    await h.enqueue(4, max_attempts=3)
    mine, other = await h.claim(3), await h.claim(1, worker="w2")
    equal(len(await h.backend.retire("w1", "runner 3 was killed")), 3, "jobs lapsed")
    for job in mine:
        record = await h.record(job.id)
        equal((record.state, record.attempt, record.worker), (State.PENDING, 1, None), "state, attempt, worker")
        equal([error.kind for error in record.errors], ["LeaseLapsed"], "errors")
        equal(record.errors[0].attempt, 1, "attempt in the error")
        true("runner 3 was killed" in record.errors[0].message, "the reason is not in the error")
    equal(await h.state(other[0].id), State.RUNNING, "state of another worker's job")
    equal([info.id for info in await h.backend.workers()], ["w2"], "workers")
    equal(len(await h.claim(5, worker="w3")), 3, "claimable again")


@case()
async def retire_sends_each_job_where_a_lapse_would(h: Harness) -> None:
    poison = await h.start(max_attempts=1, queue="a")
    asked = await h.start(max_attempts=5, queue="b")
    await h.backend.cancel([asked.id])
    both = await h.start(max_attempts=1, queue="c")
    await h.backend.cancel([both.id])
    equal(len(await h.backend.retire("w1", "gone")), 3, "jobs lapsed")
    states = [await h.state(job.id) for job in (poison, asked, both)]
    equal(states, [State.FAILED, State.CANCELLED, State.CANCELLED], "states")
    for job in (poison, asked, both):
        true((await h.record(job.id)).finished_at_ms is not None, "finished_at_ms is not set")


@case()
async def retire_of_an_unknown_worker_answers_0(h: Harness) -> None:
    job = await h.start()
    equal(len(await h.backend.retire("nobody", "gone")), 0, "answer for an unknown worker")
    await h.beat("idle")
    equal(len(await h.backend.retire("idle", "stopped")), 0, "answer for an idle worker")
    equal(len(await h.backend.retire("w1", "gone")), 1, "answer at first")
    equal(len(await h.backend.retire("w1", "gone")), 0, "answer when repeated")
    equal(len((await h.record(job.id)).errors), 1, "errors")


@case()
async def retire_takes_any_number_of_jobs(h: Harness) -> None:
    await h.enqueue(BATCH_MAX + 100)
    await h.claim(BATCH_MAX)
    await h.claim(100)
    equal(len(await h.backend.retire("w1", "gone")), BATCH_MAX + 100, "jobs lapsed")
    equal((await h.backend.counts())["default"].states, {State.PENDING: BATCH_MAX + 100}, "counts")


@case()
async def a_retired_worker_may_come_back(h: Harness) -> None:
    await h.start(max_attempts=5)
    await h.backend.retire("w1", "stopped")
    (job,) = await h.claim()
    equal(await h.beat(), {job.id: job.token}, "held")
    equal(await h.settle(job), Verdict.APPLIED, "verdict")


@case("B18", "B29", needs=("worker_rows",))
async def jobs_of_a_worker_nobody_knows_are_recovered(h: Harness) -> None:
    """The rows of the workers were deleted by hand, or by an eviction: their jobs are found all the same."""
    await h.enqueue(3)
    jobs = await h.claim(3)
    h.drop_workers()
    equal((await h.backend.tick(BATCH_MAX, FOREVER)).lapsed, 3, "lapsed")
    equal({await h.state(job.id) for job in jobs}, {State.PENDING}, "states")


@case("B18", needs=("worker_rows",))
async def a_worker_that_lost_its_row_gets_it_back_by_a_heartbeat(h: Harness) -> None:
    job = await h.start()
    h.drop_workers()
    equal(await h.beat(), {job.id: job.token}, "held")
    equal((await h.tick()).lapsed, 0, "lapsed")
