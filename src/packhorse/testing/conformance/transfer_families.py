"""Moves of parents and children to another store, together and one after the other (decision 18)."""

from __future__ import annotations

from typing import Any

from ...backends.base import (
    Backend,
    Keep,
    Rerun,
    Settlement,
    Steered,
    Tie,
    Transfer,
)
from ...job import JobRecord, JobSpec, State
from .case import case, equal, true
from .harness import FOREVER, Harness
from .two_stores import move_all, other_store, run_one, state_in

_WITH_PARENTS = ("transfer", "dependencies")


async def _family(backend: Backend, h: Harness, **fields: Any) -> tuple[str, str]:
    """Store a parent and a child; answers their ids."""
    parent = JobSpec(id=h.new_id(), type="work", queue="parents")
    child = JobSpec(**{"id": h.new_id(), "type": "work", "after": (parent.id,), **fields})
    await backend.enqueue([parent, child])
    return parent.id, child.id


@case(needs=_WITH_PARENTS)
async def children_leave_before_their_parents(h: Harness) -> None:
    parent, child = await _family(h.backend, h)
    grandchild = await h.add(after=(child,))
    first = await h.backend.hand_over("there", 1)
    second = await h.backend.hand_over("there", 1, first.number)
    third = await h.backend.hand_over("there", 1, second.number)
    left = [batch.jobs[0].record.id for batch in (first, second, third)]
    equal((set(left[:2]), left[2]), ({child, grandchild}, parent), "the children, the parent")
    equal(
        {one.record.id: one.parents for one in (*first.jobs, *second.jobs, *third.jobs)},
        {parent: {}, child: {parent: Tie.WAITS}, grandchild: {child: Tie.WAITS}},
        "ties",
    )


@case(needs=_WITH_PARENTS)
async def a_child_waits_for_a_parent_that_is_still_to_come(h: Harness) -> None:
    for state, wanted in ((State.SUCCEEDED, State.PENDING), (State.FAILED, State.CANCELLED)):
        source = other_store(h)
        parent, child = await _family(source, h, queue=str(state))
        (running,) = await source.claim(["parents"], 1, 30_000, "w1")
        await move_all(source, h.backend)
        record = await h.record(child)
        equal((record.state, record.waiting_for, record.after), (State.WAITING, 1, (parent,)), "child before")
        equal(await h.state(parent), None, "state of the parent that is to come")
        equal((await h.claim(5, "parents"), (await h.tick()).freed), ([], 0), "claimed, freed")
        await source.settle([Settlement(id=parent, token=running.token, state=state)])
        await move_all(source, h.backend)
        await h.tick()
        equal((await h.state(parent), await h.state(child)), (state, wanted), "parent, child")


@case(needs=_WITH_PARENTS)
async def a_parent_that_ended_here_meanwhile_frees_a_child_that_comes_later(h: Harness) -> None:
    source = other_store(h)
    parent, _ = await _family(source, h)
    await move_all(source, h.backend)
    late = JobSpec(id=h.new_id(), type="work", queue="late", after=(parent,))
    true((await source.enqueue([late]))[0].created, "a child of a parent that left is refused")
    equal(await run_one(h.backend, queue="parents"), parent, "the parent runs")
    await move_all(source, h.backend)
    await h.tick()
    equal([job.id for job in await h.claim(5, "late")], [late.id], "claimed")


@case(needs=_WITH_PARENTS)
async def a_child_left_behind_is_no_orphan(h: Harness) -> None:
    other = other_store(h)
    parent, child = await _family(h.backend, h)
    await move_all(h.backend, other)
    late = await h.add(after=(parent,))
    await h.pass_time(h.step_ms)
    equal((await h.tick()).freed, 0, "freed")
    equal(await h.state(late), State.WAITING, "state of a child whose parent left")
    await move_all(h.backend, other)
    equal(await run_one(other, queue="parents"), parent, "the parent runs")
    equal({await run_one(other), await run_one(other)}, {child, late}, "the children run")


@case(needs=_WITH_PARENTS)
async def what_a_parent_came_to_before_the_move_is_known_after_it(h: Harness) -> None:
    source = other_store(h)
    first, second = (JobSpec(id=h.new_id(), type="work", queue="parents") for _ in range(2))
    child = JobSpec(id=h.new_id(), type="work", after=(first.id, second.id))
    await source.enqueue([first, second, child])
    await run_one(source, queue="parents")
    await move_all(source, h.backend)
    equal((await h.record(child.id)).waiting_for, 1, "parents it waits for")
    equal(await run_one(h.backend, queue="parents"), second.id, "the other parent runs")
    equal([job.id for job in await h.claim(5)], [child.id], "claimed")


@case(needs=_WITH_PARENTS)
async def a_parent_that_never_comes_counts_as_cancelled_at_the_end(h: Harness) -> None:
    source = other_store(h)
    parent, child = await _family(source, h)
    (running,) = await source.claim(["parents"], 1, 30_000, "w1")
    await move_all(source, h.backend)
    await source.settle([Settlement(id=parent, token=running.token, state=State.SUCCEEDED)])
    await source.delete([parent])
    equal(await h.state(child), State.WAITING, "state before the end")
    await move_all(source, h.backend)
    await h.tick()
    equal(await h.state(child), State.CANCELLED, "state after the end")


