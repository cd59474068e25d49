"""Concurrency limits: a slot comes back by every way a job can leave. And what limits say of themselves, and ring."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ...backends.base import BATCH_MAX, EACH_KEY, NOT_COUNTED, Backend, Limit, Rerun, Verdict, queue_topic
from ...chance import Chance
from ...job import Claimed, State
from .case import case, equal, true
from .harness import FOREVER, Harness

_NEEDS = ("limits",)
_CLOCK = ("limits", "manual_clock")

Leave = Callable[[Harness, list[Claimed]], Awaitable[object]]


async def _limit(h: Harness, **fields: Any) -> list[Limit]:
    return await h.backend.limits([Limit(**{"type": "work", **fields})])


def _settled(state: State, delay_ms: int = 0, **fields: Any) -> Leave:
    async def leave(h: Harness, jobs: list[Claimed]) -> None:
        for job in jobs:
            equal(await h.settle(job, state, delay_ms=delay_ms, **fields), Verdict.APPLIED, "verdict")

    return leave


async def _lapse(h: Harness, jobs: list[Claimed]) -> None:
    await h.advance(2 * h.lease_ms)
    equal((await h.tick()).lapsed, len(jobs), "lapsed")


async def _retire(h: Harness, jobs: list[Claimed]) -> None:
    equal(len(await h.backend.retire("w1", "its process died")), len(jobs), "jobs lapsed")


async def _cancel(h: Harness, jobs: list[Claimed]) -> None:
    """Asked to stop, they count until they have stopped."""
    await h.backend.cancel([job.id for job in jobs])
    equal(await h.claim(BATCH_MAX, worker="w2"), [], "claimed while the cancelled still run")
    await _settled(State.CANCELLED)(h, jobs)


async def _cancel_and_release(h: Harness, jobs: list[Claimed]) -> None:
    await h.backend.cancel([job.id for job in jobs])
    await _settled(State.PENDING)(h, jobs)


async def _cancel_and_lapse(h: Harness, jobs: list[Claimed]) -> None:
    await h.backend.cancel([job.id for job in jobs])
    await _lapse(h, jobs)


_LEAVES: dict[str, Leave] = {
    "succeeded": _settled(State.SUCCEEDED),
    "failed": _settled(State.FAILED),
    "cancelled by its worker": _settled(State.CANCELLED),
    "a retry": _settled(State.SCHEDULED, 10**9),
    "a release": _settled(State.PENDING, refund=True),
    "a lapse": _lapse,
    "retire": _retire,
    "a cancel": _cancel,
    "a cancel and a release": _cancel_and_release,
    "a cancel and a lapse": _cancel_and_lapse,
}


async def _clear(h: Harness) -> None:
    await h.backend.retire("w1", "end of the turn")
    await h.backend.retire("w2", "end of the turn")
    await h.backend.delete([job.id for job in await h.all()])


async def _slots_come_back(h: Harness, key: str | None, max_attempts: int) -> None:
    for how, leave in _LEAVES.items():
        await h.enqueue(6, key=key, max_attempts=max_attempts)
        jobs = await h.claim(BATCH_MAX)
        equal(len(jobs), 2, f"starts before {how}")
        await leave(h, jobs)
        equal(len(await h.claim(BATCH_MAX)), 2, f"starts after {how}")
        for job in jobs:  # an old run says again that it ended
            equal(await h.settle(job), Verdict.STALE, "verdict")
        await h.backend.retire("nobody", "an unknown worker")
        equal(await h.claim(BATCH_MAX), [], f"claimed after {how} and a stale settlement: a slot was doubled")
        await _clear(h)


@case("B19", "B30", needs=_NEEDS)
async def a_slot_comes_back_once_however_its_job_leaves(h: Harness) -> None:
    await _limit(h, concurrency=2)
    await _slots_come_back(h, None, 9)


@case("B19", needs=_NEEDS)
async def a_slot_of_a_key_comes_back_once_however_its_job_leaves(h: Harness) -> None:
    await _limit(h, key=EACH_KEY, concurrency=2)
    await _slots_come_back(h, "tenant", 1)


@case("B19", needs=_NEEDS)
async def a_job_needs_no_slot_to_get_its_own_back(h: Harness) -> None:
    """Limit 1, and every worker dies: after each lease one starts, until all their attempts are spent."""
    await _limit(h, concurrency=1)
    ids = await h.enqueue(2, max_attempts=2)
    for number in range(4):
        equal(len(await h.claim(5, worker=f"w{number}")), 1, f"starts after {number} deaths")
        equal((await h.pass_time(2 * h.lease_ms)).lapsed, 1, "lapsed")
    equal([await h.state(job_id) for job_id in ids], [State.FAILED] * 2, "states after the last attempts")


@case(needs=_NEEDS)
async def a_job_deleted_or_rerun_after_its_end_frees_no_slot_twice(h: Harness) -> None:
    await _limit(h, concurrency=2)
    await h.enqueue(6)
    jobs = await h.claim(2)
    for job in jobs:
        await h.settle(job)
    equal(len(await h.claim(BATCH_MAX)), 2, "starts")
    await h.backend.delete([jobs[0].id])
    await h.backend.rerun([Rerun(id=jobs[1].id)])
    await h.backend.cancel([jobs[1].id])
    equal(await h.claim(BATCH_MAX), [], "claimed while both slots are taken")


@case("B19", needs=("limits", "worker_rows"))
async def slots_of_a_worker_nobody_knows_come_back(h: Harness) -> None:
    await _limit(h, concurrency=1)
    await h.enqueue(2, max_attempts=1)
    await h.claim(5)
    h.drop_workers()
    await h.tick()
    equal(len(await h.claim(5, worker="w2")), 1, "starts after the rows of the workers were deleted")


@case(needs=_NEEDS)
async def never_more_run_than_the_limit_whoever_claims(h: Harness) -> None:
    """Three connections, two queues, claims of any size, ends of every kind: at most 4, and all get done."""
    await _limit(h, concurrency=4)
    await _limit(h, key="k", concurrency=2)
    ids = await h.enqueue(40, queue="a", max_attempts=99) + await h.enqueue(40, queue="b", key="k", max_attempts=99)
    chance = Chance(4)
    states = (State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.PENDING)

    async def work(name: str, backend: Backend) -> None:
        for _ in range(400):
            jobs = await h.claim(
                chance.below(5), *chance.choice((("a", "b"), ("b", "a"))), worker=name, backend=backend
            )
            running = await h.all(states=(State.RUNNING,))
            true(len(running) <= 4, f"{len(running)} run at once")
            true(sum(job.key == "k" for job in running) <= 2, "too many of a key run at once")
            await asyncio.sleep(0)
            for job in jobs:
                await h.settle(job, chance.choice(states), backend=backend, refund=True)
            if not await h.all(states=(State.PENDING, State.RUNNING), limit=1):
                return

    connections = await h.several(3)
    await asyncio.gather(*(work(f"w{number}", backend) for number, backend in enumerate(connections)))
    ended = await h.all(states=(State.SUCCEEDED, State.FAILED))
    equal(len(ended), len(ids), "jobs that ended")


# ---- what limits say -------------------------------------------------------------------------------------


@case(needs=_CLOCK)
async def a_limit_says_what_runs_and_when_it_opens(h: Harness) -> None:
    async def about(key: str | None) -> list[tuple[str | None, int, int | None]]:
        return [(limit.key, limit.running, limit.opens_in_ms) for limit in await h.backend.limits(about=("work", key))]

    await h.backend.limits(
        [
            Limit(type="work", rate=10, burst=3, concurrency=9),
            Limit(type="work", key=EACH_KEY, concurrency=2),
            Limit(type="work", key="other", concurrency=1),
            Limit(type="else", concurrency=1),
        ]
    )
    equal(await about(None), [(None, 0, 0)], "for a job without a key")
    equal(await about("a"), [(None, 0, 0), (EACH_KEY, 0, 0)], "for a key")
    equal(await h.backend.limits(about=("nothing", "a")), [], "for a type without limits")
    await h.enqueue(2, key="a")
    jobs = await h.claim(5)
    equal(await about("a"), [(None, 2, 0), (EACH_KEY, 2, None)], "with two running")
    equal(await about("b"), [(None, 2, 0), (EACH_KEY, 0, 0)], "for a key of which none runs")
    await h.enqueue(1)
    await h.claim(5)
    equal(await about(None), [(None, 3, 100)], "when the burst is spent")
    await h.advance(40)
    equal(await about(None), [(None, 3, 60)], "a little later")
    await h.settle(jobs[0])
    await h.advance(60)
    equal(await about("a"), [(None, 2, 0), (EACH_KEY, 1, 0)], "when both are open again")
    (state,) = await h.backend.limits(about=("else", None))
    equal((state.type, state.concurrency, state.running, state.opens_in_ms), ("else", 1, 0, 0), "for another type")


@case(needs=_CLOCK)
async def a_limit_opens_when_it_said_it_would(h: Harness) -> None:
    for rate, period_ms in ((7, 1_000), (3, 60_000), (999, 1_000)):
        name = f"t{rate}"
        await _limit(h, type=name, rate=rate, period_ms=period_ms, burst=1)
        await h.enqueue(3, type=name, queue=name)
        for _ in range(3):
            equal(len(await h.claim(5, name)), 1, "starts when it was to open")
            (state,) = await h.backend.limits(about=(name, None))
            opens_in_ms = state.opens_in_ms or 0
            true(opens_in_ms > 0, f"it says it opens in {state.opens_in_ms} ms")
            await h.advance(opens_in_ms - 1)
            equal(await h.claim(5, name), [], "claimed a ms before it was to open")
            await h.advance(1)


@case(needs=_NEEDS)
async def to_ask_about_a_limit_changes_nothing(h: Harness) -> None:
    await _limit(h, concurrency=2)
    before = await h.backend.limits()
    for _ in range(5):
        await h.backend.limits(about=("work", "k"))
    equal(await h.backend.limits(), before, "limits")
    await h.enqueue(3)
    equal(len(await h.claim(5)), 2, "starts")


# ---- when a limit opens ----------------------------------------------------------------------------------


@case(needs=_CLOCK)
async def a_tick_says_when_a_rate_opens_and_rings_then(h: Harness) -> None:
    await _limit(h, rate=1, burst=1)
    await h.add(delay_ms=10**9, queue="later")
    await h.enqueue(3)
    equal(len(await h.claim(5)), 1, "starts")
    equal(await h.claim(5), [], "claimed while it is closed")
    due_ms = (await h.tick()).next_due_ms
    true(due_ms is not None and 0 < due_ms <= 1_000, f"the next is due in {due_ms} ms; the rate opens in 1,000")
    await h.advance(1_000)
    bell = h.backend.watch([queue_topic("default")])
    await h.tick()
    with bell:
        true(await bell.wait(h.ring_ms), "no ring: a rate opened")
    equal(len(await h.claim(5)), 1, "starts after the ring")
    await h.backend.delete([job.id for job in await h.all(queue="default", states=(State.PENDING,))])
    await h.pass_time(1_000)
    due_ms = (await h.tick()).next_due_ms
    true(due_ms is not None and due_ms > 10_000, f"the next is due in {due_ms} ms; nothing is held back any more")


@case(needs=_CLOCK)
async def a_tick_rings_for_a_rate_that_nobody_asked_for_again(h: Harness) -> None:
    """The claim took all the rate gives and was full: its worker waits for the bell, not for a second try."""
    await _limit(h, key=EACH_KEY, rate=1, burst=2)
    await h.enqueue(5, key="k")
    equal(len(await h.claim(2)), 2, "starts")
    due_ms = (await h.tick()).next_due_ms
    true(due_ms is not None and 0 < due_ms <= 1_000, f"the next is due in {due_ms} ms; the rate opens in 1,000")
    await h.advance(1_000)
    bell = h.backend.watch([queue_topic("default")])
    await h.tick()
    with bell:
        true(await bell.wait(h.ring_ms), "no ring: a rate opened")


@case(needs=_NEEDS)
async def what_frees_a_slot_rings_every_queue_that_waits_for_it(h: Harness) -> None:
    await _limit(h, concurrency=1)
    await h.enqueue(1, queue="a", max_attempts=9)
    for how in ("settle", "retry", "tick"):
        (job,) = await h.claim(1, "a", worker="dying")
        await h.enqueue(1, queue="b")
        equal(await h.claim(1, "b"), [], "claimed while the slot is taken")
        bell = h.backend.watch([queue_topic("b")])
        if how == "settle":
            await h.settle(job, State.SUCCEEDED)
        elif how == "retry":
            await h.settle(job, State.SCHEDULED, delay_ms=10**9)
        else:
            await h.advance(2 * h.lease_ms)
            await h.backend.tick(BATCH_MAX, FOREVER)
        with bell:
            true(await bell.wait(h.ring_ms), f"no ring: {how} freed the slot")
        await h.backend.delete([job.id for job in await h.all()])
        await h.enqueue(1, queue="a", max_attempts=9)


@case(needs=_NEEDS)
async def a_limit_that_is_set_over_many_jobs_holds_at_once(h: Harness) -> None:
    """More than a claim can sort out; those that it has not looked at are held too, and another type comes through."""
    await h.enqueue(4_000)
    await h.backend.limits([Limit(type="work", concurrency=2)])
    other = await h.add(type="other")
    started: list[str] = []
    for _ in range(50):
        started += [job.id for job in await h.claim(20)]
        if other in started:
            break
    true(other in started, "a job of another type started within 50 claims")
    equal(len(started), 3, "starts: two of the limited type, and the other")


# ---- what rates held back, for whoever measures ----------------------------------------------------------


async def _starts(h: Harness) -> int:
    return len(await h.claim(BATCH_MAX))


@case(needs=_CLOCK)
async def a_rate_that_is_spent_while_jobs_wait_counts_once_until_it_opens(h: Harness) -> None:
    counts = h.backend.rate_limited
    if counts is NOT_COUNTED:
        return  # whoever this passes its claims on to counts them
    await _limit(h, rate=2, period_ms=3_600_000, burst=2)
    await _limit(h, type="few", rate=2, period_ms=3_600_000, burst=2)
    await _limit(h, type="one", concurrency=1)
    await h.enqueue(5)
    await h.enqueue(2, type="few")
    await h.enqueue(3, type="one")
    await h.enqueue(3, type="free")
    equal(await _starts(h), 2 + 2 + 1 + 3, "starts")
    for _ in range(3):
        equal(await _starts(h), 0, "starts of a spent rate")
    equal(dict(counts), {"work": 1}, "what rates held back: not the end of jobs, not concurrency, not no limit")
    await h.advance(1_800_000)
    equal(await _starts(h), 1, "starts when it opens")
    for _ in range(3):
        equal(await _starts(h), 0, "starts of a spent rate")
    equal(dict(counts), {"work": 2}, "what rates held back")
    await h.advance(3_600_000)
    equal(await _starts(h), 2, "starts of the last two")
    equal(await _starts(h), 0, "starts of nothing")
    equal(dict(counts), {"work": 2}, "what rates held back: nothing waits any more")


@case(needs=_CLOCK)
async def a_rate_of_a_key_that_is_spent_counts_for_its_type(h: Harness) -> None:
    counts = h.backend.rate_limited
    if counts is NOT_COUNTED:
        return
    await _limit(h, key=EACH_KEY, rate=1, period_ms=3_600_000)
    for key in ("a", "b"):
        await h.enqueue(3, key=key)
    await h.enqueue(1, key="c")
    equal(await _starts(h), 3, "starts, one of each key")
    for _ in range(3):
        equal(await _starts(h), 0, "starts of spent rates")
    equal(dict(counts), {"work": 2}, "what rates held back: a and b; c has no more jobs")
