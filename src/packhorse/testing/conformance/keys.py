"""Unique keys held by time or by chosen states, and holders that make way."""

from __future__ import annotations

import asyncio

from ...backends.base import Keep, Rerun, Steered, Verdict, job_topic
from ...errors import UniqueConflict
from ...job import TERMINAL, State, Unique
from .case import case, equal, raises, true
from .harness import Harness

_NEEDS = ("unique_windows",)


async def _holder(h: Harness, key: str, queue: str = "default") -> str | None:
    """Answer who holds a key; None: nobody. Leaves no trace."""
    answer = await h.try_add(unique=Unique(key=key), queue=queue)
    if not answer.created:
        return answer.id
    await h.backend.delete([answer.id])
    return None


# ---- windows ---------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_window_outlives_every_end_of_its_job(h: Harness) -> None:
    """It counts from the creation, so that `once an hour` means what it says."""
    for state in TERMINAL:
        window = Unique(key=f"k-{state}", for_ms=10 * h.step_ms)
        job_id, _ = await h.put(state, unique=window)
        equal(await _holder(h, window.key), job_id, f"holder after it {state}")
        (answer,) = await h.backend.enqueue([h.spec(unique=window)])
        equal((answer.id, answer.created), (job_id, False), f"answer after it {state}")
        await h.advance(8 * h.step_ms)
        equal(await _holder(h, window.key), job_id, "holder shortly before the end of the window")
        await h.advance(2 * h.step_ms + 1)
        equal(await _holder(h, window.key), None, "holder after the window")


@case(needs=("unique_windows", "manual_clock"))
async def a_window_ends_to_the_ms(h: Harness) -> None:
    job_id, _ = await h.put(State.SUCCEEDED, unique=Unique(key="k", for_ms=5_000))
    created_at_ms = (await h.record(job_id)).created_at_ms
    assert h.clock is not None
    await h.advance(created_at_ms + 4_999 - h.clock.now_ms())
    equal(await _holder(h, "k"), job_id, "holder in the last ms")
    await h.advance(1)
    equal(await _holder(h, "k"), None, "holder a ms later")


@case(needs=_NEEDS)
async def a_job_that_outlives_its_window_holds_its_key(h: Harness) -> None:
    job = await h.start(unique=Unique(key="k", for_ms=h.step_ms), max_attempts=9)
    await h.advance(2 * h.step_ms)
    await h.beat()
    equal(await _holder(h, "k"), job.id, "holder while it runs")
    await h.settle(job, State.PENDING)
    equal(await _holder(h, "k"), job.id, "holder while it is pending again")
    (job,) = await h.claim()
    await h.settle(job)
    equal(await _holder(h, "k"), None, "holder after its end")


@case("B22", needs=_NEEDS)
async def a_deleted_or_dropped_job_holds_nothing(h: Harness) -> None:
    window = Unique(key="k", for_ms=10**9)
    job_id, _ = await h.put(State.SUCCEEDED, unique=window)
    await h.backend.delete([job_id])
    equal(await _holder(h, "k"), None, "holder after the delete")
    await h.put(State.SUCCEEDED, unique=window)
    await h.advance(h.step_ms)
    equal((await h.tick(keep=Keep(succeeded_ms=1))).dropped, 1, "dropped")
    equal(await _holder(h, "k"), None, "holder after the retention")


@case(needs=_NEEDS)
async def a_window_without_states_is_a_throttle(h: Harness) -> None:
    """Nothing but the time holds the key."""
    throttle = Unique(key="k", for_ms=4 * h.step_ms, states=())
    first = await h.try_add(unique=throttle)
    second = await h.try_add(unique=throttle)
    equal((second.id, second.created), (first.id, False), "answer within the window")
    await h.advance(4 * h.step_ms + 1)
    true((await h.try_add(unique=throttle)).created, "not free after the window, though the first is still pending")
    equal(len(await h.all()), 2, "jobs")


@case(needs=_NEEDS)
async def refuse_counts_a_window(h: Harness) -> None:
    job_id, _ = await h.put(State.SUCCEEDED, unique=Unique(key="k", for_ms=10**9))
    specs = [h.spec(), h.spec(unique=Unique(key="k", on_conflict="refuse"))]
    error = await raises(UniqueConflict, h.backend.enqueue(specs), "enqueue within the window")
    equal((error.unique, error.holder), ("k", job_id), "key, holder")
    equal([job.id for job in await h.all()], [job_id], "jobs")


