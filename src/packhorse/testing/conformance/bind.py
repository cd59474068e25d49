"""Transactions of the caller's own: what is moved in one is there with its commit, and gone with its rollback.

While one is open these cases only look at the store from outside: on SQLite nobody else can write then.
"""

from __future__ import annotations

import asyncio

from ...backends.base import BATCH_MAX, Bound, Limit, QueueChange, Settlement, Steered, Verdict, queue_topic
from ...errors import InvalidOption, QueueFull, Refused, UniqueConflict, UnknownParent
from ...job import Claimed, JobSpec, State, Unique
from .case import case, equal, raises, true
from .harness import Harness, OwnConnection

_NEEDS = ("bind", "own_connections")
#: How long a call that must wait for a transaction is watched waiting.
_WATCH_S = 0.05


async def _begin(h: Harness) -> tuple[OwnConnection, Bound]:
    connection = await h.connect()
    await connection.begin()
    return connection, h.backend.bind(connection.raw)


def _end(job: Claimed, *, result: bytes | None = None, follow_ups: tuple[JobSpec, ...] = ()) -> list[Settlement]:
    return [
        Settlement(id=job.id, token=job.token, state=State.SUCCEEDED, result=result, follow_ups=follow_ups),
    ]


# ---- enqueue -----------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def jobs_are_there_with_the_commit_and_not_before(h: Harness) -> None:
    connection, bound = await _begin(h)
    specs = [h.spec(payload=b'{"n":1}', tags=("a",), key="k"), h.spec(delay_ms=h.step_ms)]
    answers = await bound.enqueue(specs)
    equal([(each.id, each.created) for each in answers], [(spec.id, True) for spec in specs], "answers")
    equal(await h.all(), [], "jobs that others see before the commit")
    await connection.commit()
    first, second = [await h.record(spec.id, await h.open()) for spec in specs]
    equal((first.state, first.payload, first.tags, first.key), (State.PENDING, b'{"n":1}', ("a",), "k"), "the job")
    equal(second.state, State.SCHEDULED, "state of the delayed one")
    equal([job.id for job in await h.claim(5)], [first.id], "claimed")


@case(needs=_NEEDS)
async def a_rollback_leaves_nothing(h: Harness) -> None:
    await h.backend.queues([QueueChange(queue="default", capacity=1)])
    unique = Unique(key="k", on_conflict="refuse")
    connection, bound = await _begin(h)
    lost = h.spec(unique=unique)
    await bound.enqueue([lost])
    await connection.rollback()
    equal(await h.all(), [], "jobs")
    true((await h.try_add(unique=unique)).created, "the key or the room is still taken")
    equal(await h.state(lost.id), None, "state of the job that was rolled back")


@case(needs=_NEEDS)
async def a_transaction_that_is_lost_leaves_nothing(h: Harness) -> None:
    """The program died, or the connection did."""
    connection, bound = await _begin(h)
    await bound.enqueue(h.specs(3, unique=None))
    await connection.close()
    equal(await h.all(), [], "jobs")
    await h.enqueue(1)
    equal(len(await h.claim(5)), 1, "claimed")


@case(needs=_NEEDS)
async def an_id_is_one_job_however_often_it_is_asked_for(h: Harness) -> None:
    there = await h.add()
    connection, bound = await _begin(h)
    spec = h.spec()
    calls = [await bound.enqueue([spec]) for _ in range(2)]
    equal([each.created for (each,) in calls], [True, False], "created, in the same transaction")
    equal((await bound.enqueue([h.spec(id=there)]))[0].created, False, "created, of a job that was there before")
    await connection.commit()
    equal((await h.try_add(id=spec.id)).created, False, "created, after the commit")
    equal(len(await h.all()), 2, "jobs")


