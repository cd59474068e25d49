"""Capacity: a queue takes no more new pending jobs than it has room for; what is in the store already always may."""

from __future__ import annotations

import asyncio

from ...backends.base import BATCH_MAX, Backend, QueueChange, Rerun, Steered, Verdict
from ...errors import QueueFull
from ...job import State, Unique
from .case import case, equal, raises, true
from .harness import Harness

_NEEDS = ("capacity",)


async def _capacity(h: Harness, capacity: int, queue: str = "default") -> None:
    await h.backend.queues([QueueChange(queue=queue, capacity=capacity)])


async def _pending(h: Harness, queue: str = "default") -> int:
    return (await h.backend.counts())[queue].states.get(State.PENDING, 0)


@case(needs=_NEEDS)
async def a_queue_takes_jobs_up_to_its_capacity(h: Harness) -> None:
    await _capacity(h, 3)
    await h.enqueue(3)
    error = await raises(QueueFull, h.backend.enqueue([h.spec()]), "one past the capacity")
    equal((error.queue, error.capacity), ("default", 3), "queue, capacity in the error")
    true(error.retry_after_ms > 0, "it does not say when to try again")
    equal(await _pending(h), 3, "pending")
    (job,) = await h.claim()
    true((await h.try_add()).created, "no room though a job has started")
    await raises(QueueFull, h.backend.enqueue([h.spec()]), "one past the capacity again")
    await h.settle(job)
    equal(await _pending(h), 3, "pending")


@case(needs=_NEEDS)
async def a_call_that_does_not_fit_stores_nothing(h: Harness) -> None:
    await _capacity(h, 3)
    await h.enqueue(2)
    specs = [h.spec(queue="other"), h.spec(), h.spec(delay_ms=9_000), h.spec(), h.spec(queue="other")]
    if h.has("unique"):
        specs[1] = h.spec(unique=Unique(key="k"))
    await raises(QueueFull, h.backend.enqueue(specs), "two where there is room for one")
    equal(len(await h.all()), 2, "jobs")
    if h.has("unique"):
        true((await h.try_add(unique=Unique(key="k"))).created, "the refused call still holds a key")


@case(needs=_NEEDS)
async def a_whole_call_may_fill_a_queue(h: Harness) -> None:
    await _capacity(h, 500)
    await raises(QueueFull, h.backend.enqueue(h.specs(501)), "one more than the capacity in one call")
    equal(await h.all(), [], "jobs")
    await h.backend.enqueue(h.specs(500))
    equal(await _pending(h), 500, "pending")


@case(needs=_NEEDS)
async def what_is_not_new_needs_no_room(h: Harness) -> None:
    await _capacity(h, 2)
    specs = h.specs(2)
    await h.backend.enqueue(specs)
    answers = await h.backend.enqueue(specs)
    equal([answer.created for answer in answers], [False, False], "created, the call repeated on a full queue")
    if h.has("unique"):
        await h.backend.delete([specs[1].id])
        holder = await h.add(unique=Unique(key="k"))
        answer = await h.try_add(unique=Unique(key="k"))
        equal((answer.id, answer.created), (holder, False), "answer for a held key on a full queue")


@case(needs=_NEEDS)
async def what_is_due_later_needs_no_room_and_is_let_in_when_due(h: Harness) -> None:
    await _capacity(h, 1)
    await h.add()
    delayed = await h.enqueue(3, delay_ms=h.step_ms)
    equal((await h.pass_time(2 * h.step_ms)).promoted, 3, "promoted into a full queue")
    equal({await h.state(job_id) for job_id in delayed}, {State.PENDING}, "states")
    await raises(QueueFull, h.backend.enqueue([h.spec()]), "a new job in an overfull queue")
    true((await h.try_add(delay_ms=9_000)).created, "a delayed job was refused by an overfull queue")
    equal(len(await h.claim(BATCH_MAX)), 4, "claimed")


@case(needs=_NEEDS)
async def retries_releases_lapses_and_reruns_need_no_room(h: Harness) -> None:
    await _capacity(h, 2)
    await h.enqueue(2, max_attempts=9)
    first, second = await h.claim(2)
    await h.enqueue(2)
    equal(await h.settle(first, State.PENDING), Verdict.APPLIED, "verdict of a release into a full queue")
    equal(len(await h.backend.retire("w1", "gone")), 1, "lapsed into a full queue")
    ended, _ = await h.put(State.FAILED, queue="other")
    equal(await h.backend.rerun([Rerun(id=ended, queue="default")]), [Steered.DONE], "rerun into a full queue")
    equal(await _pending(h), 5, "pending")
    await raises(QueueFull, h.backend.enqueue([h.spec()]), "a new job in an overfull queue")
    equal((await h.record(second.id)).state, State.PENDING, "state of the job that lapsed")