@case(needs=_NEEDS)
async def the_holder_says_how_long_it_holds(h: Harness) -> None:
    """Not who asks: a key held for an hour is held against one that would hold it shortly, and the other way."""
    held, _ = await h.put(State.SUCCEEDED, unique=Unique(key="k", for_ms=10**9))
    answer = await h.try_add(unique=Unique(key="k"))
    equal((answer.id, answer.created), (held, False), "answer to one without a window")
    await h.put(State.SUCCEEDED, unique=Unique(key="l"))
    true((await h.try_add(unique=Unique(key="l", for_ms=10**9))).created, "an ended job without a window held its key")


# ---- states ----------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_key_is_held_in_the_states_it_names(h: Harness) -> None:
    """Until it starts: the next may be enqueued while one runs."""
    until_start = Unique(key="k", states=(State.SCHEDULED, State.PENDING))
    job_id = await h.add(unique=until_start, delay_ms=h.step_ms)
    equal(await _holder(h, "k"), job_id, "holder while scheduled")
    await h.pass_time(h.step_ms + 1)
    equal(await _holder(h, "k"), job_id, "holder while pending")
    (job,) = await h.claim()
    equal(await _holder(h, "k"), None, "holder while it runs")
    await h.settle(job)
    equal(await _holder(h, "k"), None, "holder after its end")


@case(needs=_NEEDS)
async def a_key_is_held_again_when_its_job_comes_back(h: Harness) -> None:
    """A retry brings a job back into a state that holds, whoever had the key meanwhile."""
    until_start = Unique(key="k", states=(State.SCHEDULED, State.PENDING))
    job = await h.start(unique=until_start, max_attempts=9)
    between = await h.add(unique=until_start, delay_ms=9_000)
    await h.backend.cancel([between])
    await h.settle(job, State.SCHEDULED, delay_ms=9_000)
    equal(await _holder(h, "k"), job.id, "holder while it waits for a retry")


@case(needs=_NEEDS)
async def a_key_may_be_held_after_the_end(h: Harness) -> None:
    """Once and for all, until it is deleted: `succeeded` among the states."""
    once = Unique(key="k", states=(State.PENDING, State.RUNNING, State.SUCCEEDED))
    failed, _ = await h.put(State.FAILED, unique=once)
    done, _ = await h.put(State.SUCCEEDED, unique=once)
    equal(await _holder(h, "k"), done, "holder")
    equal(await h.backend.rerun([Rerun(id=failed)]), [Steered.CONFLICT], "answer of rerun for the one that failed")
    await h.backend.delete([done])
    equal(await _holder(h, "k"), None, "holder after the delete")


# ---- replace ---------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def replace_cancels_a_holder_that_has_not_started(h: Harness) -> None:
    replace = Unique(key="k", on_conflict="replace")
    old = await h.add(unique=replace)
    for delay_ms in (9_000, 0, 0):
        bell = h.backend.watch([job_topic(old)])
        new = h.spec(unique=replace, delay_ms=delay_ms)
        (answer,) = await h.backend.enqueue([new])
        equal((answer.id, answer.created), (new.id, True), "answer")
        with bell:
            true(await bell.wait(h.ring_ms), "no ring for the job that was replaced")
        record = await h.record(old)
        equal((record.state, [error.kind for error in record.errors]), (State.CANCELLED, ["Replaced"]), "state, errors")
        true(new.id in record.errors[0].message, "the error does not name the new holder")
        true(record.finished_at_ms is not None, "finished_at_ms is not set")
        equal(await _holder(h, "k"), new.id, "holder")
        old = new.id
    equal([job.id for job in await h.claim(9)], [old], "claimed: one of four")


@case(needs=("unique_windows", "dependencies"))
async def replace_cancels_a_holder_that_waits(h: Harness) -> None:
    replace = Unique(key="k", on_conflict="replace")
    parent = await h.add(queue="parents")
    old = await h.add(unique=replace, after=(parent,))
    new = await h.add(unique=replace, after=(parent,))
    record = await h.record(old)
    equal(
        (record.state, record.waiting_for, record.after), (State.CANCELLED, 0, (parent,)), "state, waiting_for, after"
    )
    (job,) = await h.claim(1, "parents")
    await h.settle(job)
    equal((await h.state(old), await h.state(new)), (State.CANCELLED, State.PENDING), "states after the parent")


