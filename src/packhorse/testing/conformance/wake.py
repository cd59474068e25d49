"""Bells: a hint that something may have happened, which is not lost between looking and waiting.

Bells may ring for nothing, so no case asks for silence.
"""

from __future__ import annotations

import asyncio

from ...backends.base import DUE_TOPIC, QueueChange, Rerun, job_topic, queue_topic, worker_topic
from ...backends.bells import Bell
from ...job import State
from .case import case, equal, true
from .harness import Harness

_QUEUE = queue_topic("default")


async def _rings(h: Harness, bell: Bell, what: str) -> None:
    """Fail unless the bell rings, or has rung since it was last waited for; take it down."""
    with bell:
        true(await bell.wait(h.ring_ms), f"no ring: {what}")


@case()
async def enqueue_rings_its_queue(h: Harness) -> None:
    bell = h.backend.watch([_QUEUE])
    await h.add()
    await _rings(h, bell, "a job was enqueued")


@case()
async def a_ring_between_looking_and_waiting_is_not_lost(h: Harness) -> None:
    with h.backend.watch([_QUEUE]) as bell:
        for _ in range(20):
            equal(await h.claim(10), [], "claimed before anything was enqueued")
            await h.add()  # comes after the look, before the wait
            true(await bell.wait(h.ring_ms), "a ring was lost")
            equal(len(await h.claim(10)), 1, "claimed after the ring")


@case()
async def a_waiter_wakes_up(h: Harness) -> None:
    with h.backend.watch([_QUEUE]) as bell:
        waiter = asyncio.create_task(bell.wait(h.ring_ms))
        await asyncio.sleep(0)
        await h.add()
        equal(await waiter, True, "answer")


@case()
async def waiting_for_nothing_ends_in_time(h: Harness) -> None:
    with h.backend.watch([queue_topic("silent")]) as bell:
        async with asyncio.timeout(h.ring_ms / 1000):
            for timeout_ms in (0, -1, 0.5, 20):
                await bell.wait(timeout_ms)


@case()
async def a_bell_listens_to_all_its_topics(h: Harness) -> None:
    topics = [queue_topic("a"), queue_topic("b"), DUE_TOPIC]
    for fields in ({"queue": "a"}, {"queue": "b"}, {"queue": "c", "delay_ms": 9_000}):
        bell = h.backend.watch(topics)
        await h.add(**fields)
        await _rings(h, bell, f"a job with {fields} was enqueued")


@case()
async def every_bell_of_a_topic_rings(h: Harness) -> None:
    bells = [h.backend.watch([_QUEUE]) for _ in range(5)]
    await h.add()
    for bell in bells:
        await _rings(h, bell, "one of several bells")


@case()
async def enqueue_with_a_delay_rings_due(h: Harness) -> None:
    bell = h.backend.watch([DUE_TOPIC])
    await h.add(delay_ms=9_000)
    await _rings(h, bell, "a delayed job was enqueued")


@case()
async def settling_rings_whoever_waits_for_the_job(h: Harness) -> None:
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        job = await h.start()
        bell = h.backend.watch([job_topic(job.id)])
        await h.settle(job, state)
        await _rings(h, bell, f"the job {state}")


@case()
async def settling_rings_where_the_job_goes(h: Harness) -> None:
    bell = h.backend.watch([_QUEUE])
    job = await h.start(max_attempts=9)
    await bell.wait(h.ring_ms)
    await h.settle(job, State.PENDING)
    await _rings(h, bell, "a job was released")
    (job,) = await h.claim()
    bell = h.backend.watch([DUE_TOPIC])
    await h.settle(job, State.SCHEDULED, delay_ms=9_000)
    await _rings(h, bell, "a retry was scheduled")


