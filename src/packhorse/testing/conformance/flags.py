"""Capabilities: what a flag promises works, what it denies is refused by its name with nothing stored."""

from __future__ import annotations

from typing import Any

from ...backends.base import Limit, QueueChange, Schedule, Settlement
from ...errors import QueueFull, Unsupported
from ...job import State, Unique
from .case import case, equal, raises, true
from .harness import Harness


async def _refused(h: Harness, flag: str, call: Any) -> None:
    """Fail unless the call raises Unsupported by this name and leaves the store empty."""
    error = await raises(Unsupported, call, f"what needs {flag!r}")
    equal(error.flag, flag, "flag")
    equal(await h.all(), [], "jobs")


@case()
async def unique_works_or_is_refused(h: Harness) -> None:
    specs = [h.spec(), h.spec(unique=Unique(key="k"))]
    if not h.has("unique"):
        await _refused(h, "unique", h.backend.enqueue(specs))
        return
    await h.backend.enqueue(specs)
    equal((await h.try_add(unique=Unique(key="k"))).created, False, "created")


@case()
async def unique_windows_work_or_are_refused(h: Harness) -> None:
    window = Unique(key="k", for_ms=10 * h.step_ms)
    states = Unique(key="k", states=(State.PENDING,))
    replace = Unique(key="k", on_conflict="replace")
    if not h.has("unique_windows"):
        flag = "unique_windows" if h.has("unique") else "unique"
        for unique in (window, states, replace):
            await _refused(h, flag, h.backend.enqueue([h.spec(), h.spec(unique=unique)]))
        return
    job = await h.start(unique=window)
    await h.settle(job)
    equal((await h.try_add(unique=window)).id, job.id, "holder within the window")
    await h.advance(11 * h.step_ms)
    true((await h.try_add(unique=window)).created, "the key is not free after the window")
    running = await h.start(queue="b", unique=states)
    true((await h.try_add(queue="b", unique=states)).created, f"{running.id} holds a key in a state it named not")


@case()
async def dependencies_work_or_are_refused(h: Harness) -> None:
    if not h.has("dependencies"):
        await _refused(h, "dependencies", h.backend.enqueue([h.spec(), h.spec(after=(h.new_id(),))]))
        return
    parents = [h.spec(queue="parents"), h.spec(queue="parents")]
    child = h.spec(after=tuple(parent.id for parent in parents))
    await h.backend.enqueue([*parents, child])
    equal(await h.state(child.id), State.WAITING, "state of the child at first")
    for job, state in zip(await h.claim(2, "parents"), (State.WAITING, State.PENDING), strict=True):
        await h.settle(job)
        equal(await h.state(child.id), state, "state of the child after one more parent")


@case("B23", needs=("dependencies",))
async def a_child_of_a_failed_parent_does_not_wait_for_ever(h: Harness) -> None:
    for state in (State.FAILED, State.CANCELLED):
        parent = h.spec(queue="parents")
        cancelled = h.spec(after=(parent.id,))
        goes_on = h.spec(after=(parent.id,), after_failed="continue")
        await h.backend.enqueue([parent, cancelled, goes_on])
        (job,) = await h.claim(1, "parents")
        await h.settle(job, state)
        equal(await h.state(cancelled.id), State.CANCELLED, f"child of a {state} parent")
        equal(await h.state(goes_on.id), State.PENDING, f"child of a {state} parent that goes on")
        await h.backend.cancel([goes_on.id])


@case()
async def follow_ups_of_what_is_denied_are_refused(h: Harness) -> None:
    if h.has("unique_windows"):
        return
    job = await h.start()
    flag = "unique_windows" if h.has("unique") else "unique"
    spec = h.spec(unique=Unique(key="k", for_ms=1))
    settlement = Settlement(id=job.id, token=job.token, state=State.SUCCEEDED, follow_ups=(spec,))
    error = await raises(Unsupported, h.backend.settle([settlement]), "a follow-up with a window")
    equal(error.flag, flag, "flag")
    equal(await h.beat(), {job.id: job.token}, "held")


@case()
async def capacity_works_or_is_refused(h: Harness) -> None:
    changes = [QueueChange(queue="other", paused=True), QueueChange(queue="default", capacity=2)]
    if not h.has("capacity"):
        await _refused(h, "capacity", h.backend.queues(changes))
        equal(await h.backend.queues(), {}, "settings")
        return
    await h.backend.queues(changes)
    await h.enqueue(2)
    error = await raises(QueueFull, h.backend.enqueue([h.spec()]), "enqueue into a full queue")
    equal((error.queue, error.capacity), ("default", 2), "queue, capacity")
    equal(len(await h.all()), 2, "jobs")
    await h.backend.queues([QueueChange(queue="default", capacity=0)])
    true((await h.try_add()).created, "the limit was not lifted by 0")


@case()
async def limits_work_or_are_refused(h: Harness) -> None:
    limit = Limit(type="work", concurrency=1)
    if not h.has("limits"):
        equal(await h.backend.limits(), [], "limits")
        await _refused(h, "limits", h.backend.limits([limit]))
        return
    equal([each.type for each in await h.backend.limits([limit])], ["work"], "limits")
    await h.enqueue(3)
    other = await h.add(type="free")
    claimed = await h.claim(10)
    equal(len(claimed), 2, "claimed: one of the limited type, one of the other")
    true(other in {job.id for job in claimed}, "a limited type held back another")
    equal(await h.backend.limits([Limit(type="work", cleared=True)]), [], "limits after clearing")
    equal(len(await h.claim(10)), 2, "claimed without a limit")


@case()
async def schedules_work_or_are_refused(h: Harness) -> None:
    schedule = Schedule(name="nightly", spec=h.spec(), every_ms=h.step_ms)
    if not h.has("schedules"):
        equal(await h.backend.schedules(), [], "schedules")
        await _refused(h, "schedules", h.backend.schedules([schedule]))
        return
    equal([each.name for each in await h.backend.schedules([schedule])], ["nightly"], "schedules")
    await h.pass_time(2 * h.step_ms)
    true(len(await h.all(type="work")) > 0, "no job was made")
    equal(await h.backend.schedules([Schedule(name="nightly", spec=h.spec(), removed=True)]), [], "after removing")


@case()
async def priorities_work_or_all_jobs_are_alike(h: Harness) -> None:
    first, second = await h.add(priority=9), await h.add(priority=0)
    wanted = [second, first] if h.has("priorities") else [first, second]
    equal([job.id for job in await h.claim(2)], wanted, "order of starts")


@case()
async def only_what_can_join_a_transaction_has_bind(h: Harness) -> None:
    true(h.has("bind") == hasattr(h.backend, "bind"), "the flag `bind` and the method `bind` disagree")
