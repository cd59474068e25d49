"""Dependencies: when a job waits, for whom, and what it is when they have ended."""

from __future__ import annotations

from ...backends.base import BATCH_MAX, Keep, Note, Rerun, Settlement, Steered, Verdict, job_topic, queue_topic
from ...errors import InvalidOption, UnknownParent
from ...job import AFTER_MAX, TERMINAL, JobSpec, State, Unique
from .case import case, equal, raises, true
from .harness import Harness

_NEEDS = ("dependencies",)
_PARENTS = "parents"


async def _parents(h: Harness, count: int = 1) -> list[str]:
    """Store jobs to wait for, in a queue of their own."""
    return await h.enqueue(count, queue=_PARENTS)


async def _end(h: Harness, state: State = State.SUCCEEDED, count: int = 1) -> list[str]:
    """Run the next parents and end them in `state`; answers their ids."""
    jobs = await h.claim(count, _PARENTS, worker="parental")
    equal(len(jobs), count, "parents claimed")
    verdicts = await h.backend.settle([Settlement(id=job.id, token=job.token, state=state) for job in jobs])
    equal(set(verdicts), {Verdict.APPLIED}, "verdicts")
    return [job.id for job in jobs]


async def _stands(h: Harness, job_id: str) -> tuple[State, int]:
    """Answer state and number of parents that have not ended."""
    record = await h.record(job_id)
    return record.state, record.waiting_for


# ---- at enqueue ------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_job_waits_until_the_last_parent_has_succeeded(h: Harness) -> None:
    parents = await _parents(h, 3)
    child = await h.add(after=tuple(parents))
    for left in (3, 2, 1):
        equal(await _stands(h, child), (State.WAITING, left), "state, parents it waits for")
        equal(await h.claim(5), [], "claimed while it waits")
        equal((await h.tick()).promoted, 0, "promoted while it waits")
        await _end(h)
    equal(await _stands(h, child), (State.PENDING, 0), "state, parents it waits for")
    equal([(job.id, job.attempt) for job in await h.claim(5)], [(child, 1)], "claimed, once")


@case(needs=_NEEDS)
async def a_record_says_what_its_job_waits_for(h: Harness) -> None:
    parents = tuple(await _parents(h, 2))
    child = await h.add(after=parents, after_failed="continue", workflow="w", node="join")
    plain = await h.add(workflow="w")
    record = await h.record(child)
    equal(
        (record.after, record.after_failed, record.waiting_for), (parents, "continue", 2), "after, policy, waiting_for"
    )
    equal((record.workflow, record.node), ("w", "join"), "workflow, node")
    equal((record.attempt, record.started_at_ms, record.finished_at_ms), (0, None, None), "attempt, started, finished")
    record = await h.record(plain)
    equal(
        (record.after, record.after_failed, record.waiting_for, record.node), ((), "cancel", 0, None), "of a plain job"
    )
    alone = await h.record(await h.add(after_failed="continue"))
    equal((alone.state, alone.after_failed), (State.PENDING, "continue"), "of a job that names a policy and no parents")
    await _end(h, count=2)
    record = await h.record(child)
    equal((record.after, record.waiting_for, record.errors), (parents, 0, ()), "after its parents ended")
    found = next(job for job in await h.all() if job.id == child)
    equal(found, record, "what find answers of it")


@case(needs=_NEEDS)
async def a_waiting_job_is_found_and_counted(h: Harness) -> None:
    (parent,) = await _parents(h)
    children = await h.enqueue(2, after=(parent,))
    equal({job.id for job in await h.all(states=(State.WAITING,))}, set(children), "found")
    counts = (await h.backend.counts())["default"]
    equal((counts.states, counts.oldest_pending_ms), ({State.WAITING: 2}, None), "states, oldest pending")
    await _end(h)
    equal((await h.backend.counts())["default"].states, {State.PENDING: 2}, "states after the parent")