@case(needs=_NEEDS)
async def a_transaction_sees_its_own_jobs(h: Harness) -> None:
    there = await h.add()
    connection, bound = await _begin(h)
    spec = h.spec(payload=b"[1]")
    await bound.enqueue([spec])
    records = await bound.get([there, spec.id, h.new_id()])
    equal([each and each.id for each in records], [there, spec.id, None], "what the transaction sees")
    equal(await h.state(spec.id), None, "what others see")
    await connection.rollback()
    equal((await h.backend.bind(connection.raw).get([there]))[0] is None, False, "a look without a transaction")


@case(needs=_NEEDS)
async def a_refused_call_leaves_the_transaction_as_it_was(h: Harness) -> None:
    """Also on servers where an error ends a transaction."""
    holder = await h.add(queue="keys", unique=Unique(key="k"))
    await h.backend.queues([QueueChange(queue="full", capacity=1)])
    connection, bound = await _begin(h)
    before = h.spec()
    await bound.enqueue([before])
    refused: list[tuple[type[Refused], JobSpec]] = [
        (UniqueConflict, h.spec(queue="keys", unique=Unique(key="k", on_conflict="refuse"))),
        (UnknownParent, h.spec(after=(h.new_id(),))),
        (QueueFull, h.spec(queue="full")),
    ]
    for kind, spec in refused:
        await raises(kind, bound.enqueue([h.spec(), h.spec(queue="full"), spec]), f"an enqueue that is a {kind}")
    await raises(InvalidOption, bound.enqueue(h.specs(BATCH_MAX + 1)), "too many jobs in one call")
    after = h.spec(queue="keys", unique=Unique(key="k"))
    equal((await bound.enqueue([after]))[0].id, holder, "who holds the key")
    await connection.commit()
    equal({job.id for job in await h.all()}, {holder, before.id}, "jobs after the commit")


@case(needs=_NEEDS)
async def a_connection_serves_one_transaction_after_the_other(h: Harness) -> None:
    connection = await h.connect()
    bound = h.backend.bind(connection.raw)
    kept = []
    for number in range(4):
        await connection.begin()
        spec = h.spec()
        await bound.enqueue([spec])
        if number % 2:
            await connection.rollback()
        else:
            await connection.commit()
            kept.append(spec.id)
    equal({job.id for job in await h.all()}, set(kept), "jobs of the transactions that were committed")


@case(needs=_NEEDS)
async def without_a_transaction_it_is_refused(h: Harness) -> None:
    """Else nobody would commit it, or it would be committed at once, as if there were no transaction."""
    job = await h.start()
    connection = await h.connect()
    bound = h.backend.bind(connection.raw)
    await raises(InvalidOption, bound.enqueue([h.spec()]), "enqueue where no transaction is open")
    await raises(InvalidOption, bound.settle(_end(job)), "settle where no transaction is open")
    equal([each.id for each in await h.all()], [job.id], "jobs")
    equal(await h.state(job.id), State.RUNNING, "state")


@case(needs=_NEEDS)
async def many_jobs_are_stored_in_one_transaction(h: Harness) -> None:
    connection, bound = await _begin(h)
    for _ in range(3):
        await bound.enqueue(h.specs(BATCH_MAX))
    await connection.commit()
    equal(len(await h.all()), 3 * BATCH_MAX, "jobs")


# ---- keys, room, families ----------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def who_wants_the_same_key_waits_for_the_commit(h: Harness) -> None:
    connection, bound = await _begin(h)
    spec = h.spec(unique=Unique(key="k"))
    await bound.enqueue([spec])
    racers = [
        asyncio.create_task(backend.enqueue([h.spec(unique=Unique(key="k"))]))
        for backend in [h.backend, *await h.several(2)]
    ]
    await asyncio.wait(racers, timeout=_WATCH_S)
    equal([racer.done() for racer in racers], [False] * 3, "racers with an answer before the commit")
    await connection.commit()
    answers = [await racer for racer in racers]
    equal([(each.id, each.created) for (each,) in answers], [(spec.id, False)] * 3, "answers")
    equal(len(await h.all()), 1, "jobs")