@case()
async def follow_ups_ring_their_queues(h: Harness) -> None:
    job = await h.start()
    bells = [h.backend.watch([topic]) for topic in (queue_topic("next"), DUE_TOPIC)]
    await h.settle(job, follow_ups=(h.spec(queue="next"), h.spec(queue="late", delay_ms=9_000)))
    for bell in bells:
        await _rings(h, bell, "a follow-up was stored")


@case()
async def a_tick_rings_what_it_moved(h: Harness) -> None:
    await h.add(delay_ms=h.step_ms, queue="a")
    await h.start(queue="b", max_attempts=5)
    poison = await h.start(queue="c", max_attempts=1)
    bells = [h.backend.watch([topic]) for topic in (queue_topic("a"), queue_topic("b"), job_topic(poison.id))]
    await h.pass_time(2 * h.lease_ms)
    for bell, what in zip(bells, ("a job became due", "a job lapsed", "a job failed by a lapse"), strict=True):
        await _rings(h, bell, what)


@case()
async def retire_rings_what_it_moved(h: Harness) -> None:
    job = await h.start(max_attempts=5)
    poison = await h.start(queue="b", max_attempts=1)
    bells = [h.backend.watch([topic]) for topic in (queue_topic(job.queue), job_topic(poison.id))]
    await h.backend.retire("w1", "gone")
    for bell in bells:
        await _rings(h, bell, "a worker was retired")


@case()
async def cancel_rings_the_worker_or_whoever_waits(h: Harness) -> None:
    job = await h.start(worker="w7")
    bell = h.backend.watch([worker_topic("w7")])
    await h.backend.cancel([job.id])
    await _rings(h, bell, "a running job was asked to stop")
    pending = await h.add(queue="b")
    bell = h.backend.watch([job_topic(pending)])
    await h.backend.cancel([pending])
    await _rings(h, bell, "a pending job was cancelled")


@case()
async def rerun_and_delete_ring(h: Harness) -> None:
    job_id, _ = await h.put(State.FAILED)
    bell = h.backend.watch([_QUEUE])
    await h.backend.rerun([Rerun(id=job_id)])
    await _rings(h, bell, "a job was rerun")
    (job,) = await h.claim()
    await h.settle(job, State.FAILED)
    bell = h.backend.watch([DUE_TOPIC])
    await h.backend.rerun([Rerun(id=job_id, delay_ms=9_000)])
    await _rings(h, bell, "a job was rerun with a delay")
    bell = h.backend.watch([job_topic(job_id)])
    await h.backend.delete([job_id])
    await _rings(h, bell, "a job was deleted")


@case()
async def resuming_a_queue_rings_it(h: Harness) -> None:
    await h.add()
    await h.backend.queues([QueueChange(queue="default", paused=True)])
    bell = h.backend.watch([_QUEUE])
    await h.backend.queues([QueueChange(queue="default", paused=False)])
    await _rings(h, bell, "a queue was resumed")


@case("B20", needs=("shared",))
async def a_ring_crosses_connections(h: Harness) -> None:
    other = await h.open()
    with h.backend.watch([_QUEUE]) as bell:
        await other.enqueue([h.spec()])
        true(await bell.wait(h.ring_ms), "no ring from another connection")
    job = (await h.claim())[0]
    with h.backend.watch([job_topic(job.id)]) as bell:
        await h.settle(job, backend=other)
        true(await bell.wait(h.ring_ms), "no ring for a job that ended on another connection")


@case()
async def a_cancelled_wait_leaves_the_bell_usable(h: Harness) -> None:
    with h.backend.watch([_QUEUE]) as bell:
        waiter = asyncio.create_task(bell.wait(h.ring_ms))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        await h.add()
        true(await bell.wait(h.ring_ms), "no ring after a cancelled wait")


@case()
async def closing_a_bell_is_idempotent_and_disturbs_no_other(h: Harness) -> None:
    first, second = h.backend.watch([_QUEUE]), h.backend.watch([_QUEUE])
    first.close()
    first.close()
    await h.add()
    await _rings(h, second, "the bell beside it was closed")
    second.close()
