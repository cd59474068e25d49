"""Moves to another store: nothing is lost, nothing is live in two stores, whatever call is repeated (decision 18).

The other store is one in memory, so that a backend is also asked to understand what another one hands over.
"""

from __future__ import annotations

from typing import Any

from ... import codec
from ...backends.base import (
    ABSENT_KEPT_MS,
    TRANSFER_BYTES_MAX,
    Keep,
    Limit,
    Note,
    QueueChange,
    Rerun,
    Schedule,
    ScheduleChange,
    Steered,
    Verdict,
    WorkerInfo,
    queue_topic,
)
from ...errors import ConfigurationError, Unsupported
from ...job import DELAY_MS_MAX, JobSpec, State, Unique
from .case import case, equal, raises, true
from .harness import Harness
from .two_stores import move_all, other_store, run_one, state_in

_NEEDS = ("transfer",)


@case()
async def a_transfer_works_or_is_refused(h: Harness) -> None:
    if h.has("transfer"):
        equal(await h.backend.take_over(), await (await h.open()).take_over(), "identity, over two connections")
        return
    for call in (h.backend.hand_over("x", 1), h.backend.take_over()):
        equal((await raises(Unsupported, call, "what needs 'transfer'")).flag, "transfer", "flag")


# ---- what is moved ---------------------------------------------------------------------------------------


async def _fill(h: Harness) -> list[str]:
    """Bring a job with everything into every state but running; answers the ids."""
    fields: dict[str, Any] = {
        "payload": b'{"n":1}',
        "priority": 2,
        "max_attempts": 7,
        "timeout_ms": 1_234,
        "tags": ("red", "blue"),
        "meta": {"a": "b"},
        "workflow": "w-1",
        "node": "n-1",
        "key": "customer-1",
        "schedule": "nightly",
        "slot_at_ms": 1_700_000_000_000,
    }
    ids = []
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        ids.append((await h.put(state, **fields))[0])
    retried = await h.start(**fields)
    note = Note(id=retried.id, token=retried.token, progress=0.25, text="a quarter")
    await h.backend.heartbeat(WorkerInfo(id="w1"), h.lease_ms, [note])
    await h.settle(retried, State.SCHEDULED, delay_ms=DELAY_MS_MAX, error=h.error(1))
    parked = await h.start(**fields)
    await h.settle(parked, State.SCHEDULED, delay_ms=DELAY_MS_MAX, refund=True, park=True)
    ended = await h.start(payload=b'"' + b"x" * 5_000 + b'"')
    await h.settle(ended, result=b'"' + b"r" * 9_000 + b'"')
    ids += [retried.id, parked.id, ended.id]
    if h.has("steps"):
        stepped = await h.start()
        notes = [Note(id=stepped.id, token=stepped.token, step=name, result=b"[1]") for name in ("one", "two")]
        await h.backend.heartbeat(WorkerInfo(id="w1"), h.lease_ms, notes)
        await h.settle(stepped, State.FAILED, error=h.error(1))
        ids.append(stepped.id)
    ids.append(await h.add(**fields, delay_ms=DELAY_MS_MAX))
    cancelled = await h.add(**fields)
    await h.backend.cancel([cancelled])
    large = await h.add(payload=b'"' + b"y" * 70_000 + b'"')
    ids += [cancelled, await h.add(**fields), await h.add(unique=Unique(key="u")), large]
    if h.has("dependencies"):
        parent = await h.add(queue="parents")
        ids += [parent, await h.add(**fields, after=(parent,), delay_ms=5, after_failed="continue")]
    return ids


@case(needs=_NEEDS)
async def a_job_of_every_state_comes_out_as_it_went_in(h: Harness) -> None:
    ids = await _fill(h)
    before = await h.backend.get(ids)
    other = other_store(h)
    await move_all(h.backend, other)
    equal(await h.backend.get(ids), [None] * len(ids), "what the source still shows")
    equal((await h.all(), await h.backend.workflows()), ([], []), "what the source still finds")
    equal([counts.states for counts in (await h.backend.counts()).values()], [], "what the source still counts")
    equal(await other.get(ids), before, "what arrived")
    await move_all(other, h.backend)
    for was, came in zip(before, await h.backend.get(ids), strict=True):
        equal(came, was, "a job that came back")
    found = {job.id for job in await h.all()}
    equal(found, set(ids), "what is found of those that came back")


