"""Schedules: kept, handed out by the store's clock, and fired once however many workers plan them."""

from __future__ import annotations

import asyncio
from typing import Any

from ...backends.base import (
    BATCH_MAX,
    DUE_TOPIC,
    SCHEDULES_A_TICK,
    Firing,
    QueueChange,
    Schedule,
    ScheduleChange,
    Ticked,
    Verdict,
    queue_topic,
)
from ...errors import InvalidOption, NotFound
from ...job import JobSpec, State, Unique
from .case import case, equal, raises, true
from .harness import Harness

_NEEDS = ("schedules",)


async def _define(h: Harness, name: str = "nightly", **fields: Any) -> Schedule:
    """Define a schedule, every step unless told otherwise; answers it as the store has it."""
    fields = {"spec": h.spec(), **({} if "cron" in fields else {"every_ms": h.step_ms}), **fields}
    await h.backend.schedules([ScheduleChange(name=name, define=Schedule(name=name, **fields))])
    return await _schedule(h, name)


async def _schedule(h: Harness, name: str = "nightly") -> Schedule:
    return next(each for each in await h.backend.schedules() if each.name == name)


def _firing(h: Harness, schedule: Schedule, *specs: JobSpec, **fields: Any) -> Firing:
    """Plan the next slot of a schedule, one step after what is done."""
    planned = {
        "name": schedule.name,
        "revision": schedule.revision,
        "done_ms": schedule.done_ms,
        "new_done_ms": schedule.done_ms + h.step_ms,
        "next_ms": schedule.done_ms + 2 * h.step_ms,
        "specs": specs,
    }
    return Firing(**{**planned, **fields})


async def _handed_out(h: Harness) -> list[str]:
    return [each.name for each in (await h.tick()).schedules]


# ---- define ----------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_schedule_is_kept_as_it_was_defined(h: Harness) -> None:
    spec = h.spec(
        type="report",
        payload=b'{"kind":"daily"}',
        queue="reports",
        priority=2,
        max_attempts=7,
        timeout_ms=45_000,
        key="tenant",
        tags=("a", "b"),
        meta={"by": "müller"},
    )
    wanted = Schedule(
        name="daily",
        spec=spec,
        cron="30 9 * * 1-5",
        tz="Europe/Paris",
        missed="all",
        overlap="skip",
        jitter_ms=5_000,
        source="app",
    )
    before_ms = (await h.tick()).now_ms
    await h.backend.schedules([ScheduleChange(name="daily", define=wanted)])
    (found,) = await (await h.open()).schedules()
    for name in ("name", "cron", "every_ms", "tz", "missed", "overlap", "jitter_ms", "source"):
        equal(getattr(found, name), getattr(wanted, name), name)
    for name in (
        "type",
        "payload",
        "queue",
        "priority",
        "max_attempts",
        "timeout_ms",
        "key",
        "tags",
        "meta",
        "delay_ms",
    ):
        equal(getattr(found.spec, name), getattr(spec, name), f"{name} of the spec")
    equal((found.paused, found.next_ms), (False, None), "paused, next slot")
    true(found.revision > 0, "it has no revision")
    true(before_ms <= found.done_ms <= (await h.tick()).now_ms, "slots before it was defined are not dealt with")


@case(needs=_NEEDS)
async def schedules_are_answered_by_name(h: Harness) -> None:
    for name in ("b", "c", "a"):
        await _define(h, name)
    equal([each.name for each in await h.backend.schedules()], ["a", "b", "c"], "names")
    equal(await h.all(), [], "jobs")


@case(needs=_NEEDS)
async def the_same_definition_again_changes_nothing(h: Harness) -> None:
    """Every worker defines its schedules when it starts; the id of the template is not part of them."""
    spec = h.spec(payload=b"[1]")
    await _define(h, spec=spec)
    (schedule,) = (await h.tick()).schedules
    await h.backend.fire([_firing(h, schedule)])
    before = await _schedule(h)
    await h.advance(h.step_ms)
    await _define(h, spec=h.spec(payload=b"[1]"))
    equal(await _schedule(h), before, "schedule")


