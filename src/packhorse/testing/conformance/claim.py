"""Claim: best first, each job to one claimer, under a token that was never used."""

from __future__ import annotations

import asyncio

from ...backends.base import BATCH_MAX, Backend, QueueChange, Settlement, Verdict, WorkerInfo
from ...errors import InvalidOption
from ...job import AGEING_MS, Claimed, JobSpec, State
from .case import CASE_SECONDS_MAX, case, equal, raises, true
from .harness import FOREVER, Harness


@case()
async def claim_turns_a_job_running_and_counts_the_attempt(h: Harness) -> None:
    job_id = await h.add()
    (job,) = await h.claim(worker="w7")
    record = await h.record(job_id)
    equal((record.state, record.attempt, record.worker), (State.RUNNING, 1, "w7"), "state, attempt, worker")
    true(record.started_at_ms is not None, "started_at_ms is not set")
    equal(record.finished_at_ms, None, "finished_at_ms")
    true(bool(job.token), "the token is empty")


@case()
async def a_claimed_job_carries_all_a_worker_needs(h: Harness) -> None:
    spec = h.spec(
        type="email",
        payload=b'{"to":"a"}',
        queue="mail",
        priority=3,
        max_attempts=9,
        timeout_ms=12_345,
        key="tenant",
        tags=("x", "y"),
        meta={"traceparent": "00-1"},
        workflow="wf",
    )
    await h.backend.enqueue([spec])
    (job,) = await h.claim(1, "mail")
    for name in set(Claimed.__struct_fields__) & set(JobSpec.__struct_fields__):
        equal(getattr(job, name), getattr(spec, name), name)
    record = await h.record(spec.id)
    equal((job.attempt, job.parked_at_ms), (1, None), "attempt, parked_at_ms")
    equal((job.created_at_ms, job.ready_at_ms), (record.created_at_ms, record.due_at_ms), "created, ready")


@case()
async def jobs_of_one_priority_start_in_the_order_they_came(h: Harness) -> None:
    first = await h.enqueue(5)
    second = [await h.add() for _ in range(5)]
    await h.advance(h.step_ms)
    third = await h.enqueue(5)
    claimed = [job.id for _ in range(5) for job in await h.claim(3)]
    equal(claimed, [*first, *second, *third], "order of starts")


@case(needs=("priorities",))
async def a_better_priority_starts_first(h: Harness) -> None:
    priorities = [5, 9, 0, 3, 7, 1, 8, 2, 6, 4, 0, 9]
    specs = [h.spec(priority=priority) for priority in priorities]
    await h.backend.enqueue(specs)
    claimed = [job for _ in range(len(specs)) for job in await h.claim(1)]
    equal([job.priority for job in claimed], sorted(priorities), "priorities in order of start")
    by_rank = sorted(specs, key=lambda spec: spec.priority)  # stable: first come, first served
    equal([job.id for job in claimed], [spec.id for spec in by_rank], "order of starts")


@case(needs=("priorities",))
async def a_batch_comes_best_first(h: Harness) -> None:
    specs = [h.spec(priority=priority) for priority in (8, 2, 5, 2, 8)]
    await h.backend.enqueue(specs)
    equal([job.priority for job in await h.claim(5)], [2, 2, 5, 8, 8], "priorities in one claim")


@case(needs=("priorities", "manual_clock"))
async def a_job_that_waited_long_enough_overtakes_a_better_priority(h: Harness) -> None:
    """Decision 4: one step of priority is worth AGEING_MS of waiting, so low never starves."""
    low = await h.add(priority=8)
    await h.advance(6 * AGEING_MS - 1)
    high = await h.add(priority=2)
    equal([job.id for job in await h.claim(2)], [high, low], "order before it has waited long enough")
    low = await h.add(priority=8)
    await h.advance(6 * AGEING_MS + 1)
    high = await h.add(priority=2)
    equal([job.id for job in await h.claim(2)], [low, high], "order after it has waited long enough")


@case()
async def a_promoted_job_is_ranked_by_when_it_was_due(h: Harness) -> None:
    """A ticker that comes late must not cost a job its place."""
    delayed = await h.add(delay_ms=h.step_ms)
    await h.advance(2 * h.step_ms)
    late = await h.add()
    await h.tick()
    claimed = await h.claim(2)
    equal([job.id for job in claimed], [delayed, late], "order of starts")
    equal(claimed[0].ready_at_ms - claimed[0].created_at_ms, h.step_ms, "ready after creation, ms")


@case()
async def a_job_that_is_not_due_is_not_claimed(h: Harness) -> None:
    await h.add(delay_ms=10 * h.step_ms)
    equal(await h.claim(5), [], "claimed at once")
    await h.pass_time(5 * h.step_ms)
    equal(await h.claim(5), [], "claimed half-way")
    await h.pass_time(6 * h.step_ms)
    equal(len(await h.claim(5)), 1, "claimed when due")