@case(needs=_NEEDS)
async def parents_may_come_in_the_same_call_in_any_order(h: Harness) -> None:
    ids = [h.new_id() for _ in range(4)]
    first = h.spec(id=ids[0], queue=_PARENTS)
    middle = [h.spec(id=ids[number], after=(ids[0],)) for number in (1, 2)]
    last = h.spec(id=ids[3], after=(ids[1], ids[2]))
    for specs in ([last, *middle, first], [first, *middle, last], [middle[0], last, first, middle[1]]):
        equal([answer.created for answer in await h.backend.enqueue(specs)], [True] * 4, "created")
        equal(await _stands(h, last.id), (State.WAITING, 2), "the last")
        await _end(h)
        equal([await _stands(h, spec.id) for spec in middle], [(State.PENDING, 0)] * 2, "those between")
        await h.backend.delete(ids[3:] + ids[:3])


@case(needs=_NEEDS)
async def an_unknown_parent_is_refused_and_nothing_is_stored(h: Harness) -> None:
    (known,) = await _parents(h)
    gone = await h.add(queue="gone")
    await h.backend.delete([gone])
    for unknown in (h.new_id(), gone, "", "'"):
        specs = [h.spec(), h.spec(after=(known,)), h.spec(after=(known, unknown)), h.spec()]
        if h.has("unique"):
            specs[0] = h.spec(unique=Unique(key="k"))
        error = await raises(UnknownParent, h.backend.enqueue(specs), f"after {unknown!r}")
        equal(error.parent, unknown, "parent")
        equal([job.id for job in await h.all()], [known], "jobs")
        equal(await h.claim(5), [], "claimed after the refusal")
        if h.has("unique"):
            answer = await h.try_add(unique=Unique(key="k"))
            true(answer.created, "the refused call still holds a key")
            await h.backend.delete([answer.id])
    await _end(h)
    await h.tick()
    equal(len(await h.all()), 1, "jobs after the known parent ended")


@case(needs=_NEEDS)
async def a_cycle_is_refused_and_nothing_is_stored(h: Harness) -> None:
    ids = [h.new_id() for _ in range(4)]
    cycles = [
        [h.spec(id=ids[0], after=(ids[0],))],
        [h.spec(id=ids[0], after=(ids[1],)), h.spec(id=ids[1], after=(ids[0],))],
        [h.spec(), *(h.spec(id=ids[number], after=(ids[number - 1],)) for number in range(4))],
    ]
    for specs in cycles:
        await raises(InvalidOption, h.backend.enqueue(specs), f"a cycle of {len(specs)}")
        equal(await h.all(), [], "jobs")


@case(needs=_NEEDS)
async def what_makes_no_sense_of_parents_is_refused(h: Harness) -> None:
    (parent,) = await _parents(h)
    await raises(
        InvalidOption, h.backend.enqueue([h.spec(), h.spec(after=(parent,), after_failed="perhaps")]), "a policy"
    )
    many = tuple(h.new_id() for _ in range(AFTER_MAX + 1))
    await raises(InvalidOption, h.backend.enqueue([h.spec(), h.spec(after=many)]), "one parent too many")
    job = await h.start()
    own, other = h.new_id(), h.new_id()
    circle = (h.spec(id=own, after=(other,)), h.spec(id=other, after=(own,)))
    await raises(InvalidOption, h.settle(job, follow_ups=circle), "follow-ups that wait for each other")
    equal(await h.state(job.id), State.RUNNING, "the job whose settlement was refused")
    equal(len(await h.all()), 2, "jobs")


@case(needs=_NEEDS)
async def a_parent_that_has_ended_is_not_waited_for(h: Harness) -> None:
    for state in TERMINAL:
        (parent,) = await _parents(h)
        await _end(h, state)
        specs = [h.spec(after=(parent,), after_failed=policy) for policy in ("cancel", "continue")]
        equal([answer.created for answer in await h.backend.enqueue(specs)], [True, True], "created")
        wanted = State.PENDING if state is State.SUCCEEDED else State.CANCELLED
        equal(await _stands(h, specs[0].id), (wanted, 0), f"child of a {state} parent")
        equal(await _stands(h, specs[1].id), (State.PENDING, 0), f"child of a {state} parent that goes on")
        record = await h.record(specs[0].id)
        equal(record.finished_at_ms is not None, wanted is State.CANCELLED, "whether it has an end")
        equal([error.kind for error in record.errors], ["ParentFailed"] * (wanted is State.CANCELLED), "errors")
        await h.backend.delete([spec.id for spec in specs])