@case(needs=_NEEDS)
async def another_definition_is_a_new_revision(h: Harness) -> None:
    """Other times begin with now; another payload goes on where it stands. Both are planned anew."""
    await _define(h)
    await h.backend.fire([_firing(h, await _schedule(h))])
    old = await _schedule(h)
    new = await _define(h, spec=h.spec(payload=b"[2]"))
    true(new.revision > old.revision, "another payload is no new revision")
    equal((new.done_ms, new.next_ms, new.spec.payload), (old.done_ms, None, b"[2]"), "done, next, payload")
    await h.advance(5 * h.step_ms)
    now_ms = (await h.tick()).now_ms
    for fields in ({"every_ms": 7 * h.step_ms}, {"cron": "* * * * *"}, {"cron": "* * * * *", "tz": "Asia/Tokyo"}):
        new = await _define(h, spec=h.spec(payload=b"[2]"), **fields)
        true(new.done_ms >= now_ms, f"slots before the change to {fields} are not dealt with")
        equal(new.next_ms, None, "next slot")
    equal(await h.backend.fire([_firing(h, old)]), [Verdict.STALE], "verdict of a slot that was planned before")


@case(needs=_NEEDS)
async def changes_of_schedules_are_all_or_none(h: Harness) -> None:
    await _define(h, "there")
    before = await h.backend.schedules()
    changes = [
        ScheduleChange(name="new", define=Schedule(name="new", spec=h.spec(), every_ms=h.step_ms)),
        ScheduleChange(name="there", removed=True),
        ScheduleChange(name="nowhere", paused=True),
    ]
    await raises(NotFound, h.backend.schedules(changes), "pause of a schedule that does not exist")
    equal(await h.backend.schedules(), before, "schedules after the refusal")
    many = [ScheduleChange(name=f"s{number}", removed=True) for number in range(BATCH_MAX + 1)]
    await raises(InvalidOption, h.backend.schedules(many), "one change too many")


@case(needs=_NEEDS)
async def a_schedule_is_removed_with_nothing_left(h: Harness) -> None:
    old = await _define(h)
    job = await h.add(schedule="nightly")
    for _ in range(2):  # repeating it is harmless
        equal(await h.backend.schedules([ScheduleChange(name="nightly", removed=True)]), [], "schedules")
    equal(await h.state(job), State.PENDING, "a job of it that was there")
    equal(await h.backend.fire([_firing(h, old, h.spec())]), [Verdict.STALE], "verdict of a slot planned before")
    equal(await _handed_out(h), [], "schedules handed out")
    equal((await h.tick()).next_due_ms, None, "next due")
    await h.advance(h.step_ms)
    equal((await _define(h)).done_ms > old.done_ms, True, "defined anew, it begins with now")
    equal(await h.backend.fire([_firing(h, old, h.spec())]), [Verdict.STALE], "verdict of a slot of the old one")


# ---- pause -----------------------------------------------------------------------------------------------


async def _pause(h: Harness, paused: bool, name: str = "nightly") -> Schedule:
    await h.backend.schedules([ScheduleChange(name=name, paused=paused)])
    return await _schedule(h, name)


@case(needs=_NEEDS)
async def a_paused_schedule_fires_nothing(h: Harness) -> None:
    planned = await _define(h)
    equal((await _pause(h, True)).paused, True, "paused")
    equal(await h.backend.fire([_firing(h, planned, h.spec())]), [Verdict.STALE], "verdict of a slot planned before")
    await h.advance(5 * h.step_ms)
    equal(await _handed_out(h), [], "schedules handed out")
    equal((await h.tick()).next_due_ms, None, "next due")
    equal(await h.all(), [], "jobs")
    new = await _define(h, spec=h.spec(payload=b"[2]"))
    equal((new.paused, await _handed_out(h)), (True, []), "paused, handed out after another definition")


@case(needs=_NEEDS)
async def slots_of_a_pause_are_nobodys_business(h: Harness) -> None:
    planned = await _define(h)
    await h.backend.fire([_firing(h, planned)])
    planned = await _schedule(h)
    await _pause(h, True)
    await h.advance(10 * h.step_ms)
    now_ms = (await h.tick()).now_ms
    resumed = await _pause(h, False)
    true(resumed.done_ms >= now_ms, "slots of the pause are not dealt with")
    equal((resumed.paused, resumed.next_ms), (False, None), "paused, next slot")
    equal(await h.backend.fire([_firing(h, planned, h.spec())]), [Verdict.STALE], "verdict of a slot planned before")
    equal(await _handed_out(h), ["nightly"], "handed out to be planned anew")


@case(needs=_NEEDS)
async def pausing_twice_and_resuming_what_runs_changes_nothing(h: Harness) -> None:
    await _define(h)
    await h.backend.fire([_firing(h, await _schedule(h))])
    before = await _schedule(h)
    await h.advance(h.step_ms)
    equal(await _pause(h, False), before, "schedule after resuming what was not paused")
    paused = await _pause(h, True)
    equal(await _pause(h, True), paused, "schedule after the second pause")
    for paused_ in (True, False):
        change = ScheduleChange(name="nowhere", paused=paused_)
        await raises(NotFound, h.backend.schedules([change]), f"paused={paused_} where there is none")