@case(needs=("priorities",))
async def queues_are_served_in_the_order_given(h: Harness) -> None:
    last = await h.enqueue(2, queue="b", priority=0)
    first = await h.enqueue(2, queue="a", priority=9)
    claimed = await h.claim(3, "a", "b")
    equal([job.id for job in claimed], [*first, last[0]], "order of starts")
    equal([job.queue for job in claimed], ["a", "a", "b"], "queues")


@case()
async def a_queue_that_was_not_asked_for_is_left_alone(h: Harness) -> None:
    job_id = await h.add(queue="other")
    equal(await h.claim(5, "default", "unknown"), [], "claimed")
    equal(await h.state(job_id), State.PENDING, "state")


@case()
async def a_queue_named_twice_is_served_once(h: Harness) -> None:
    ids = await h.enqueue(3)
    equal([job.id for job in await h.claim(10, "default", "default")], ids, "claimed")


@case()
async def claim_takes_no_more_than_its_limit(h: Harness) -> None:
    ids = await h.enqueue(7, queue="a") + await h.enqueue(3, queue="b")
    equal([job.id for job in await h.claim(0, "a", "b")], [], "claimed with limit 0")
    equal([job.id for job in await h.claim(4, "a", "b")], ids[:4], "claimed with limit 4")
    equal([job.id for job in await h.claim(4, "a", "b")], ids[4:8], "claimed with limit 4 over two queues")
    equal([job.id for job in await h.claim(BATCH_MAX, "a", "b")], ids[8:], "claimed with a large limit")


@case()
async def claim_takes_a_whole_batch(h: Harness) -> None:
    ids = await h.enqueue(BATCH_MAX + 1)
    equal([job.id for job in await h.claim(BATCH_MAX)], ids[:BATCH_MAX], "claimed")


@case()
async def claim_and_tick_refuse_more_than_a_batch(h: Harness) -> None:
    ids = await h.enqueue(1)
    for limit in (BATCH_MAX + 1, -1):
        await raises(InvalidOption, h.backend.claim(["default"], limit, h.lease_ms, "w1"), f"claim of {limit}")
        await raises(InvalidOption, h.backend.tick(limit, FOREVER), f"tick of {limit}")
    equal(await h.state(ids[0]), State.PENDING, "state")


@case()
async def claim_from_nothing_answers_at_once(h: Harness) -> None:
    async with asyncio.timeout(CASE_SECONDS_MAX / 2):
        equal(await h.claim(5), [], "claimed from an empty queue")
        equal(await h.backend.claim([], 5, h.lease_ms, "w1"), [], "claimed from no queues")


@case()
async def a_job_goes_to_one_of_many_claimers(h: Harness) -> None:
    ids = await h.enqueue(400)
    connections = await h.several(4)

    async def drain(number: int, backend: Backend) -> list[Claimed]:
        taken: list[Claimed] = []
        async for batch in h.drain(1 + number * 7, worker=f"w{number}", backend=backend):
            taken += batch
        return taken

    taken = await asyncio.gather(*(drain(number, backend) for number, backend in enumerate(connections)))
    claimed = [job.id for each in taken for job in each]
    equal(len(claimed), 400, "claims")
    equal(sorted(claimed), sorted(ids), "jobs claimed")
    for number, each in enumerate(taken):
        held = await h.beat(f"w{number}")
        equal(held, {job.id: job.token for job in each}, f"held by worker {number}")


@case()
async def a_claimed_job_is_not_claimed_again(h: Harness) -> None:
    await h.start()
    other = await h.open()
    equal(await h.claim(5, worker="w2"), [], "claimed again")
    equal(await h.claim(5, worker="w2", backend=other), [], "claimed again on another connection")


@case()
async def no_token_is_used_for_two_claims(h: Harness) -> None:
    await h.enqueue(30, max_attempts=1_000)
    connections = [h.backend, *await h.several(2)]
    used: set[str] = set()
    for turn in range(24):
        backend = connections[turn % 3]
        claimed = await h.claim(10, worker=f"w{turn % 2}", backend=backend)
        tokens = {job.token for job in claimed}
        true(not tokens & used, f"a token was used again in claim {turn + 1}")
        used |= tokens
        state = (State.PENDING, State.SCHEDULED)[turn % 2]
        releases = [Settlement(id=job.id, token=job.token, state=state, delay_ms=turn % 2) for job in claimed]
        await backend.settle(releases)
        await h.pass_time(h.step_ms)


@case()
async def no_token_is_used_again_after_reopening(h: Harness) -> None:
    """A counter that starts anew with the connection would hand an old run the key to a new one."""
    job_id = await h.add(max_attempts=1_000)
    used: set[str] = set()
    for _ in range(5):
        backend = await h.open()
        (job,) = await h.claim(backend=backend)
        true(job.token not in used, "a token was used again after reopening")
        used.add(job.token)
        await h.settle(job, State.PENDING, backend=backend)
        await backend.close()
    equal((await h.record(job_id)).attempt, 5, "attempts")


