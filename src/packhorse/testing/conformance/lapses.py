"""Lapses by name: whoever's call takes jobs from a lost worker learns which they were and where they went, once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ...backends.base import BATCH_MAX, Keep, Lapse
from ...job import Claimed, State, Unique
from .case import case, equal
from .harness import FOREVER, Harness


def _by_id(lapses: Iterable[Lapse]) -> list[Lapse]:
    return sorted(lapses, key=lambda lapse: lapse.id)


def _ids(lapses: Iterable[Lapse]) -> list[str]:
    return sorted(lapse.id for lapse in lapses)


async def _four_ways(h: Harness) -> list[Lapse]:
    """Start jobs that lapse each in its way; answers what is to be said of them."""
    again = await h.start(type="again", queue="a", max_attempts=3)
    poison = await h.start(type="poison", queue="b", max_attempts=1)
    asked = await h.start(type="asked", queue="c", max_attempts=5)
    both = await h.start(type="both", queue="d", max_attempts=1)
    await h.backend.cancel([asked.id, both.id])
    return _by_id(
        [
            _lapse(again, 3, State.PENDING),
            _lapse(poison, 1, State.FAILED),
            _lapse(asked, 5, State.CANCELLED),
            _lapse(both, 1, State.CANCELLED),
        ]
    )


def _lapse(job: Claimed, max_attempts: int, state: State) -> Lapse:
    return Lapse(id=job.id, queue=job.queue, type=job.type, attempt=job.attempt, max_attempts=max_attempts, state=state)


@case()
async def a_tick_names_what_lapses_and_where_it_went(h: Harness) -> None:
    expected = await _four_ways(h)
    equal((await h.tick()).lapses, (), "named before the lease ran out")
    ticked = await h.pass_time(h.lease_ms * 2)
    equal(_by_id(ticked.lapses), expected, "named")
    equal(ticked.lapsed, 4, "lapsed")
    for lapse in expected:
        equal(await h.state(lapse.id), lapse.state, f"state of {lapse.type}")
    equal((await h.tick()).lapses, (), "named again")


@case()
async def retire_names_what_lapses_and_where_it_went(h: Harness) -> None:
    expected = await _four_ways(h)
    kept = await h.start(worker="w2")
    equal(_by_id(await h.backend.retire("w1", "it died")), expected, "named")
    equal((await h.tick()).lapses, (), "named by a tick after it")
    equal(await h.state(kept.id), State.RUNNING, "state of another worker's job")


@case()
async def the_attempt_that_lapsed_is_named_each_time(h: Harness) -> None:
    job_id = await h.add(max_attempts=2)
    for attempt, state in ((1, State.PENDING), (2, State.FAILED)):
        await h.claim()
        (lapse,) = await h.backend.retire("w1", "it died")
        equal((lapse.id, lapse.attempt, lapse.state), (job_id, attempt, state), "id, attempt, state")


@case()
async def what_ended_otherwise_is_not_named(h: Harness) -> None:
    """Jobs that were settled, and one that was moved on by a tick: nobody lost them."""
    await h.settle(await h.start())
    await h.settle(await h.start(queue="b", max_attempts=1), State.FAILED)
    await h.settle(await h.start(queue="c"), State.SCHEDULED, delay_ms=h.step_ms)
    ticked = await h.pass_time(h.lease_ms * 2)
    equal((ticked.promoted, ticked.lapsed, ticked.lapses), (1, 0, ()), "promoted, lapsed, named")
    equal(await h.backend.retire("w1", "it stopped"), [], "named by retire")


@case()
async def a_tick_names_as_many_as_it_lapses(h: Harness) -> None:
    ids = await h.enqueue(7, max_attempts=1)
    await h.claim(4)
    await h.claim(3, worker="w2")
    await h.advance(h.lease_ms * 2)
    ticks = [await h.tick(limit=3) for _ in range(4)]
    equal([len(ticked.lapses) for ticked in ticks], [3, 3, 1, 0], "named")
    equal([ticked.lapsed for ticked in ticks], [3, 3, 1, 0], "lapsed")
    equal(_ids(lapse for ticked in ticks for lapse in ticked.lapses), sorted(ids), "ids")


@case()
async def what_a_tick_lapses_and_drops_at_once_is_named(h: Harness) -> None:
    job = await h.start(max_attempts=1)
    ticked = await _tick_after(h, h.lease_ms * 2, Keep(failed_ms=0))
    equal([(lapse.id, lapse.state) for lapse in ticked], [(job.id, State.FAILED)], "named")


async def _tick_after(h: Harness, ms: int, keep: Keep) -> tuple[Lapse, ...]:
    await h.advance(ms)
    return (await h.tick(keep=keep)).lapses


@case(needs=("dependencies",))
async def children_that_end_with_a_parent_that_lapsed_are_not_named(h: Harness) -> None:
    parent = await h.start(max_attempts=1)
    child = await h.add(after=(parent.id,))
    ticked = await h.pass_time(h.lease_ms * 2)
    equal(_ids(ticked.lapses), [parent.id], "named")
    equal(await h.state(child), State.CANCELLED, "state of the child")


@case()
async def a_lapse_with_a_unique_key_is_named(h: Harness) -> None:
    job = await h.start(max_attempts=1, unique=Unique(key="only-one"))
    equal(_ids(await h.backend.retire("w1", "it died")), [job.id], "named")


@case("B11")
async def no_lapse_is_named_twice_by_several_who_tick_and_retire_at_once(h: Harness) -> None:
    connections = await h.several(4)
    for turn in range(3):
        ids = await h.enqueue(60, max_attempts=1)
        for worker in ("w1", "w2", "w3"):
            await h.claim(20, worker=worker, backend=connections[turn])
        await h.advance(h.lease_ms * 2)
        answers = await asyncio.gather(
            *[backend.tick(BATCH_MAX, FOREVER) for backend in connections],
            *[backend.tick(7, FOREVER) for backend in connections],
        )
        retired = await asyncio.gather(*[backend.retire("w2", "it died") for backend in connections[:2]])
        rest = await h.tick()
        named = [lapse for ticked in (*answers, rest) for lapse in ticked.lapses] + [
            lapse for lapses in retired for lapse in lapses
        ]
        equal(_ids(named), sorted(ids), f"named in turn {turn}")
        equal({lapse.state for lapse in named}, {State.FAILED}, "states")


@case("B11")
async def a_retirement_beside_ticks_names_each_lapse_once(h: Harness) -> None:
    connections = await h.several(3)
    for turn in range(3):
        ids = await h.enqueue(40, max_attempts=1)
        await h.claim(40, backend=connections[turn])
        await h.advance(h.lease_ms * 2)
        first, ticked, second = await asyncio.gather(
            connections[0].retire("w1", "it died"),
            connections[1].tick(BATCH_MAX, FOREVER),
            connections[2].retire("w1", "it died"),
        )
        rest = await h.tick()
        equal(_ids([*first, *ticked.lapses, *second, *rest.lapses]), sorted(ids), f"named in turn {turn}")