# ---- handed out by ticks ---------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_tick_hands_out_what_wants_planning(h: Harness) -> None:
    """A schedule that is new, or whose next slot is due; it says what time the store has."""
    await _define(h)
    ticked: Ticked = await h.tick()
    equal([each.name for each in ticked.schedules], ["nightly"], "handed out at first")
    equal(ticked.schedules[0], await _schedule(h), "what was handed out")
    if h.clock is not None:
        equal(ticked.now_ms, h.clock.now_ms(), "now by the clock of the store")
    next_ms = ticked.now_ms + 4 * h.step_ms
    await h.backend.fire([_firing(h, ticked.schedules[0], new_done_ms=ticked.now_ms, next_ms=next_ms)])
    ticked = await h.tick()
    equal(ticked.schedules, (), "handed out when planned")
    due_ms = ticked.next_due_ms
    true(due_ms is not None and 3 * h.step_ms < due_ms <= 4 * h.step_ms, f"the next is due in {due_ms} ms, not 4 steps")
    await h.advance(2 * h.step_ms)
    equal(await _handed_out(h), [], "handed out before its slot")
    await h.advance(2 * h.step_ms + 1)
    for _ in range(2):
        equal(await _handed_out(h), ["nightly"], "handed out until somebody fires it")


@case(needs=_NEEDS)
async def a_tick_hands_out_a_bounded_number(h: Harness) -> None:
    count = SCHEDULES_A_TICK + 20
    names = [f"s{number:03}" for number in range(count)]
    spec = h.spec()
    changes = [ScheduleChange(name=name, define=Schedule(name=name, spec=spec, every_ms=10**7)) for name in names]
    await h.backend.schedules(changes)
    seen: list[str] = []
    for _ in range(2):
        ticked = await h.tick()
        true(len(ticked.schedules) <= SCHEDULES_A_TICK, f"{len(ticked.schedules)} schedules in one tick")
        seen += [each.name for each in ticked.schedules]
        later_ms = ticked.now_ms + 10**7
        firings = [_firing(h, each, new_done_ms=ticked.now_ms, next_ms=later_ms) for each in ticked.schedules]
        await h.backend.fire(firings)
    equal(sorted(seen), names, "handed out by two ticks, each once it was planned")
    equal(await _handed_out(h), [], "handed out when all are planned")


@case(needs=_NEEDS)
async def a_changed_schedule_rings_the_ticker(h: Harness) -> None:
    bell = h.backend.watch([DUE_TOPIC])
    await _define(h)
    with bell:
        true(await bell.wait(h.ring_ms), "no ring: a schedule was defined")
    await _pause(h, True)
    bell = h.backend.watch([DUE_TOPIC])
    await _pause(h, False)
    with bell:
        true(await bell.wait(h.ring_ms), "no ring: a schedule was resumed")


# ---- fire ------------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_firing_stores_its_jobs_and_moves_the_schedule_on(h: Harness) -> None:
    schedule = await _define(h)
    now = h.spec(queue="next", schedule="nightly", slot_at_ms=schedule.done_ms + 5)
    later = h.spec(queue="next", delay_ms=9_000)
    bells = [h.backend.watch([topic]) for topic in (queue_topic("next"), DUE_TOPIC)]
    equal(await h.backend.fire([_firing(h, schedule, now, later)]), [Verdict.APPLIED], "verdict")
    for bell in bells:
        with bell:
            true(await bell.wait(h.ring_ms), "no ring: a slot was fired")
    record = await h.record(now.id)
    equal((record.state, record.schedule, record.slot_at_ms), (State.PENDING, "nightly", now.slot_at_ms), "the job")
    equal(await h.state(later.id), State.SCHEDULED, "state of the delayed one")
    moved = await _schedule(h)
    stands = (moved.done_ms, moved.next_ms, moved.revision)
    equal(
        stands, (schedule.done_ms + h.step_ms, schedule.done_ms + 2 * h.step_ms, schedule.revision), "where it stands"
    )
    equal(await h.backend.fire([]), [], "verdicts of nothing")