@case("B33", needs=_NEEDS)
async def replace_leaves_alone_what_runs_or_has_ended(h: Harness) -> None:
    replace = Unique(key="k", on_conflict="replace", for_ms=10**9)
    job = await h.start(unique=replace, max_attempts=9)
    before = await h.record(job.id)
    answer = await h.try_add(unique=replace)
    equal((answer.id, answer.created), (job.id, False), "answer while it runs")
    equal(await h.record(job.id), before, "record of the running holder")
    equal(await h.settle(job), Verdict.APPLIED, "verdict")
    before = await h.record(job.id)
    answer = await h.try_add(unique=replace)
    equal((answer.id, answer.created), (job.id, False), "answer within its window")
    equal(await h.record(job.id), before, "record of the ended holder")
    equal(len(await h.all()), 1, "jobs")


@case(needs=_NEEDS)
async def replace_repeated_changes_nothing(h: Harness) -> None:
    """The reply was lost: the same call again must not cancel what it stored."""
    replace = Unique(key="k", on_conflict="replace")
    old, new = h.spec(unique=replace), h.spec(unique=replace)
    await h.backend.enqueue([old])
    for created in (True, False):
        (answer,) = await h.backend.enqueue([new])
        equal((answer.id, answer.created), (new.id, created), "answer")
    (answer,) = await h.backend.enqueue([old])
    equal((answer.id, answer.created), (old.id, False), "answer to the call before, repeated late")
    equal((await h.state(old.id), await h.state(new.id)), (State.CANCELLED, State.PENDING), "states")


@case(needs=_NEEDS)
async def replace_with_a_free_key_stores_the_job(h: Harness) -> None:
    replace = Unique(key="k", on_conflict="replace")
    true((await h.try_add(unique=replace)).created, "a free key")
    true((await h.try_add(unique=replace, queue="other")).created, "the same key in another queue")
    equal({job.state for job in await h.all()}, {State.PENDING}, "states")


@case("B33", needs=_NEEDS)
async def a_refused_call_replaces_nothing(h: Harness) -> None:
    replaced = await h.add(unique=Unique(key="k"))
    holder = await h.add(unique=Unique(key="l"))
    specs = [
        h.spec(unique=Unique(key="k", on_conflict="replace")),
        h.spec(unique=Unique(key="l", on_conflict="refuse")),
    ]
    await raises(UniqueConflict, h.backend.enqueue(specs), "a call with one key that is held")
    equal({job.id: job.state for job in await h.all()}, {replaced: State.PENDING, holder: State.PENDING}, "jobs")
    equal(await _holder(h, "k"), replaced, "holder")


@case("B33", needs=_NEEDS)
async def racers_that_replace_each_other_leave_one(h: Harness) -> None:
    connections = await h.several(4)
    replace = Unique(key="k", on_conflict="replace")
    for turn in range(6):
        calls = [connections[racer % 4].enqueue([h.spec(unique=replace)]) for racer in range(12)]
        if turn % 2:
            calls.append(connections[0].claim(["default"], 1, h.lease_ms, "w1"))  # type: ignore[arg-type]  # gathered
        await asyncio.gather(*calls)
        live = [job for job in await h.all() if job.state not in TERMINAL]
        equal(len(live), 1, "live jobs of one key")
        equal(await _holder(h, "k"), live[0].id, "holder")
        await h.backend.retire("w1", "end of the turn")
        await h.backend.delete([job.id for job in await h.all()])


# ---- rerun -----------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def rerun_of_a_job_within_its_own_window_is_no_conflict(h: Harness) -> None:
    job_id, _ = await h.put(State.FAILED, unique=Unique(key="k", for_ms=10**9))
    equal(await h.backend.rerun([Rerun(id=job_id)]), [Steered.DONE], "answer")
    equal(await _holder(h, "k"), job_id, "holder")


@case(needs=_NEEDS)
async def rerun_of_what_was_replaced_is_a_conflict(h: Harness) -> None:
    replace = Unique(key="k", on_conflict="replace")
    old, new = await h.add(unique=replace), await h.add(unique=replace)
    equal(await h.backend.rerun([Rerun(id=old)]), [Steered.CONFLICT], "answer while its successor lives")
    equal(await h.state(old), State.CANCELLED, "state")
    await h.backend.cancel([new])
    equal(await h.backend.rerun([Rerun(id=old)]), [Steered.DONE], "answer after its successor")