@case(needs=_NEEDS)
async def what_runs_stays_and_follows_when_it_has_ended(h: Harness) -> None:
    job = await h.start()
    other = other_store(h)
    to = (await other.take_over()).store
    transfer = await h.backend.hand_over(to, 10)
    equal((transfer.jobs, transfer.last), ((), False), "jobs, last")
    equal(await h.settle(job), Verdict.APPLIED, "verdict on what runs at the source")
    await move_all(h.backend, other)
    equal(await state_in(other, job.id), State.SUCCEEDED, "state")
    true((await h.backend.hand_over(to, 10)).last, "nothing is left, but the source does not say so")


@case(needs=_NEEDS)
async def order_and_priority_hold_after_a_move(h: Harness) -> None:
    source = other_store(h)
    specs = [JobSpec(id=h.new_id(), type="work", priority=5 if n % 2 else 2) for n in range(20)]
    await source.enqueue(specs)
    await move_all(source, h.backend, 7)
    wanted = [spec.id for spec in sorted(specs, key=lambda spec: spec.priority)]
    equal([job.id for job in await h.claim(20)], wanted, "order of starts")


@case(needs=_NEEDS)
async def a_job_that_arrives_runs_and_is_retried_like_any_other(h: Harness) -> None:
    source = other_store(h)
    spec = JobSpec(id=h.new_id(), type="work", delay_ms=h.step_ms, max_attempts=2)
    await source.enqueue([spec])
    await move_all(source, h.backend)
    equal(await h.claim(), [], "claimed before it is due")
    await h.pass_time(2 * h.step_ms)
    (job,) = await h.claim()
    equal((job.id, job.attempt), (spec.id, 1), "id, attempt")
    await h.settle(job, State.FAILED, error=h.error(1))
    equal(await h.backend.rerun([Rerun(id=spec.id)]), [Steered.DONE], "rerun")
    equal([job.id for job in await h.claim()], [spec.id], "claimed after the rerun")


@case(needs=(*_NEEDS, "unique"))
async def a_key_moves_with_its_job(h: Harness) -> None:
    source = other_store(h)
    first, second = (JobSpec(id=h.new_id(), type="work", unique=Unique(key="k")) for _ in range(2))
    await source.enqueue([first])
    await move_all(source, h.backend)
    equal((await source.enqueue([second]))[0].created, True, "the key at the source")
    equal((await h.try_add(unique=Unique(key="k"))).id, first.id, "holder at the target")
    await move_all(source, h.backend)
    equal(await h.state(second.id), State.PENDING, "state of a job whose key is held")
    for left in (2, 1):
        true(not (await h.try_add(unique=Unique(key="k"))).created, f"the key is free while {left} of its jobs live")
        for job in await h.claim(1):
            await h.settle(job)
    true((await h.try_add(unique=Unique(key="k"))).created, "the key is not free when both have ended")


@case(needs=(*_NEEDS, "unique_windows"))
async def a_key_that_is_held_by_time_is_held_after_a_move(h: Harness) -> None:
    source = other_store(h)
    unique = Unique(key="k", for_ms=10 * h.step_ms)
    spec = JobSpec(id=h.new_id(), type="work", unique=unique)
    await source.enqueue([spec])
    await run_one(source)
    await move_all(source, h.backend)
    equal((await h.try_add(unique=unique)).id, spec.id, "holder within the window")
    await h.advance(11 * h.step_ms)
    true((await h.try_add(unique=unique)).created, "the key is not free after the window")


@case(needs=(*_NEEDS, "limits"))
async def a_limit_holds_for_what_arrives(h: Harness) -> None:
    await h.backend.limits([Limit(type="work", concurrency=1)])
    source = other_store(h)
    await source.enqueue([JobSpec(id=h.new_id(), type=kind) for kind in ("work", "work", "free", "work")])
    await move_all(source, h.backend)
    equal(sorted(job.type for job in await h.claim(5)), ["free", "work"], "claimed")


@case(needs=_NEEDS)
async def what_arrives_rings(h: Harness) -> None:
    source = other_store(h)
    await source.enqueue([JobSpec(id=h.new_id(), type="work")])
    with h.backend.watch([queue_topic("default")]) as bell:
        await move_all(source, h.backend)
        true(await bell.wait(h.ring_ms), "no ring when a pending job arrived")