@case(needs=_NEEDS)
async def a_child_counts_only_the_parents_that_live(h: Harness) -> None:
    parents = await _parents(h, 3)
    await _end(h)
    child = await h.add(after=tuple(parents))
    equal(await _stands(h, child), (State.WAITING, 2), "state, parents it waits for")
    await _end(h, count=2)
    equal(await _stands(h, child), (State.PENDING, 0), "state, parents it waits for")


@case("B23", needs=_NEEDS)
async def a_call_whose_parent_has_failed_is_cancelled_down_to_the_last(h: Harness) -> None:
    (parent,) = await _parents(h)
    await _end(h, State.FAILED)
    ids = [h.new_id() for _ in range(4)]
    specs = [h.spec(id=ids[2], after=(ids[1],)), h.spec(id=ids[1], after=(parent,))]
    specs += [h.spec(id=ids[3], after=(ids[2],), after_failed="continue")]
    await h.backend.enqueue(specs)
    states = [await h.state(job_id) for job_id in ids[1:]]
    equal(states, [State.CANCELLED, State.CANCELLED, State.PENDING], "child, its child, and one of that which goes on")


@case(needs=_NEEDS)
async def a_parent_named_twice_is_one_parent(h: Harness) -> None:
    first, second = await _parents(h, 2)
    child = await h.add(after=(first, first, second, first))
    await _end(h)
    equal(await h.state(child), State.WAITING, "state after the first parent")
    await _end(h)
    equal(await h.state(child), State.PENDING, "state after the second")


@case(needs=_NEEDS)
async def a_repeated_call_is_answered_though_the_parents_are_gone(h: Harness) -> None:
    (parent,) = await _parents(h)
    spec = h.spec(after=(parent,))
    await h.backend.enqueue([spec])
    (answer,) = await h.backend.enqueue([spec])
    equal(answer.created, False, "created, repeated while it waits")
    equal(await _stands(h, spec.id), (State.WAITING, 1), "state, parents it waits for")
    await _end(h)
    (job,) = await h.claim()
    await h.settle(job)
    await h.backend.delete([parent])
    (answer,) = await h.backend.enqueue([spec])
    equal((answer.id, answer.created), (spec.id, False), "answer, repeated after the parent was deleted")


@case(needs=_NEEDS)
async def a_delay_counts_from_the_end_of_the_last_parent(h: Harness) -> None:
    first, second = await _parents(h, 2)
    child = await h.add(after=(first, second), delay_ms=4 * h.step_ms)
    await h.pass_time(5 * h.step_ms)
    await _end(h)
    await h.pass_time(5 * h.step_ms)
    equal(await _stands(h, child), (State.WAITING, 1), "state, parents it waits for")
    bell = h.backend.watch(["due"])
    await _end(h)
    with bell:
        true(await bell.wait(h.ring_ms), "no ring: something is due")
    record = await h.record(child)
    equal(record.state, State.SCHEDULED, "state after the last parent")
    left_ms = record.due_at_ms - record.created_at_ms - 10 * h.step_ms
    true(4 * h.step_ms <= left_ms < 4 * h.step_ms + 5_000, f"due {left_ms} ms after the last parent")
    due_ms = (await h.tick()).next_due_ms
    true(due_ms is not None and due_ms <= 4 * h.step_ms, f"the next is due in {due_ms} ms")
    await h.pass_time(4 * h.step_ms)
    equal([job.id for job in await h.claim(5)], [child], "claimed when due")


