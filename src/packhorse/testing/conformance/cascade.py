"""The end of a parent, whichever way it comes: children are freed or cancelled once; a rerun takes it back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ...backends.base import BATCH_MAX, Rerun, Settlement, Steered, Verdict, job_topic
from ...job import Claimed, JobRecord, State, Unique
from .case import case, equal, true
from .harness import Harness

_NEEDS = ("dependencies",)
_PARENTS = "parents"

End = Callable[[Harness, str], Awaitable[object]]


async def _run(h: Harness, job_id: str) -> Claimed:
    """Start the parent, which is the only pending job of its queue."""
    (job,) = await h.claim(1, _PARENTS, worker="parental")
    equal(job.id, job_id, "parent that started")
    return job


def _settled(state: State) -> End:
    async def end(h: Harness, job_id: str) -> None:
        equal(await h.settle(await _run(h, job_id), state), Verdict.APPLIED, "verdict")

    return end


async def _lapse(h: Harness, job_id: str) -> None:
    await _run(h, job_id)
    equal((await h.pass_time(2 * h.lease_ms)).lapsed, 1, "lapsed")


async def _retire(h: Harness, job_id: str) -> None:
    await _run(h, job_id)
    await h.backend.retire("parental", "its process died")


async def _cancel(h: Harness, job_id: str) -> None:
    equal(await h.backend.cancel([job_id]), [Steered.DONE], "answer of cancel")


async def _cancel_and_retry(h: Harness, job_id: str) -> None:
    job = await _run(h, job_id)
    await h.backend.cancel([job_id])
    await h.settle(job, State.SCHEDULED, delay_ms=9_000)


async def _delete(h: Harness, job_id: str) -> None:
    equal(await h.backend.delete([job_id]), [Steered.DONE], "answer of delete")


#: Every way in which a job of one attempt ends badly.
_BAD_ENDS: dict[str, End] = {
    "failed": _settled(State.FAILED),
    "was cancelled by its worker": _settled(State.CANCELLED),
    "lapsed on its last attempt": _lapse,
    "lost its worker on its last attempt": _retire,
    "was cancelled": _cancel,
    "was asked to stop, then retried": _cancel_and_retry,
    "was deleted": _delete,
}


async def _family(h: Harness, **fields: object) -> list[str]:
    """Store a parent, two children of different policies, and two of the child that a bad end cancels."""
    ids = [h.new_id() for _ in range(5)]
    await h.backend.enqueue(
        [
            h.spec(id=ids[0], queue=_PARENTS, max_attempts=1, **fields),
            h.spec(id=ids[1], after=(ids[0],)),
            h.spec(id=ids[2], after=(ids[0],), after_failed="continue"),
            h.spec(id=ids[3], after=(ids[1],)),
            h.spec(id=ids[4], after=(ids[1],), after_failed="continue"),
        ]
    )
    return ids


async def _states(h: Harness, ids: list[str]) -> list[State | None]:
    return [await h.state(job_id) for job_id in ids]


async def _cancelled_for(h: Harness, job_id: str, parent: str, what: str) -> JobRecord:
    """Fail unless the record says that and why the job was cancelled."""
    record = await h.record(job_id)
    equal(
        (record.state, record.attempt, record.waiting_for),
        (State.CANCELLED, 0, 0),
        f"state, attempt, waiting_for {what}",
    )
    equal([(error.kind, error.attempt) for error in record.errors[-1:]], [("ParentFailed", 0)], f"last error {what}")
    true(parent in record.errors[-1].message, f"the error does not name the parent {what}")
    true(record.finished_at_ms is not None, f"finished_at_ms is not set {what}")
    return record


@case("B23", needs=_NEEDS)
async def however_a_parent_ends_badly_no_child_waits_for_ever(h: Harness) -> None:
    for how, end in _BAD_ENDS.items():
        what = f"after its parent {how}"
        ids = await _family(h)
        bells = [h.backend.watch([job_topic(job_id)]) for job_id in (ids[1], ids[3])]
        await end(h, ids[0])
        await _cancelled_for(h, ids[1], ids[0], what)
        await _cancelled_for(h, ids[3], ids[1], f"{what}, one further")
        wanted = [State.CANCELLED, State.PENDING, State.CANCELLED, State.PENDING]
        equal(await _states(h, ids[1:]), wanted, f"states {what}")
        for bell in bells:
            with bell:
                true(await bell.wait(h.ring_ms), f"no ring for a child that was cancelled {what}")
        equal({job.id for job in await h.claim(9)}, {ids[2], ids[4]}, f"claimed {what}")
        await h.backend.retire("w1", "end of the turn")
        await h.backend.delete([job.id for job in await h.all()])


@case("B23", needs=("dependencies", "unique_windows"))
async def a_replaced_parent_counts_as_cancelled(h: Harness) -> None:
    ids = await _family(h, unique=Unique(key="k"))
    true((await h.try_add(queue=_PARENTS, unique=Unique(key="k", on_conflict="replace"))).created, "not replaced")
    wanted = [State.CANCELLED, State.CANCELLED, State.PENDING, State.CANCELLED, State.PENDING]
    equal(await _states(h, ids), wanted, "states")
    await _cancelled_for(h, ids[1], ids[0], "after its parent was replaced")


@case("B23", needs=_NEEDS)
async def a_parent_that_has_not_ended_frees_nobody(h: Harness) -> None:
    parent = await h.add(queue=_PARENTS, max_attempts=9)
    child = await h.add(after=(parent,))
    for state in (State.PENDING, State.SCHEDULED):
        job = await _run(h, parent)
        await h.settle(job, state, delay_ms=h.step_ms if state is State.SCHEDULED else 0, error=h.error())
        await h.pass_time(h.step_ms + 1)
        equal(await h.state(child), State.WAITING, f"state after the parent went to {state}")
    await _lapse(h, parent)
    await _retire(h, parent)
    job = await _run(h, parent)
    await h.backend.cancel([parent])
    equal(await h.state(child), State.WAITING, "state while the parent is asked to stop")
    equal(await h.settle(job), Verdict.APPLIED, "verdict")
    equal(await h.settle(job, State.FAILED), Verdict.STALE, "verdict of a second settlement")
    equal(await h.state(child), State.PENDING, "state after the parent succeeded all the same")


@case("B23", needs=_NEEDS)
async def one_bad_parent_is_enough_and_decides_at_once(h: Harness) -> None:
    first, second = await h.enqueue(2, queue=_PARENTS)
    cancelled = await h.add(after=(first, second))
    goes_on = await h.add(after=(first, second), after_failed="continue")
    jobs = await h.claim(2, _PARENTS)
    await h.settle(jobs[1], State.FAILED)
    equal(await _states(h, [cancelled, goes_on]), [State.CANCELLED, State.WAITING], "states after one failed")
    equal((await h.record(goes_on)).waiting_for, 1, "parents that the other waits for")
    before = await h.record(cancelled)
    await h.settle(jobs[0])
    equal(await _states(h, [cancelled, goes_on]), [State.CANCELLED, State.PENDING], "states after both ended")
    equal(await h.record(cancelled), before, "record of the cancelled one")


@case(needs=_NEEDS)
async def a_diamond_closes_once(h: Harness) -> None:
    ids = [h.new_id() for _ in range(4)]
    specs = [h.spec(id=ids[0]), *(h.spec(id=ids[number], after=(ids[0],)) for number in (1, 2))]
    await h.backend.enqueue([*specs, h.spec(id=ids[3], after=(ids[1], ids[2]))])
    for wanted in ([ids[0]], [ids[1], ids[2]], [ids[3]], []):
        jobs = await h.claim(9)
        equal([job.id for job in jobs], wanted, "started together")
        await h.backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs])
    equal({(job.state, job.attempt) for job in await h.all()}, {(State.SUCCEEDED, 1)}, "states, attempts")


@case(needs=_NEEDS)
async def a_chain_runs_link_by_link(h: Harness) -> None:
    ids = [h.new_id() for _ in range(30)]
    specs = [h.spec(id=job_id, after=(ids[number - 1],) if number else ()) for number, job_id in enumerate(ids)]
    await h.backend.enqueue(specs[::-1])
    for job_id in ids:
        (job,) = await h.claim(9)
        equal(job.id, job_id, "link")
        await h.settle(job)
    equal(await h.claim(9), [], "claimed after the last")


@case("B23", needs=_NEEDS)
async def a_chain_of_200_is_cancelled_at_its_head_in_one_move(h: Harness) -> None:
    ids = [h.new_id() for _ in range(200)]
    await h.backend.enqueue(
        [h.spec(id=job_id, after=(ids[number - 1],) if number else ()) for number, job_id in enumerate(ids)]
    )
    await h.backend.cancel(ids[:1])
    equal((await h.backend.counts())["default"].states, {State.CANCELLED: 200}, "states")
    for number in (1, 100, 199):
        await _cancelled_for(h, ids[number], ids[number - 1], f"link {number}")


async def _fan_out(h: Harness, state: State) -> tuple[str, State]:
    """End a parent of 2,500 children; answers the parent and where they go."""
    parent = await h.add(queue=_PARENTS)
    await h.enqueue(2_500, after=(parent,))
    job = await _run(h, parent)
    await h.settle(job, state)
    return parent, State.PENDING if state is State.SUCCEEDED else State.CANCELLED


@case(needs=_NEEDS)
async def more_children_than_one_move_takes_are_freed_by_ticks(h: Harness) -> None:
    for state in (State.SUCCEEDED, State.FAILED):
        _, wanted = await _fan_out(h, state)
        states = (await h.backend.counts())["default"].states
        equal(states, {wanted: BATCH_MAX, State.WAITING: 2_500 - BATCH_MAX}, f"children after the parent {state}")
        freed = []
        for _ in range(20):
            ticked = await h.tick(limit=400)
            freed.append(ticked.freed)
            states = (await h.backend.counts())["default"].states
            left = states.get(State.WAITING, 0)
            equal((states[wanted], left), (BATCH_MAX + sum(freed), 1_500 - sum(freed)), "moved, left")
            equal(ticked.next_due_ms, 0 if left else None, f"next due with {left} left")
            if not left:
                break
        true(max(freed) <= 400, f"{max(freed)} children freed by a tick of 400")
        equal(sum(freed), 1_500, "children freed by ticks")
        equal((await h.tick()).freed, 0, "freed by one tick more")
        await _remove_all(h)


@case(needs=_NEEDS)
async def children_that_a_tick_will_free_are_not_forgotten_meanwhile(h: Harness) -> None:
    """The parent is not dropped while they wait, and one of them may be cancelled."""
    parent, _ = await _fan_out(h, State.SUCCEEDED)
    waiting = [job.id for job in await h.all(states=(State.WAITING,), limit=BATCH_MAX)]
    equal(await h.backend.cancel(waiting[:2]), [Steered.DONE] * 2, "answers of cancel")
    while (await h.tick()).freed:
        pass
    equal(await h.all(states=(State.WAITING,)), [], "jobs that wait for ever")
    equal(await _states(h, waiting[:2]), [State.CANCELLED] * 2, "states of those that were cancelled")
    equal(await h.state(parent), State.SUCCEEDED, "state of the parent")
    await _remove_all(h)


async def _tick_on(h: Harness) -> None:
    """Tick until no tick frees any more."""
    for _ in range(50):
        if not (await h.tick()).freed:
            return
    raise AssertionError("ticks free children without end")


@case("B23", needs=_NEEDS)
async def a_parent_that_is_deleted_while_ticks_free_its_children_strands_none(h: Harness) -> None:
    """It had succeeded: those that a tick was to free are freed."""
    parent, _ = await _fan_out(h, State.SUCCEEDED)
    equal(await h.backend.delete([parent]), [Steered.DONE], "answer of delete")
    await _tick_on(h)
    equal((await h.backend.counts())["default"].states, {State.PENDING: 2_500}, "children")
    await _remove_all(h)


@case("B23", needs=_NEEDS)
async def a_parent_that_is_rerun_while_ticks_free_its_children_frees_each_once(h: Harness) -> None:
    parent, _ = await _fan_out(h, State.SUCCEEDED)
    await h.backend.rerun([Rerun(id=parent)])
    await _tick_on(h)
    await h.settle(await _run(h, parent))
    await _tick_on(h)
    equal((await h.backend.counts())["default"].states, {State.PENDING: 2_500}, "children")
    claimed = [job.attempt for _ in range(3) for job in await h.claim(BATCH_MAX)]
    equal(claimed, [1] * 2_500, "attempts of what was claimed")
    await h.backend.retire("w1", "end of the case")
    await _remove_all(h)


@case("B23", needs=_NEEDS)
async def a_parent_that_is_rerun_while_ticks_cancel_its_children_brings_all_back(h: Harness) -> None:
    parent, _ = await _fan_out(h, State.FAILED)
    await h.backend.rerun([Rerun(id=parent)])
    await _tick_on(h)
    equal((await h.backend.counts())["default"].states, {State.WAITING: 2_500}, "children")
    await _remove_all(h)


@case("B23", needs=_NEEDS)
async def a_chain_longer_than_a_move_is_cancelled_to_its_end(h: Harness) -> None:
    ids = [h.new_id() for _ in range(1_500)]
    chain = [h.spec(id=job_id, after=(ids[number - 1],) if number else ()) for number, job_id in enumerate(ids)]
    await h.backend.enqueue(chain[:BATCH_MAX])
    await h.backend.enqueue(chain[BATCH_MAX:])
    await h.backend.cancel(ids[:1])
    await _tick_on(h)
    equal((await h.backend.counts())["default"].states, {State.CANCELLED: 1_500}, "states")
    await _remove_all(h)


async def _remove_all(h: Harness) -> None:
    for _ in range(9):
        await h.backend.delete([job.id for job in (await h.all())[:BATCH_MAX]])


@case("B28", needs=_NEEDS)
async def racing_ends_of_the_parents_free_their_child_once(h: Harness) -> None:
    connections = await h.several(4)
    for turn in range(8):
        parents = await h.enqueue(4, queue=_PARENTS)
        child = await h.add(queue=f"turn-{turn}", after=tuple(parents))
        jobs = await h.claim(4, _PARENTS)
        calls = [h.settle(job, backend=backend) for job, backend in zip(jobs, connections, strict=True)]
        again = [h.settle(job, backend=backend) for job, backend in zip(jobs, connections[::-1], strict=True)]
        await asyncio.gather(*calls, *again)
        record = await h.record(child)
        equal((record.state, record.waiting_for), (State.PENDING, 0), "state, parents it waits for")
        equal(len(await h.claim(5, f"turn-{turn}")), 1, "claimable copies")


# ---- rerun -----------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_parent_that_succeeds_twice_frees_its_children_once(h: Harness) -> None:
    parent, other = await h.enqueue(2, queue=_PARENTS)
    done, waiting = await h.add(after=(parent,)), await h.add(queue="b", after=(parent, other))
    jobs = await h.claim(2, _PARENTS)
    await h.settle(jobs[0])
    (job,) = await h.claim(5)
    equal(job.id, done, "claimed")
    await h.backend.rerun([Rerun(id=parent)])
    equal(await h.state(done), State.RUNNING, "state of the running child")
    await h.settle(await _run(h, parent))
    equal(await h.settle(job), Verdict.APPLIED, "verdict of the child")
    equal(await _states(h, [done, waiting]), [State.SUCCEEDED, State.WAITING], "states after it succeeded twice")
    await h.settle(jobs[1])
    equal([job.id for job in await h.claim(5, "default", "b")], [waiting], "claimed after the other parent, once")


@case("B23", needs=_NEEDS)
async def rerun_of_a_failed_parent_brings_its_children_back(h: Harness) -> None:
    ids = await _family(h)
    for turn in (1, 2):
        await _settled(State.FAILED)(h, ids[0])
        equal(await h.backend.rerun([Rerun(id=ids[0])]), [Steered.DONE], "answer of rerun")
        wanted = [State.PENDING, State.WAITING, State.PENDING, State.WAITING]
        equal(await _states(h, ids[:4]), wanted, f"states after rerun {turn}")
        for job_id in (ids[1], ids[3]):
            record = await h.record(job_id)
            equal((record.waiting_for, record.finished_at_ms), (1, None), "parents it waits for, finished_at_ms")
            equal(
                (record.attempt, [error.kind for error in record.errors]),
                (0, ["ParentFailed"] * turn),
                "attempt, errors",
            )
    await _settled(State.SUCCEEDED)(h, ids[0])
    started = [job for job in await h.claim(9) if job.id == ids[1]]
    equal([job.attempt for job in started], [1], "starts of the child")
    await h.settle(started[0])
    equal(await h.state(ids[3]), State.PENDING, "state of the last in the chain")


@case("B23", needs=_NEEDS)
async def a_long_chain_comes_back_as_a_whole(h: Harness) -> None:
    ids = [h.new_id() for _ in range(60)]
    await h.backend.enqueue(
        [h.spec(id=job_id, after=(ids[number - 1],) if number else ()) for number, job_id in enumerate(ids)]
    )
    await h.backend.cancel(ids[:1])
    await h.backend.rerun([Rerun(id=ids[0], delay_ms=9_000)])
    counts = (await h.backend.counts())["default"].states
    equal(counts, {State.SCHEDULED: 1, State.WAITING: 59}, "states")


@case(needs=_NEEDS)
async def what_another_parent_keeps_down_stays_down(h: Harness) -> None:
    first, second = await h.enqueue(2, queue=_PARENTS)
    child = await h.add(after=(first, second))
    grandchild = await h.add(after=(child,))
    jobs = await h.claim(2, _PARENTS)
    await h.backend.settle([Settlement(id=job.id, token=job.token, state=State.FAILED) for job in jobs])
    await h.backend.rerun([Rerun(id=first)])
    equal(await _states(h, [child, grandchild]), [State.CANCELLED] * 2, "states while the other parent has failed")
    await _settled(State.SUCCEEDED)(h, first)
    equal(await _states(h, [child, grandchild]), [State.CANCELLED] * 2, "states after the first succeeded")


@case(needs=_NEEDS)
async def what_a_deleted_parent_keeps_down_stays_down(h: Harness) -> None:
    """A rerun brings back what was cancelled because of that very job."""
    first, second = await h.enqueue(2, queue=_PARENTS)
    child = await h.add(after=(first, second))
    await h.backend.delete([first])
    equal(await h.state(child), State.CANCELLED, "state after one parent was deleted")
    await _settled(State.SUCCEEDED)(h, second)
    equal(await h.backend.rerun([Rerun(id=second)]), [Steered.DONE], "answer of rerun for the other")
    equal(await h.state(child), State.CANCELLED, "state after the other was rerun")


@case(needs=_NEEDS)
async def what_an_operator_cancelled_does_not_come_back(h: Harness) -> None:
    parent = await h.add(queue=_PARENTS)
    by_hand, by_parent = await h.enqueue(2, after=(parent,))
    await h.backend.cancel([by_hand])
    await _settled(State.FAILED)(h, parent)
    await h.backend.rerun([Rerun(id=parent)])
    equal(await _states(h, [by_hand, by_parent]), [State.CANCELLED, State.WAITING], "states")


@case(needs=_NEEDS)
async def a_child_that_was_rerun_by_itself_is_its_own(h: Harness) -> None:
    """It starts though its parent failed; a rerun of the parent then leaves it alone, live or ended."""
    parent = await h.add(queue=_PARENTS)
    child = await h.add(after=(parent,))
    await _settled(State.FAILED)(h, parent)
    equal(await h.backend.rerun([Rerun(id=child)]), [Steered.DONE], "answer of rerun")
    (job,) = await h.claim()
    await h.backend.rerun([Rerun(id=parent)])
    equal(await h.state(child), State.RUNNING, "state after the parent was rerun")
    await h.settle(job, State.CANCELLED)
    await _settled(State.FAILED)(h, parent)
    await h.backend.rerun([Rerun(id=parent)])
    equal(await h.state(child), State.CANCELLED, "state after it was cancelled while it ran")


@case(needs=("dependencies", "unique"))
async def a_child_whose_key_another_took_does_not_come_back(h: Harness) -> None:
    key = Unique(key="k")
    parent = await h.add(queue=_PARENTS)
    child = await h.add(after=(parent,), unique=key)
    grandchild = await h.add(after=(child,))
    await _settled(State.FAILED)(h, parent)
    holder = await h.add(unique=key)
    equal(await h.backend.rerun([Rerun(id=parent)]), [Steered.DONE], "answer of rerun")
    equal(await _states(h, [child, grandchild, holder]), [State.CANCELLED, State.CANCELLED, State.PENDING], "states")
    await h.backend.delete([holder])
    await _settled(State.FAILED)(h, parent)
    await h.backend.rerun([Rerun(id=parent)])
    equal(await _states(h, [child, grandchild]), [State.WAITING] * 2, "states when the key is free")
    equal((await h.try_add(unique=key)).id, child, "holder")


@case(needs=_NEEDS)
async def a_rerun_child_waits_for_parents_that_live(h: Harness) -> None:
    first, second = await h.enqueue(2, queue=_PARENTS)
    child = await h.add(after=(first, second))
    jobs = await h.claim(2, _PARENTS)
    await h.backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs])
    (job,) = await h.claim()
    await h.settle(job)
    answers = await h.backend.rerun([Rerun(id=first), Rerun(id=child, delay_ms=3 * h.step_ms)])
    equal(answers, [Steered.DONE] * 2, "answers of rerun")
    record = await h.record(child)
    equal((record.state, record.waiting_for, record.attempt), (State.WAITING, 1, 0), "state, waiting_for, attempt")
    await h.pass_time(4 * h.step_ms)
    equal(await h.state(child), State.WAITING, "state when only its delay is over")
    await _settled(State.SUCCEEDED)(h, first)
    equal(await h.state(child), State.SCHEDULED, "state after its parent")
    await h.pass_time(3 * h.step_ms + 1)
    equal([job.id for job in await h.claim(5)], [child], "claimed when due")


@case("B23", needs=_NEEDS)
async def a_parent_enqueued_anew_holds_no_child_for_ever(h: Harness) -> None:
    """Its id was deleted and used once more. Whether that is the parent again is open; that a child starts is not."""
    parent = await h.add(queue=_PARENTS)
    child = await h.add(after=(parent,))
    await _settled(State.FAILED)(h, parent)
    await h.backend.delete([parent])
    await h.backend.enqueue([h.spec(id=parent, queue=_PARENTS)])
    equal(await h.backend.rerun([Rerun(id=child)]), [Steered.DONE], "answer of rerun")
    true(await h.state(child) in {State.WAITING, State.PENDING}, "it neither waits nor may start")
    await _settled(State.SUCCEEDED)(h, parent)
    equal(await h.state(child), State.PENDING, "state after the job that has the id of its parent")


@case(needs=_NEEDS)
async def a_rerun_child_does_not_wait_for_parents_that_are_gone(h: Harness) -> None:
    parent = await h.add(queue=_PARENTS)
    child = await h.add(after=(parent,))
    await _settled(State.FAILED)(h, parent)
    await h.backend.delete([parent])
    equal(await h.state(child), State.CANCELLED, "state after the parent was deleted")
    equal(await h.backend.rerun([Rerun(id=child)]), [Steered.DONE], "answer of rerun")
    equal(await h.state(child), State.PENDING, "state after the rerun")