@case(needs=_NEEDS)
async def follow_ups_need_no_room(h: Harness) -> None:
    """They come with an end that must not be refused."""
    await _capacity(h, 1, "next")
    await h.add(queue="next")
    job = await h.start()
    equal(await h.settle(job, follow_ups=tuple(h.specs(3, queue="next"))), Verdict.APPLIED, "verdict")
    equal(await _pending(h, "next"), 4, "pending")


@case(needs=("capacity", "dependencies"))
async def waiting_jobs_need_no_room_and_are_let_in_when_freed(h: Harness) -> None:
    await _capacity(h, 1)
    parent = await h.add(queue="parents")
    await h.enqueue(5, after=(parent,))
    true((await h.try_add()).created, "waiting jobs took the room")
    (job,) = await h.claim(1, "parents")
    await h.settle(job)
    equal(await _pending(h), 6, "pending after the parent")


@case(needs=("capacity", "dependencies"))
async def a_child_that_need_not_wait_is_a_new_pending_job(h: Harness) -> None:
    await _capacity(h, 1)
    parent, _ = await h.put(State.SUCCEEDED, queue="parents")
    failed, _ = await h.put(State.FAILED, queue="parents")
    await h.add()
    await raises(QueueFull, h.backend.enqueue([h.spec(after=(parent,))]), "a child that would be pending at once")
    equal(await _pending(h), 1, "pending")
    true((await h.try_add(after=(failed,))).created, "a child that is cancelled at once needs no room")


@case(needs=("capacity", "unique_windows"))
async def who_replaces_a_pending_job_takes_its_room(h: Harness) -> None:
    await _capacity(h, 1)
    replace = Unique(key="k", on_conflict="replace")
    await h.add(unique=replace)
    true((await h.try_add(unique=replace)).created, "refused, though it makes the room it needs")
    equal(await _pending(h), 1, "pending")


@case(needs=_NEEDS)
async def each_queue_has_its_own_capacity(h: Harness) -> None:
    await h.backend.queues([QueueChange(queue="a", capacity=1), QueueChange(queue="b", capacity=2)])
    await h.backend.enqueue([h.spec(queue="a"), *h.specs(2, queue="b"), *h.specs(9, queue="c")])
    for queue in ("a", "b"):
        error = await raises(QueueFull, h.backend.enqueue([h.spec(queue=queue)]), f"one past the capacity of {queue}")
        equal(error.queue, queue, "queue in the error")
    true((await h.try_add(queue="c")).created, "a queue without a capacity is full")


@case(needs=_NEEDS)
async def a_capacity_is_changed_and_lifted_at_once(h: Harness) -> None:
    other = await h.open()
    await h.enqueue(5)
    await _capacity(h, 3)
    await raises(QueueFull, other.enqueue([h.spec()]), "a job for a queue that was overfull before")
    await other.queues([QueueChange(queue="default", paused=False)])
    await raises(QueueFull, h.backend.enqueue([h.spec()]), "after a change of something else")
    await _capacity(h, 6)
    true((await other.enqueue([h.spec()]))[0].created, "no room after the capacity was raised")
    await raises(QueueFull, other.enqueue([h.spec()]), "one past the new capacity")
    await _capacity(h, 0)
    equal([answer.created for answer in await other.enqueue(h.specs(50))], [True] * 50, "created after it was lifted")


@case(needs=_NEEDS)
async def the_capacity_is_among_the_settings(h: Harness) -> None:
    await h.backend.queues([QueueChange(queue="a", capacity=7), QueueChange(queue="b", paused=True)])
    found = await (await h.open()).queues()
    settings = {name: (bool(each.paused), each.capacity or None) for name, each in found.items()}
    equal(settings, {"a": (False, 7), "b": (True, None)}, "settings")
    found = await h.backend.queues([QueueChange(queue="a", capacity=0)])
    equal(found["a"].capacity or None, None, "capacity after it was lifted")


@case(needs=_NEEDS)
async def a_paused_queue_fills_up_like_any_other(h: Harness) -> None:
    await h.backend.queues([QueueChange(queue="default", paused=True, capacity=2)])
    await h.enqueue(2)
    await raises(QueueFull, h.backend.enqueue([h.spec()]), "one past the capacity")


@case("B33", needs=_NEEDS)
async def racers_never_overfill_a_queue(h: Harness) -> None:
    await _capacity(h, 10)
    connections = await h.several(4)

    async def fill(backend: Backend) -> int:
        stored = 0
        for _ in range(10):
            try:
                await backend.enqueue(h.specs(2))
                stored += 2
            except QueueFull:
                await asyncio.sleep(0)
        return stored

    stored = await asyncio.gather(*(fill(backend) for backend in connections))
    equal((sum(stored), await _pending(h)), (10, 10), "jobs acknowledged, pending")