@case(needs=_WITH_PARENTS)
async def a_store_that_expects_a_parent_is_not_empty(h: Harness) -> None:
    """From one store over this one to a third, while the parent still runs in the first."""
    first, third = other_store(h), other_store(h)
    parent, child = await _family(first, h)
    (running,) = await first.claim(["parents"], 1, 30_000, "w1")
    await move_all(first, h.backend)
    await move_all(h.backend, third)
    equal(await state_in(third, child), State.WAITING, "state of the child in the third store")
    true(not (await h.backend.hand_over((await third.take_over()).store, 5)).last, "a parent is still to come")
    await first.settle([Settlement(id=parent, token=running.token, state=State.SUCCEEDED)])
    await move_all(first, h.backend)
    await move_all(h.backend, third)
    await third.tick(100, FOREVER)
    equal((await state_in(third, parent), await run_one(third)), (State.SUCCEEDED, child), "the parent, who runs")


@case(needs=_WITH_PARENTS)
async def a_rerun_revives_across_a_move(h: Harness) -> None:
    source = other_store(h)
    parent, child = await _family(source, h)
    await run_one(source, State.FAILED, "parents")
    equal(await state_in(source, child), State.CANCELLED, "state of the child at the source")
    await move_all(source, h.backend, 1)
    equal(await h.backend.rerun([Rerun(id=parent)]), [Steered.DONE], "rerun")
    equal((await h.state(parent), await h.state(child)), (State.PENDING, State.WAITING), "parent, child")
    equal(await run_one(h.backend, queue="parents"), parent, "the parent runs")
    equal(await run_one(h.backend), child, "the child runs")


@case(needs=_WITH_PARENTS)
async def a_rerun_between_two_batches_revives_too(h: Harness) -> None:
    """The parent is rerun where its child is not: there before the child has come, or where it was after that left."""
    for is_here in (True, False):
        source = other_store(h)
        parent, child = await _family(source, h)
        await run_one(source, State.FAILED, "parents")
        to = (await h.backend.take_over()).store
        leaves = parent if is_here else child
        batch = Transfer(source="", number=0)
        while all(moved.record.id != leaves for moved in batch.jobs):
            batch = await source.hand_over(to, 1, batch.number)
            await h.backend.take_over(batch)
        if not is_here and await state_in(source, parent) is None:
            continue  # it has left first, and there is nobody to be rerun
        await h.backend.take_over(await source.hand_over(to, 0, batch.number))
        equal(await (h.backend if is_here else source).rerun([Rerun(id=parent)]), [Steered.DONE], "rerun")
        await move_all(source, h.backend)
        equal((await h.state(parent), await h.state(child)), (State.PENDING, State.WAITING), "parent, child")
        equal((await run_one(h.backend, queue="parents"), await run_one(h.backend)), (parent, child), "who runs")


@case(needs=_WITH_PARENTS)
async def a_child_is_revived_by_a_parent_that_was_rerun_and_has_ended(h: Harness) -> None:
    source = other_store(h)
    parent, child = await _family(source, h)
    await run_one(source, State.FAILED, "parents")
    to = (await h.backend.take_over()).store
    batch = await source.hand_over(to, 1)
    await h.backend.take_over(batch)
    if batch.jobs[0].record.id == child:  # the parent is still there
        await source.rerun([Rerun(id=parent)])
        await run_one(source, queue="parents")
    else:
        await h.backend.take_over(await source.hand_over(to, 0, batch.number))
        await h.backend.rerun([Rerun(id=parent)])
        await run_one(h.backend, queue="parents")
    await move_all(source, h.backend)
    equal((await h.state(parent), await h.state(child)), (State.SUCCEEDED, State.PENDING), "parent, child")
    equal(await run_one(h.backend), child, "who runs")


@case(needs=_WITH_PARENTS)
async def a_family_that_comes_back_is_as_it_was(h: Harness) -> None:
    parent, child = await _family(h.backend, h)
    before: list[JobRecord | None] = await h.backend.get([parent, child])
    other = other_store(h)
    await move_all(h.backend, other, 1)
    await move_all(other, h.backend, 1)
    equal(await h.backend.get([parent, child]), before, "records")
    equal(await run_one(h.backend, queue="parents"), parent, "the parent runs")
    equal(await run_one(h.backend), child, "the child runs")


@case(needs=_WITH_PARENTS)
async def a_parent_is_kept_until_it_follows_its_children(h: Harness) -> None:
    parent, child = await _family(h.backend, h)
    (running,) = await h.claim(1, "parents")
    other = other_store(h)
    await move_all(h.backend, other)
    await h.settle(running)
    await h.pass_time(h.step_ms)
    await h.tick(keep=Keep(succeeded_ms=0))
    equal(await h.state(parent), State.SUCCEEDED, "state of a parent whose child left")
    await move_all(h.backend, other)
    equal((await state_in(other, parent), await run_one(other)), (State.SUCCEEDED, child), "the parent, who runs")