@case("B28", needs=_NEEDS)
async def a_slot_is_fired_once(h: Harness) -> None:
    schedule = await _define(h)
    first, second = h.spec(), h.spec()
    equal(await h.backend.fire([_firing(h, schedule, first)]), [Verdict.APPLIED], "verdict")
    before = await _schedule(h)
    for firing in (
        _firing(h, schedule, second),
        _firing(h, before, second, revision=before.revision + 1),
        _firing(h, before, second, revision=before.revision - 1),
        _firing(h, before, second, done_ms=before.done_ms + 1),
        _firing(h, before, second, name="nowhere"),
    ):
        equal(await h.backend.fire([firing]), [Verdict.STALE], f"verdict of {firing}")
        equal((await _schedule(h), await h.state(second.id)), (before, None), "schedule, job of a stale firing")
    equal(await h.backend.fire([_firing(h, before, second)]), [Verdict.APPLIED], "verdict of the next slot")


@case(needs=_NEEDS)
async def each_firing_of_a_call_is_judged_by_itself(h: Harness) -> None:
    one, two = await _define(h, "one"), await _define(h, "two")
    specs = h.specs(4)
    first = _firing(h, one, specs[0])
    chained = _firing(h, one, specs[2], done_ms=first.new_done_ms, new_done_ms=first.new_done_ms + 1)
    firings = [first, _firing(h, one, specs[1]), chained, _firing(h, two, specs[3])]
    applied, stale = Verdict.APPLIED, Verdict.STALE
    equal(await h.backend.fire(firings), [applied, stale, applied, applied], "verdicts")
    stored = [await h.state(spec.id) is not None for spec in specs]
    equal(stored, [True, False, True, True], "which jobs are stored")
    many = [_firing(h, two)] * (BATCH_MAX + 1)
    await raises(InvalidOption, h.backend.fire(many), "one firing too many")


@case("B28", needs=_NEEDS)
async def of_many_that_fire_a_slot_one_does(h: Harness) -> None:
    connections = await h.several(4)
    await _define(h)
    for _ in range(8):
        schedule = await _schedule(h)
        specs = h.specs(4)
        firings = [_firing(h, schedule, spec) for spec in specs]
        calls = [backend.fire([firing]) for backend, firing in zip(connections, firings, strict=True)]
        verdicts = [answer[0] for answer in await asyncio.gather(*calls)]
        equal(sorted(verdicts), [Verdict.APPLIED, *[Verdict.STALE] * 3], "verdicts")
        stored = [await h.state(spec.id) is not None for spec in specs]
        equal(stored, [verdict is Verdict.APPLIED for verdict in verdicts], "which jobs are stored")


@case("B28", needs=_NEEDS)
async def a_job_of_a_slot_that_is_there_already_is_left_alone(h: Harness) -> None:
    """Each slot has one id, whoever names it: a slot fired again after a restore makes no second job."""
    schedule = await _define(h)
    there = h.spec(payload=b"[1]")
    await h.backend.enqueue([there])
    before = await h.record(there.id)
    fresh = h.spec()
    firing = _firing(h, schedule, h.spec(id=there.id, payload=b"[2]"), fresh, h.spec(id=fresh.id))
    equal(await h.backend.fire([firing]), [Verdict.APPLIED], "verdict")
    equal(await h.record(there.id), before, "the job that was there")
    equal(len(await h.claim(5)), 2, "jobs to claim: the one that was there and the new one")


@case(needs=("schedules", "unique"))
async def a_job_of_a_slot_whose_key_is_held_is_left_out(h: Harness) -> None:
    """`overlap = skip`: the schedule goes on, the job does not come."""
    schedule = await _define(h)
    for on_conflict in ("existing", "refuse"):
        key = Unique(key=on_conflict, on_conflict=on_conflict)
        holder = await h.add(unique=key)
        left_out, other = h.spec(unique=key), h.spec()
        equal(await h.backend.fire([_firing(h, schedule, left_out, other)]), [Verdict.APPLIED], "verdict")
        equal((await h.state(left_out.id), await h.state(other.id)), (None, State.PENDING), "left out, the other")
        equal((await h.try_add(unique=Unique(key=on_conflict))).id, holder, "holder")
        schedule = await _schedule(h)


@case(needs=("schedules", "capacity"))
async def a_slot_needs_no_room(h: Harness) -> None:
    await h.backend.queues([QueueChange(queue="default", capacity=1)])
    await h.add()
    schedule = await _define(h)
    equal(await h.backend.fire([_firing(h, schedule, *h.specs(2))]), [Verdict.APPLIED], "verdict")
    equal(len(await h.claim(5)), 3, "jobs to claim")