@case()
async def attempts_count_claims(h: Harness) -> None:
    job_id = await h.add(max_attempts=5)
    for attempt in range(1, 5):
        (job,) = await h.claim()
        equal((job.id, job.attempt, job.max_attempts), (job_id, attempt, 5), "id, attempt, max_attempts")
        await h.settle(job, State.PENDING)
        equal((await h.record(job_id)).attempt, attempt, "attempt after the release")


@case()
async def claim_renews_the_lease_of_the_worker(h: Harness) -> None:
    job = await h.start()
    for _ in range(4):
        await h.advance(h.lease_ms * 6 // 10)
        await h.settle(await h.start())
        equal((await h.tick()).lapsed, 0, "lapsed")
    equal(await h.settle(job), Verdict.APPLIED, "verdict")


@case()
async def a_claim_gives_the_whole_lease_from_now(h: Harness) -> None:
    """However long the lease was still good for. An empty claim may leave it."""
    await h.start()
    await h.advance(h.lease_ms // 4)
    await h.start()
    equal((await h.pass_time(h.lease_ms - h.lease_ms // 8)).lapsed, 0, "lapsed within a lease since the last claim")
    equal((await h.pass_time(h.lease_ms // 4)).lapsed, 2, "lapsed after it")


@case()
async def claim_makes_the_worker_known(h: Harness) -> None:
    equal(await h.backend.workers(), [], "workers at first")
    await h.start(worker="w9")
    equal([info.id for info in await h.backend.workers()], ["w9"], "workers")


@case()
async def claim_keeps_what_a_heartbeat_said_of_the_worker(h: Harness) -> None:
    await h.backend.heartbeat(WorkerInfo(id="w1", host="box", pid=7, queues=("a",)), h.lease_ms)
    await h.start()
    (info,) = await h.backend.workers()
    equal((info.host, info.pid, info.queues), ("box", 7, ("a",)), "host, pid, queues")


@case()
async def a_paused_queue_yields_nothing(h: Harness) -> None:
    ids = await h.enqueue(3, queue="a") + await h.enqueue(1, queue="b")
    await h.backend.queues([QueueChange(queue="a", paused=True)])
    other = await h.open()
    for backend in (h.backend, other):
        true("a" not in {job.queue for job in await h.claim(5, "a", backend=backend)}, "a paused queue was claimed")
    equal([job.id for job in await h.claim(5, "a", "b")], ids[3:], "claimed from the queue that is not paused")
    await h.backend.queues([QueueChange(queue="a", paused=False)])
    equal([job.id for job in await h.claim(5, "a", "b")], ids[:3], "claimed after resuming")


@case()
async def a_pause_holds_back_what_comes_later(h: Harness) -> None:
    running = await h.start(max_attempts=3)
    await h.add(delay_ms=h.step_ms)
    await h.backend.queues([QueueChange(queue="default", paused=True)])
    await h.add()
    equal(await h.settle(running, State.PENDING), Verdict.APPLIED, "verdict in a paused queue")
    await h.pass_time(h.step_ms)
    equal((await h.backend.counts())["default"].states, {State.PENDING: 3}, "counts")
    equal(await h.claim(5), [], "claimed")


@case()
async def ended_and_deleted_jobs_are_not_claimed(h: Harness) -> None:
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        await h.put(state)
    cancelled, deleted, pending = await h.enqueue(3)
    await h.backend.cancel([cancelled])
    await h.backend.delete([deleted])
    equal([job.id for job in await h.claim(10)], [pending], "claimed")


@case("B12", "B11")
async def jobs_that_are_just_starting_are_not_swept(h: Harness) -> None:
    """Four claimers over three queues while a ticker never rests: nothing lapses, nothing is lost or run twice."""
    queues = ("a", "b", "c")
    ids = [job_id for queue in queues for job_id in await h.enqueue(150, queue=queue)]
    connections = await h.several(5)
    lapsed = 0
    ended = asyncio.Event()

    async def sweep() -> None:
        nonlocal lapsed
        while not ended.is_set():
            lapsed += (await h.tick(backend=connections[4])).lapsed
            await asyncio.sleep(0)

    async def work(number: int) -> int:
        backend, done = connections[number], 0
        async for batch in h.drain(20, *queues, worker=f"w{number}", backend=backend):
            verdicts = await backend.settle(
                [Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in batch]
            )
            done += verdicts.count(Verdict.APPLIED)
        return done

    sweeper = asyncio.create_task(sweep())
    done = await asyncio.gather(*(work(number) for number in range(4)))
    ended.set()
    await sweeper
    equal((sum(done), lapsed), (len(ids), 0), "jobs done, jobs swept")
    equal({job.state for job in await h.all()}, {State.SUCCEEDED}, "states")