@case(needs=_NEEDS)
async def who_wants_the_same_key_gets_it_after_a_rollback(h: Harness) -> None:
    connection, bound = await _begin(h)
    await bound.enqueue([h.spec(unique=Unique(key="k"))])
    racers = [asyncio.create_task(backend.enqueue([h.spec(unique=Unique(key="k"))])) for backend in await h.several(3)]
    await asyncio.wait(racers, timeout=_WATCH_S)
    await connection.rollback()
    answers = [(await racer)[0] for racer in racers]
    equal(sum(each.created for each in answers), 1, "created")
    equal({each.id for each in answers}, {each.id for each in await h.all()}, "the job that all were answered")


@case(needs=_NEEDS)
async def who_asks_for_the_same_id_waits_for_the_commit(h: Harness) -> None:
    """An idempotency key is an id."""
    connection, bound = await _begin(h)
    spec = h.spec()
    await bound.enqueue([spec])
    racer = asyncio.create_task((await h.open()).enqueue([spec]))
    await asyncio.wait([racer], timeout=_WATCH_S)
    await connection.commit()
    equal((await racer)[0].created, False, "created")
    equal(len(await h.all()), 1, "jobs")


@case(needs=_NEEDS)
async def capacity_counts_the_jobs_of_the_transaction(h: Harness) -> None:
    await h.backend.queues([QueueChange(queue="default", capacity=2)])
    connection, bound = await _begin(h)
    await bound.enqueue(h.specs(2))
    await raises(QueueFull, bound.enqueue([h.spec()]), "a third job")
    await connection.commit()
    await raises(QueueFull, h.backend.enqueue([h.spec()]), "a third job after the commit")
    equal(len(await h.all()), 2, "jobs")


@case(needs=(*_NEEDS, "dependencies"))
async def a_child_may_follow_its_parent_in_the_same_transaction(h: Harness) -> None:
    outside = await h.start(queue="outside")
    connection, bound = await _begin(h)
    parent = h.spec(queue="parents")
    child = h.spec(after=(parent.id, outside.id))
    await bound.enqueue([parent])
    await bound.enqueue([child])
    await connection.commit()
    record = await h.record(child.id)
    equal((record.state, record.waiting_for), (State.WAITING, 2), "state and parents of the child")
    await h.settle(outside)
    for job in await h.claim(1, "parents"):
        await h.settle(job)
    equal(await h.state(child.id), State.PENDING, "state of the child after both")


@case(needs=(*_NEEDS, "dependencies"))
async def a_rollback_leaves_no_edge(h: Harness) -> None:
    parent = await h.start(queue="parents")
    connection, bound = await _begin(h)
    child = h.spec(after=(parent.id,))
    await bound.enqueue([child])
    await connection.rollback()
    await h.settle(parent)
    await h.tick()
    equal(await h.state(child.id), None, "state of the child")
    equal(await h.backend.delete([parent.id]), [Steered.DONE], "delete of the parent")
    equal(await h.all(), [], "jobs")


# ---- settle ------------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_settlement_takes_effect_with_the_commit(h: Harness) -> None:
    job = await h.start(unique=Unique(key="k"))
    next_job = h.spec(queue="next", unique=Unique(key="n"))
    connection, bound = await _begin(h)
    verdicts = await bound.settle(_end(job, result=b'"done"', follow_ups=(next_job,)))
    equal(verdicts, [Verdict.APPLIED], "verdicts")
    equal((await h.state(job.id), await h.state(next_job.id)), (State.RUNNING, None), "states before the commit")
    await connection.commit()
    record = await h.record(job.id)
    equal((record.state, record.result), (State.SUCCEEDED, b'"done"'), "state, result")
    equal(await h.state(next_job.id), State.PENDING, "state of the follow-up")
    equal(await h.settle(job, State.FAILED), Verdict.STALE, "a later settlement under the same token")
    equal(await h.beat(), {}, "held")
    true((await h.try_add(unique=Unique(key="k"))).created, "its unique key is not free")


