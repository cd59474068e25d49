"""Follow-ups: stored in the very move that ends their parent, or not at all."""

from __future__ import annotations

import asyncio

from ...backends.base import BATCH_MAX, Settlement, Verdict
from ...errors import InvalidOption
from ...job import JobSpec, State, Unique
from .case import case, equal, raises, true
from .harness import Harness


@case()
async def follow_ups_are_stored_with_the_settlement(h: Harness) -> None:
    job = await h.start()
    now, later = h.spec(queue="next", payload=b"[1]"), h.spec(queue="next", delay_ms=h.step_ms)
    equal(await h.settle(job, follow_ups=(now, later)), Verdict.APPLIED, "verdict")
    equal((await h.record(now.id)).payload, b"[1]", "payload")
    equal(await h.state(now.id), State.PENDING, "state of the first")
    equal(await h.state(later.id), State.SCHEDULED, "state of the delayed one")
    equal([claimed.id for claimed in await h.claim(5, "next")], [now.id], "claimed")
    await h.pass_time(h.step_ms + 1)
    equal([claimed.id for claimed in await h.claim(5, "next")], [later.id], "claimed later")


@case()
async def follow_ups_are_stored_wherever_their_parent_goes(h: Harness) -> None:
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SCHEDULED):
        job = await h.start()
        spec = h.spec(queue="next")
        delay_ms = 60_000 if state is State.SCHEDULED else 0
        equal(await h.settle(job, state, delay_ms=delay_ms, follow_ups=(spec,)), Verdict.APPLIED, "verdict")
        equal(await h.state(spec.id), State.PENDING, f"follow-up of a {state} job")


@case()
async def follow_ups_of_a_stale_settlement_are_not_stored(h: Harness) -> None:
    job = await h.start()
    spec = h.spec()
    await h.settle(job)
    equal(await h.settle(job, follow_ups=(spec,)), Verdict.STALE, "verdict")
    equal(await h.state(spec.id), None, "follow-up")


@case()
async def in_one_call_only_the_applied_have_follow_ups(h: Harness) -> None:
    await h.enqueue(4)
    jobs = await h.claim(4)
    await h.settle(jobs[2])
    specs = h.specs(4, queue="next")
    settlements = [
        Settlement(id=job.id, token=job.token, state=State.SUCCEEDED, follow_ups=(spec,))
        for job, spec in zip(jobs, specs, strict=True)
    ]
    verdicts = await h.backend.settle(settlements)
    stored = [await h.state(spec.id) is not None for spec in specs]
    equal(stored, [verdict is Verdict.APPLIED for verdict in verdicts], "which follow-ups are stored")
    equal(stored, [True, True, False, True], "which settlements were applied")


@case()
async def a_follow_up_that_is_there_already_is_left_alone(h: Harness) -> None:
    there = h.spec(queue="next", payload=b"[1]")
    await h.backend.enqueue([there])
    before = await h.record(there.id)
    job = await h.start()
    again = h.spec(id=there.id, payload=b"[2]")
    fresh = h.spec(queue="next")
    equal(await h.settle(job, follow_ups=(again, fresh)), Verdict.APPLIED, "verdict")
    equal(await h.record(there.id), before, "the job that was there")
    equal(await h.state(fresh.id), State.PENDING, "the other follow-up")


@case(needs=("unique",))
async def a_follow_up_may_take_the_key_its_parent_frees(h: Harness) -> None:
    """A job that enqueues its own next run under its own key: free and taken in one move."""
    key = Unique(key="crawl")
    job = await h.start(unique=key)
    for _ in range(3):
        spec = h.spec(unique=key)
        equal(await h.settle(job, follow_ups=(spec,)), Verdict.APPLIED, "verdict")
        equal(await h.state(spec.id), State.PENDING, "the follow-up with the key of its parent")
        equal((await h.try_add(unique=key)).id, spec.id, "holder")
        (job,) = await h.claim()


@case(needs=("unique",))
async def a_follow_up_whose_key_is_held_gives_way(h: Harness) -> None:
    key = Unique(key="k")
    holder = await h.add(queue="next", unique=key)
    job = await h.start()
    spec, other = h.spec(queue="next", unique=key), h.spec(queue="next")
    equal(await h.settle(job, follow_ups=(spec, other)), Verdict.APPLIED, "verdict")
    equal(await h.state(spec.id), None, "the follow-up whose key is held")
    equal(await h.state(other.id), State.PENDING, "the other follow-up")
    equal((await h.try_add(queue="next", unique=key)).id, holder, "holder")


@case(needs=("unique",))
async def a_follow_up_of_a_retried_job_cannot_take_its_key(h: Harness) -> None:
    key = Unique(key="k")
    job = await h.start(unique=key)
    spec = h.spec(unique=key)
    equal(await h.settle(job, State.PENDING, follow_ups=(spec,)), Verdict.APPLIED, "verdict")
    equal(await h.state(spec.id), None, "the follow-up with the key of its living parent")


@case("B24")
async def racing_settlements_store_the_follow_ups_of_one(h: Harness) -> None:
    connections = await h.several(3)
    for _ in range(10):
        job = await h.start()
        specs = h.specs(3, queue="next")
        calls = [
            h.settle(job, backend=backend, follow_ups=(spec,)) for backend, spec in zip(connections, specs, strict=True)
        ]
        verdicts = await asyncio.gather(*calls)
        equal(verdicts.count(Verdict.APPLIED), 1, "settlements applied")
        stored = [await h.state(spec.id) is not None for spec in specs]
        equal(stored, [verdict is Verdict.APPLIED for verdict in verdicts], "which follow-ups are stored")


@case()
async def many_follow_ups_are_all_stored(h: Harness) -> None:
    job = await h.start()
    specs: list[JobSpec] = h.specs(500, queue="next")
    await h.settle(job, follow_ups=tuple(specs))
    claimed = await h.claim(1_000, "next")
    true([job.id for job in claimed] == [spec.id for spec in specs], "not all follow-ups, or not in their order")


@case()
async def too_many_follow_ups_refuse_the_whole_call(h: Harness) -> None:
    job = await h.start()
    call = h.settle(job, follow_ups=tuple(h.specs(BATCH_MAX + 1, queue="next")))
    await raises(InvalidOption, call, "settle with one follow-up too many")
    equal([each.state for each in await h.all()], [State.RUNNING], "jobs")
    equal(await h.settle(job, follow_ups=tuple(h.specs(BATCH_MAX, queue="next"))), Verdict.APPLIED, "verdict")
    equal((await h.backend.counts())["next"].states, {State.PENDING: BATCH_MAX}, "follow-ups at the limit")