@case(needs=_NEEDS)
async def a_waiting_job_takes_its_place_when_it_is_freed(h: Harness) -> None:
    (parent,) = await _parents(h)
    child = await h.add(after=(parent,))
    await h.advance(h.step_ms)
    other = await h.add()
    await h.advance(h.step_ms)
    bell = h.backend.watch([queue_topic("default")])
    await _end(h)
    with bell:
        true(await bell.wait(h.ring_ms), "no ring: a child was freed")
    jobs = await h.claim(5)
    equal([job.id for job in jobs], [other, child], "order of starts")
    true(jobs[1].ready_at_ms >= jobs[1].created_at_ms + 2 * h.step_ms, "it was ready before its parent ended")


@case(needs=_NEEDS)
async def fan_in_of_thousands_of_parents(h: Harness) -> None:
    """Ten calls of a thousand parents, one child of all of them."""
    parents = await _parents(h, 2_500)
    child = await h.add(after=tuple(parents))
    for start in range(0, 2_500, 500):
        equal(await _stands(h, child), (State.WAITING, 2_500 - start), "state, parents it waits for")
        await _end(h, count=500)
    equal(await _stands(h, child), (State.PENDING, 0), "state, parents it waits for")
    equal(len((await h.record(child)).after), 2_500, "parents in its record")


