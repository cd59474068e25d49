"""Capabilities: what a flag promises works, what it denies is refused by its name with nothing stored."""

from __future__ import annotations

from typing import Any

from ...backends.base import Firing, Limit, Note, QueueChange, Schedule, ScheduleChange, Settlement, Verdict, WorkerInfo
from ...errors import InvalidOption, QueueFull, Unsupported
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
    define = ScheduleChange(name="nightly", define=Schedule(name="nightly", spec=h.spec(), every_ms=h.step_ms))
    if not h.has("schedules"):
        equal((await h.backend.schedules(), await h.backend.fire([])), ([], []), "schedules, verdicts of nothing")
        await _refused(h, "schedules", h.backend.schedules([define]))
        firing = Firing(name="nightly", revision=1, done_ms=0, new_done_ms=1, next_ms=2, specs=(h.spec(),))
        await _refused(h, "schedules", h.backend.fire([firing]))
        return
    (schedule,) = await h.backend.schedules([define])
    equal(schedule.name, "nightly", "name")
    equal([each.name for each in (await h.tick()).schedules], ["nightly"], "handed out to be planned")
    firing = Firing(
        name="nightly",
        revision=schedule.revision,
        done_ms=schedule.done_ms,
        new_done_ms=schedule.done_ms + 1,
        next_ms=schedule.done_ms + 10**7,
        specs=(h.spec(),),
    )
    equal(await h.backend.fire([firing, firing]), [Verdict.APPLIED, Verdict.STALE], "verdicts")
    equal(len(await h.claim(5)), 1, "jobs of the slot")
    equal(await h.backend.schedules([ScheduleChange(name="nightly", removed=True)]), [], "after removing")


@case()
async def fair_turns_work_or_keys_are_alike(h: Harness) -> None:
    specs = [h.spec(key=key) for key in "aaab"]
    await h.backend.enqueue(specs)
    keys = "".join(job.key or "-" for job in await h.claim(5))
    equal(keys, "abaa" if h.has("fair") else "aaab", "keys in the order of their starts")


@case()
async def steps_work_or_are_refused(h: Harness) -> None:
    job = await h.start()
    call = h.backend.heartbeat(WorkerInfo(id="w1"), h.lease_ms, [Note(id=job.id, token=job.token, step="charge")])
    if not h.has("steps"):
        equal((await raises(Unsupported, call, "what needs 'steps'")).flag, "steps", "flag")
        equal((await h.record(job.id)).steps, None, "steps")
        return
    await call
    equal((await h.record(job.id)).steps, {"charge": b"null"}, "steps")


@case()
async def workflows_work_or_there_are_none(h: Harness) -> None:
    await h.enqueue(2, workflow="w-1")
    names = [each.id for each in await h.backend.workflows()]
    equal(names, ["w-1"] if h.has("dependencies") else [], "workflows")


@case()
async def priorities_work_or_all_jobs_are_alike(h: Harness) -> None:
    first, second = await h.add(priority=9), await h.add(priority=0)
    wanted = [second, first] if h.has("priorities") else [first, second]
    equal([job.id for job in await h.claim(2)], wanted, "order of starts")


@case()
async def transactions_are_refused_where_there_is_no_bind(h: Harness) -> None:
    """Where there is, a connection that is none is refused; the cases of `bind` ask for the rest."""

    async def bind() -> object:
        return h.backend.bind(object())

    if h.has("bind"):
        await raises(InvalidOption, bind(), "bind of what is no connection")
    else:
        equal((await raises(Unsupported, bind(), "bind")).flag, "bind", "flag")


@case()
async def changes_are_told_or_refused(h: Harness) -> None:
    if not h.has("changes"):
        await _refused(h, "changes", h.backend.changes())
        return
    first = await h.backend.changes()
    job_id = await h.add()
    found = await h.backend.changes(first.cursor)
    equal([(each.id, each.state) for each in found.changes], [(job_id, State.PENDING)], "changes")