@case("B21", needs=_NEEDS)
async def a_settlement_that_is_rolled_back_leaves_the_attempt_as_it_was(h: Harness) -> None:
    job = await h.start(unique=Unique(key="k"), max_attempts=5)
    follow_up = h.spec(queue="next")
    connection, bound = await _begin(h)
    equal(await bound.settle(_end(job, result=b"1", follow_ups=(follow_up,))), [Verdict.APPLIED], "verdicts")
    await connection.rollback()
    record = await h.record(job.id)
    equal((record.state, record.attempt, record.result), (State.RUNNING, 1, None), "state, attempt, result")
    equal(await h.state(follow_up.id), None, "state of the follow-up")
    equal((await h.try_add(unique=Unique(key="k"))).id, job.id, "who holds its key")
    equal(await h.beat(), {job.id: job.token}, "held")
    equal(await h.settle(job), Verdict.APPLIED, "its own settlement afterwards")


@case("B21", needs=_NEEDS)
async def a_settlement_of_an_old_run_is_stale(h: Harness) -> None:
    old = await h.start(max_attempts=9)
    await h.backend.retire("w1", "its process died")
    (new,) = await h.claim(1, worker="w2")
    equal(new.id, old.id, "the job that was claimed again")
    connection, bound = await _begin(h)
    spec = h.spec(queue="next")
    equal(await bound.settle(_end(old, follow_ups=(spec,))), [Verdict.STALE], "verdict on the old token")
    equal(await bound.settle(_end(new)), [Verdict.APPLIED], "verdict on the new one")
    equal(await bound.settle(_end(new)), [Verdict.STALE], "verdict on the new one once more")
    await connection.commit()
    equal((await h.state(new.id), await h.state(spec.id)), (State.SUCCEEDED, None), "states")


@case(needs=(*_NEEDS, "dependencies"))
async def children_start_with_the_commit(h: Harness) -> None:
    job = await h.start(queue="parents")
    child = await h.add(after=(job.id,))
    for end in ("rollback", "commit"):
        connection, bound = await _begin(h)
        equal(await bound.settle(_end(job)), [Verdict.APPLIED], f"verdicts before the {end}")
        equal(await h.state(child), State.WAITING, f"state of the child before the {end}")
        await getattr(connection, end)()
    equal(await h.state(child), State.PENDING, "state of the child")
    equal([each.id for each in await h.claim(5)], [child], "claimed")


@case(needs=(*_NEEDS, "limits"))
async def a_limit_counts_a_job_until_the_commit(h: Harness) -> None:
    await h.backend.limits([Limit(type="work", concurrency=1)])
    ids = await h.enqueue(2)
    (job,) = await h.claim(2)
    connection, bound = await _begin(h)
    await bound.settle(_end(job))
    await connection.rollback()
    equal(await h.claim(2), [], "claimed after a rollback")
    await connection.begin()
    await bound.settle(_end(job))
    await connection.commit()
    equal([each.id for each in await h.claim(2)], ids[1:], "claimed after the commit")


@case(needs=_NEEDS)
async def the_effect_and_the_next_job_share_a_transaction_with_the_settlement(h: Harness) -> None:
    job = await h.start()
    connection, bound = await _begin(h)
    spec = h.spec(queue="next")
    await bound.enqueue([spec])
    await bound.settle(_end(job))
    await connection.commit()
    equal((await h.state(job.id), await h.state(spec.id)), (State.SUCCEEDED, State.PENDING), "states")


# ---- waking ------------------------------------------------------------------------------------------------


@case("B30", needs=_NEEDS)
async def who_waits_is_woken_by_the_commit(h: Harness) -> None:
    for backend in (h.backend, await h.open()):
        with backend.watch([queue_topic("default")]) as bell:
            connection, bound = await _begin(h)
            spec = h.spec()
            await bound.enqueue([spec])
            while await bell.wait(_WATCH_S * 1000):  # rings of what was before
                pass
            await connection.commit()
            true(await bell.wait(h.ring_ms), "no bell rang for a job that was committed")
            equal(await h.state(spec.id), State.PENDING, "state when the bell rang")