@case(needs=(*_NEEDS, "schedules"))
async def a_schedule_goes_on_where_it_stood(h: Harness) -> None:
    other = other_store(h)
    changes = [
        ScheduleChange(name=name, define=Schedule(name=name, spec=h.spec(), every_ms=h.step_ms), paused=name == "b")
        for name in "ab"
    ]
    before = await h.backend.schedules(changes)
    await move_all(h.backend, other)
    equal(await h.backend.schedules(), [], "schedules of the source")
    equal((await h.tick()).schedules, (), "handed out at the source")
    equal(await other.schedules(), before, "schedules of the target")
    await move_all(other, h.backend)
    equal(await h.backend.schedules(), before, "schedules that came back")
    await h.advance(h.step_ms)
    equal([one.name for one in (await h.tick()).schedules], ["a"], "handed out after all")


@case(needs=(*_NEEDS, "schedules"))
async def a_schedule_that_is_here_already_takes_the_later_cursor(h: Harness) -> None:
    source = other_store(h)
    define = ScheduleChange(name="a", define=Schedule(name="a", spec=h.spec(), every_ms=h.step_ms))
    (here,) = await h.backend.schedules([define])
    await h.advance(h.step_ms)
    (there,) = await source.schedules([define])
    true(there.done_ms > here.done_ms, "the clock stood still")
    await move_all(source, h.backend)
    (merged,) = await h.backend.schedules()
    equal((merged.done_ms, merged.next_ms, merged.paused), (there.done_ms, None, False), "cursor, next, paused")
    true(merged.revision > max(here.revision, there.revision), "a firing planned before may still take effect")


@case(needs=_NEEDS)
async def large_jobs_travel_in_smaller_batches(h: Harness) -> None:
    most = TRANSFER_BYTES_MAX // codec.PAYLOAD_BYTES_MAX
    ids = []
    for _ in range(most + 4):
        ids.append(await h.add(payload=b'"' + b"x" * (codec.PAYLOAD_BYTES_MAX - 2) + b'"'))
    other = other_store(h)
    transfers = await move_all(h.backend, other)
    true(max(len(transfer.jobs) for transfer in transfers) <= most + 1, "too large a batch")
    equal(sum(len(transfer.jobs) for transfer in transfers), len(ids), "jobs that left")
    equal([record is not None for record in await other.get(ids)], [True] * len(ids), "jobs that arrived")


@case(needs=(*_NEEDS, "any_payload"))
async def a_job_larger_than_a_batch_travels_alone(h: Harness) -> None:
    size = TRANSFER_BYTES_MAX // 3
    ids = await h.enqueue(5, payload=b'"' + b"x" * size + b'"')
    ids.append(await h.add(payload=b'"' + b"y" * (TRANSFER_BYTES_MAX + 1) + b'"'))
    other = other_store(h)
    transfers = await move_all(h.backend, other)
    true(max(len(transfer.jobs) for transfer in transfers) <= 3, "too large a batch")
    equal(sum(len(transfer.jobs) for transfer in transfers), 6, "jobs that left")
    equal([record is not None for record in await other.get(ids)], [True] * 6, "jobs that arrived")


# ---- repeated calls --------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_batch_is_answered_again_until_it_is_stored(h: Harness) -> None:
    await h.enqueue(5)
    first = await h.backend.hand_over("there", 3)
    equal(len(first.jobs), 3, "jobs of the batch")
    equal(await (await h.open()).hand_over("there", 1), first, "the batch, asked for again")
    equal(await h.backend.hand_over("there", 3, first.number - 1), first, "the batch, after another was stored")
    second = await h.backend.hand_over("there", 3, first.number)
    equal((len(second.jobs), second.number > first.number), (2, True), "jobs of the next batch, number rises")
    equal(await h.backend.hand_over("there", 3, first.number), second, "the next batch, asked for again")
    empty = await h.backend.hand_over("there", 3, second.number)
    equal((empty.jobs, empty.last, empty.number > second.number), ((), True, True), "jobs, last, number rises")
    equal(await h.backend.hand_over("there", 3, second.number), empty, "the end, asked for again")


@case(needs=_NEEDS)
async def jobs_on_their_way_cannot_be_seen_nor_steered(h: Harness) -> None:
    job_id = await h.add(delay_ms=h.step_ms)
    pending = await h.add()
    await h.backend.hand_over("there", 10)
    for one in (job_id, pending):
        equal(await h.state(one), None, "state")
        equal(await h.backend.cancel([one]), [Steered.MISSING], "cancel")
        equal(await h.backend.rerun([Rerun(id=one)]), [Steered.MISSING], "rerun")
        equal(await h.backend.delete([one]), [Steered.MISSING], "delete")
    equal(await h.claim(5), [], "claimed")
    ticked = await h.pass_time(2 * h.step_ms)
    equal((ticked.promoted, ticked.next_due_ms), (0, None), "promoted, next due")