@case(needs=_NEEDS)
async def as_many_parents_as_there_may_be(h: Harness) -> None:
    parents = await _parents(h, AFTER_MAX)
    child = await h.add(after=tuple(parents))
    for _ in range(AFTER_MAX // BATCH_MAX):
        equal(await h.state(child), State.WAITING, "state before the last parent")
        await _end(h, count=BATCH_MAX)
    equal(await _stands(h, child), (State.PENDING, 0), "state, parents it waits for")


# ---- what a waiting job holds ----------------------------------------------------------------------------


@case(needs=("dependencies", "unique"))
async def a_waiting_job_holds_its_key(h: Harness) -> None:
    key = Unique(key="k")
    (parent,) = await _parents(h)
    child = await h.add(after=(parent,), unique=key)
    equal((await h.try_add(unique=key)).id, child, "holder while it waits")
    await _end(h, State.FAILED)
    equal(await h.state(child), State.CANCELLED, "state")
    true((await h.try_add(unique=key)).created, "the key is not free after its parent failed")


@case(needs=("dependencies", "unique"))
async def a_child_whose_key_is_held_is_not_stored(h: Harness) -> None:
    key = Unique(key="k")
    holder = await h.add(unique=key)
    (parent,) = await _parents(h)
    answer = await h.try_add(after=(parent,), unique=key)
    equal((answer.id, answer.created), (holder, False), "answer")
    await _end(h)
    equal(len(await h.all()), 2, "jobs")


@case(needs=_NEEDS)
async def a_waiting_job_may_be_cancelled_and_deleted(h: Harness) -> None:
    (parent,) = await _parents(h)
    cancelled, deleted = await h.enqueue(2, after=(parent,))
    bell = h.backend.watch([job_topic(cancelled)])
    equal(await h.backend.cancel([cancelled]), [Steered.DONE], "answer of cancel")
    with bell:
        true(await bell.wait(h.ring_ms), "no ring: a waiting job was cancelled")
    equal(await h.backend.delete([deleted]), [Steered.DONE], "answer of delete")
    equal(await h.backend.rerun([Rerun(id=parent)]), [Steered.LIVE], "answer of rerun for a live parent")
    await _end(h)
    equal((await h.state(cancelled), await h.state(deleted)), (State.CANCELLED, None), "states after the parent ended")
    equal(await h.claim(5), [], "claimed")


@case(needs=_NEEDS)
async def a_waiting_job_cannot_be_rerun_or_settled(h: Harness) -> None:
    (parent,) = await _parents(h)
    child = await h.add(after=(parent,))
    before = await h.record(child)
    equal(await h.backend.rerun([Rerun(id=child, queue="other", delay_ms=5)]), [Steered.LIVE], "answer of rerun")
    for token in ("", "0", "1", "None"):
        verdicts = await h.backend.settle([Settlement(id=child, token=token, state=State.SUCCEEDED)])
        equal(verdicts, [Verdict.STALE], f"verdict with token {token!r}")
    await h.beat(notes=[Note(id=child, token="", progress=0.5)])
    equal(await h.record(child), before, "record")


# ---- follow-ups ------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_follow_up_may_wait_for_others(h: Harness) -> None:
    (parent,) = await _parents(h)
    job = await h.start()
    last, first = h.new_id(), h.new_id()
    specs: tuple[JobSpec, ...] = (h.spec(id=last, after=(first, parent)), h.spec(id=first, queue="next"))
    equal(await h.settle(job, follow_ups=specs), Verdict.APPLIED, "verdict")
    equal((await _stands(h, last), await h.state(first)), ((State.WAITING, 2), State.PENDING), "last, first")
    await _end(h)
    (again,) = await h.claim(5, "next")
    await h.settle(again)
    equal(await _stands(h, last), (State.PENDING, 0), "last, after both")


@case(needs=_NEEDS)
async def a_follow_up_may_wait_for_the_job_that_it_follows(h: Harness) -> None:
    """That job has ended in the same move, or goes on and is waited for."""
    for state, wanted in (
        (State.SUCCEEDED, State.PENDING),
        (State.FAILED, State.CANCELLED),
        (State.CANCELLED, State.CANCELLED),
        (State.SCHEDULED, State.WAITING),
        (State.PENDING, State.WAITING),
    ):
        job = await h.start(queue=f"q-{state}", max_attempts=9)
        child, goes_on = h.spec(after=(job.id,)), h.spec(after=(job.id,), after_failed="continue")
        delay_ms = h.step_ms if state is State.SCHEDULED else 0
        equal(await h.settle(job, state, delay_ms=delay_ms, follow_ups=(child, goes_on)), Verdict.APPLIED, "verdict")
        equal(await h.state(child.id), wanted, f"follow-up that waits for a job that is {state}")
        free = State.PENDING if state in TERMINAL else State.WAITING
        equal(await h.state(goes_on.id), free, f"follow-up that goes on, of a job that is {state}")
        if state not in TERMINAL:
            await h.pass_time(h.step_ms + 1)
            (again,) = await h.claim(1, f"q-{state}")
            await h.settle(again)
            equal(await _stands(h, child.id), (State.PENDING, 0), f"follow-up of a {state} job after its end")


@case("B23", needs=_NEEDS)
async def a_follow_up_of_an_unknown_parent_is_stored_as_if_that_had_failed(h: Harness) -> None:
    (known,) = await _parents(h)
    job = await h.start()
    cancelled = h.spec(after=(known, h.new_id()))
    goes_on = h.spec(after=(h.new_id(),), after_failed="continue")
    waits = h.spec(after=(h.new_id(), known), after_failed="continue")
    plain = h.spec()
    verdict = await h.settle(job, follow_ups=(cancelled, goes_on, waits, plain))
    equal(verdict, Verdict.APPLIED, "verdict")
    states = [await h.state(spec.id) for spec in (cancelled, goes_on, waits, plain)]
    equal(states, [State.CANCELLED, State.PENDING, State.WAITING, State.PENDING], "states")
    equal([error.kind for error in (await h.record(cancelled.id)).errors], ["ParentFailed"], "errors of the first")
    await _end(h)
    equal(await _stands(h, waits.id), (State.PENDING, 0), "the one that waited for the other")


# ---- retention and results -------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_job_is_kept_while_a_child_of_it_lives(h: Harness) -> None:
    """Its result can be read until the last child has ended; what is kept holds back no other."""
    keep = Keep(succeeded_ms=2 * h.step_ms, failed_ms=2 * h.step_ms, cancelled_ms=2 * h.step_ms)
    (parent,) = await _parents(h)
    child = await h.add(after=(parent,), max_attempts=9)
    (job,) = await h.claim(1, _PARENTS)
    await h.settle(job, result=b"42")
    old, _ = await h.put(State.SUCCEEDED, queue="old")
    await h.advance(3 * h.step_ms)
    equal((await h.tick(keep=keep)).dropped, 1, "dropped while the child is pending")
    equal((await h.state(old), (await h.record(parent)).result), (None, b"42"), "the other; the result of the parent")
    (job,) = await h.claim()
    await h.settle(job, State.SCHEDULED, delay_ms=h.step_ms)
    equal((await h.tick(keep=keep)).dropped, 0, "dropped while the child waits for a retry")
    await h.pass_time(h.step_ms + 1)
    (job,) = await h.claim()
    equal((await h.tick(keep=keep)).dropped, 0, "dropped while the child runs")
    await h.settle(job)
    equal((await h.tick(keep=keep)).dropped, 1, "dropped when the child has ended")
    equal((await h.state(parent), await h.state(child)), (None, State.SUCCEEDED), "states")
    await h.advance(3 * h.step_ms)
    equal((await h.tick(keep=keep)).dropped, 1, "dropped later: the child")


@case(needs=_NEEDS)
async def a_job_is_kept_for_a_child_that_waits_for_another(h: Harness) -> None:
    keep = Keep(succeeded_ms=h.step_ms)
    first, second = await _parents(h, 2)
    child = await h.add(after=(first, second))
    await _end(h)
    await h.advance(2 * h.step_ms)
    equal((await h.tick(keep=keep)).dropped, 0, "dropped while the child waits")
    await _end(h)
    await h.advance(2 * h.step_ms)
    equal((await h.tick(keep=keep)).dropped, 0, "dropped while the child is pending")
    await h.backend.delete([child])
    equal((await h.tick(keep=keep)).dropped, 2, "dropped when the child is gone")
    equal((await h.state(first), await h.state(second)), (None, None), "states")


@case("B23", needs=("dependencies", "unique"))
async def no_job_waits_for_itself_because_of_a_key(h: Harness) -> None:
    """The child is named first and takes the key of its parent: the parent must still come first."""
    key = Unique(key="k")
    for between in (0, 1, 3):
        queue = f"q{between}"
        parent = h.spec(queue=queue, unique=key)
        chain = [parent]
        for number in range(between + 1):
            last = number == between
            chain.append(h.spec(queue=queue, after=(chain[-1].id,), unique=key if last else None))
        answers = await h.backend.enqueue(list(reversed(chain)))
        equal(answers[0].id, parent.id, "answer for the last child: the holder of its key")
        for _ in chain:
            for job in await h.claim(10, queue):
                await h.settle(job)
        left = [job.state for job in await h.all(queue=queue)]
        equal(set(left), {State.SUCCEEDED}, "states at the end")


# ---- workflows -------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def workflows_are_counted_by_state_newest_first(h: Harness) -> None:
    equal(await h.backend.workflows(), [], "workflows of an empty store")
    await h.add()
    created_at_ms = []
    for name in ("w-1", "w-2", "w-3"):
        (parent,) = await h.enqueue(1, queue=_PARENTS, workflow=name)
        created_at_ms.append((await h.record(parent)).created_at_ms)
        await h.advance(h.step_ms)
        await h.enqueue(2, after=(parent,), workflow=name)
    await _end(h)
    found = await (await h.open()).workflows()
    equal([each.id for each in found], ["w-3", "w-2", "w-1"], "ids")
    equal([each.created_at_ms for each in found], created_at_ms[::-1], "created_at_ms")
    states = [{state: count for state, count in each.states.items() if count} for each in found]
    waiting = {State.PENDING: 1, State.WAITING: 2}
    equal(states, [waiting, waiting, {State.SUCCEEDED: 1, State.PENDING: 2}], "states")
    equal([each.id for each in await h.backend.workflows(2)], ["w-3", "w-2"], "a page of 2")
    equal([each.id for each in await h.backend.workflows(2, "w-2")], ["w-1"], "the page after it")
    equal(await h.backend.workflows(2, before="w-1"), [], "the page after the last")
    await h.backend.delete([job.id for job in await h.all(workflow="w-3")])
    equal([each.id for each in await h.backend.workflows()], ["w-2", "w-1"], "ids when one is deleted")