@case(needs=_NEEDS)
async def one_batch_is_under_way_at_a_time(h: Harness) -> None:
    await h.enqueue(2)
    first = await h.backend.hand_over("there", 1)
    await raises(ConfigurationError, h.backend.hand_over("elsewhere", 1), "a batch for another store")
    second = await h.backend.hand_over("there", 1, first.number)
    await h.backend.hand_over("there", 0, second.number)
    true((await h.backend.hand_over("elsewhere", 1)).last, "a move to another store, when nothing is under way")


@case(needs=_NEEDS)
async def nothing_is_live_before_its_source_has_forgotten_it(h: Harness) -> None:
    source = other_store(h)
    specs = [JobSpec(id=h.new_id(), type="work") for _ in range(3)]
    await source.enqueue(specs)
    to = (await h.backend.take_over()).store
    first = await source.hand_over(to, 2)
    for _ in range(2):
        arrival = await h.backend.take_over(first)
        equal((arrival.verdict, arrival.jobs), (Verdict.APPLIED, 0), "verdict, jobs made live")
    equal((await h.claim(5), await h.all()), ([], []), "claimed, found while the batch is held")
    second = await source.hand_over(to, 2, first.number)
    equal((await h.backend.take_over(second)).jobs, 2, "jobs made live by the next batch")
    equal({job.id for job in await h.claim(5)}, {specs[0].id, specs[1].id}, "claimed")
    equal((await h.backend.take_over(second)).jobs, 0, "jobs made live by its repetition")
    last = await source.hand_over(to, 2, second.number)
    equal([(await h.backend.take_over(last)).jobs for _ in range(2)], [1, 0], "jobs made live by the end")
    equal({job.id for job in await h.claim(5)}, {specs[2].id}, "claimed at the end")


@case(needs=_NEEDS)
async def a_batch_that_comes_late_changes_nothing(h: Harness) -> None:
    source = other_store(h)
    await source.enqueue([JobSpec(id=h.new_id(), type="work") for _ in range(2)])
    to = (await h.backend.take_over()).store
    first = await source.hand_over(to, 1)
    await h.backend.take_over(first)
    second = await source.hand_over(to, 1, first.number)
    await h.backend.take_over(second)
    await run_one(h.backend)
    await h.pass_time(h.step_ms)
    await h.tick(keep=Keep(succeeded_ms=0))
    equal((await h.backend.take_over(first)).verdict, Verdict.STALE, "verdict on a batch that comes late")
    last = await source.hand_over(to, 1, second.number)
    await h.backend.take_over(last)
    await h.backend.take_over(second)
    await h.backend.take_over(last)
    equal([job.id for job in await h.claim(5)], [second.jobs[0].record.id], "claimed: the second job, once")


@case(needs=_NEEDS)
async def an_id_that_is_here_already_is_left_out_and_told(h: Harness) -> None:
    source = other_store(h)
    job_id = await h.add(payload=b'"here"')
    await source.enqueue([JobSpec(id=job_id, type="work", payload=b'"there"'), JobSpec(id=h.new_id(), type="work")])
    to = (await h.backend.take_over()).store
    transfer = await source.hand_over(to, 10)
    await h.backend.take_over(transfer)
    arrival = await h.backend.take_over(await source.hand_over(to, 10, transfer.number))
    equal((arrival.jobs, arrival.known), (1, (job_id,)), "jobs, known")
    equal((await h.record(job_id)).payload, b'"here"', "payload")
    equal(len(await h.claim(5)), 2, "claimed")


@case(needs=_NEEDS)
async def an_id_that_left_is_remembered(h: Harness) -> None:
    spec = h.spec()
    await h.backend.enqueue([spec])
    await move_all(h.backend, other_store(h))
    equal((await h.backend.enqueue([h.spec(), spec]))[1].created, False, "created, for an enqueue made again")
    equal(len(await h.claim(5)), 1, "claimed")
    if h.clock is not None:
        await h.pass_time(ABSENT_KEPT_MS + 1)
        await h.tick()
        true((await h.backend.enqueue([spec]))[0].created, "the id is remembered for ever")


@case(needs=_NEEDS)
async def a_paused_queue_and_its_capacity_hold_no_arrival_back(h: Harness) -> None:
    await h.backend.queues([QueueChange(queue="default", paused=True, capacity=1 if h.has("capacity") else None)])
    source = other_store(h)
    await source.enqueue([JobSpec(id=h.new_id(), type="work") for _ in range(3)])
    await move_all(source, h.backend)
    equal((len(await h.all()), await h.claim(5)), (3, []), "jobs, claimed")
