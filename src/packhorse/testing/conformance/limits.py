"""Rate limits and what all limits share: how they are set, whom they hold, that they hold nobody else."""

from __future__ import annotations

from typing import Any

from ...backends.base import BATCH_MAX, EACH_KEY, Limit, QueueChange
from ...chance import Chance
from ...errors import InvalidOption, Refused
from ...job import KEY_CHARS_MAX
from .case import case, equal, raises, true
from .harness import Harness

_NEEDS = ("limits",)
_CLOCK = ("limits", "manual_clock")


async def _limit(h: Harness, **fields: Any) -> list[Limit]:
    """Set a limit, of type `work` unless told otherwise; answers all there are."""
    return await h.backend.limits([Limit(**{"type": "work", **fields})])


async def _starts(h: Harness, limit: int = BATCH_MAX, *queues: str) -> int:
    """Claim; answers how many jobs started."""
    return len(await h.claim(limit, *queues))


# ---- the arithmetic of a rate ----------------------------------------------------------------------------


@case(needs=_CLOCK)
async def a_rate_lets_its_burst_start_and_then_one_each_interval(h: Harness) -> None:
    await _limit(h, rate=10, burst=3)
    await h.enqueue(50)
    equal(await _starts(h), 3, "starts at first: the burst")
    for passed_ms, wanted in ((0, 0), (99, 0), (1, 1), (99, 0), (1, 1), (200, 2), (150, 1), (50, 1), (300, 3)):
        await h.advance(passed_ms)
        equal(await _starts(h), wanted, f"starts after {passed_ms} more ms")
    await h.advance(60_000)
    equal(await _starts(h), 3, "starts after a long pause: the burst, no more")


@case(needs=_CLOCK)
async def the_burst_is_what_100_ms_give_and_at_least_1(h: Harness) -> None:
    for rate, period_ms, wanted in (
        (5, 1_000, 1),
        (100, 1_000, 10),
        (25, 1_000, 2),
        (6_000, 60_000, 10),
        (1, 10**9, 1),
    ):
        name = f"t{rate}-{period_ms}"
        await _limit(h, type=name, rate=rate, period_ms=period_ms)
        await h.enqueue(30, type=name, queue=name)
        equal(await _starts(h, 30, name), wanted, f"starts at once of {rate} in {period_ms} ms")


@case(needs=_CLOCK)
async def no_second_has_more_starts_than_rate_and_burst(h: Harness) -> None:
    """Claims at any time, of any size: what starts within any second is bounded, and nothing of the rate is lost."""
    chance = Chance(20261122)
    for rate, burst in ((7, 1), (30, 9), (100, 40)):
        name = f"t{rate}"
        await _limit(h, type=name, rate=rate, burst=burst)
        await h.enqueue(rate * 20 + burst, type=name, queue=name)
        started_ms: list[int] = []
        now_ms = 0
        for _ in range(120):
            passed_ms = chance.choice((0, 1, 9, 35, 120, 333, 600))
            now_ms += passed_ms
            await h.advance(passed_ms)
            started_ms += [now_ms] * await _starts(h, chance.choice((1, 3, 50)), name)
        for number, from_ms in enumerate(started_ms):
            within = sum(at_ms < from_ms + 1_000 for at_ms in started_ms[number:])
            true(within <= rate + burst, f"{within} starts within a second of {rate}/s with a burst of {burst}")


@case(needs=_CLOCK)
async def steady_demand_gets_the_whole_rate(h: Harness) -> None:
    """A rate that no ms divides is rounded nowhere: over a minute nothing is lost or won."""
    await _limit(h, rate=7, burst=2)
    await h.enqueue(500)
    count = 0
    for _ in range(600):
        count += await _starts(h)
        await h.advance(100)
    true(7 * 60 - 2 <= count <= 7 * 60 + 2, f"{count} starts in a minute of 7/s, asked for every 100 ms")


@case(needs=_CLOCK)
async def a_slow_rate_is_kept(h: Harness) -> None:
    await _limit(h, rate=2, period_ms=3_600_000)
    await h.enqueue(5)
    equal(await _starts(h), 1, "starts at first")
    await h.advance(1_799_999)
    equal(await _starts(h), 0, "starts within half an hour")
    await h.advance(1)
    equal(await _starts(h), 1, "starts after half an hour")


@case(needs=_CLOCK)
async def what_starts_nothing_costs_no_token(h: Harness) -> None:
    await _limit(h, rate=1, period_ms=100_000, burst=2)
    for _ in range(5):
        equal(await _starts(h), 0, "starts from an empty queue")
    await h.enqueue(5)
    await h.enqueue(5, queue="stopped")
    await h.backend.queues([QueueChange(queue="stopped", paused=True)])
    equal(await _starts(h, 5, "stopped"), 0, "starts from a paused queue")
    equal(await _starts(h, 0), 0, "starts of a claim of 0")
    equal(await _starts(h, 1), 1, "starts of a claim of 1")
    equal(await _starts(h, 5), 1, "starts of the rest of the burst")


@case("B36", needs=_CLOCK)
async def a_clock_set_back_does_not_close_a_rate_for_an_hour(h: Harness) -> None:
    await _limit(h, rate=10, burst=5)
    await h.enqueue(50)
    equal(await _starts(h), 5, "starts before the jump")
    h.jump(-3_600_000)
    await h.enqueue(1)  # the queue goes on with what is new as well
    count = 0
    for _ in range(10):
        await h.advance(100)
        count += await _starts(h)
    true(5 <= count <= 15, f"{count} starts in the second after the clock was set back an hour")
    (state,) = await h.backend.limits(about=("work", None))
    true((state.opens_in_ms or 0) <= 500, f"it says it opens in {state.opens_in_ms} ms")


# ---- whom a limit holds ----------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_limit_of_a_key_holds_that_key_only(h: Harness) -> None:
    await _limit(h, key="a", concurrency=1)
    for key in ("a", "b", None):
        await h.enqueue(3, key=key)
    await h.enqueue(3, key="a", type="other")
    started = await h.claim(BATCH_MAX)
    counted = [sum((job.type, job.key) == which for job in started) for which in (("work", "a"), ("other", "a"))]
    equal((counted, len(started)), ([1, 3], 10), "starts of the key, of it with another type; of all")


@case(needs=_NEEDS)
async def each_key_has_its_limit_for_itself(h: Harness) -> None:
    await _limit(h, key=EACH_KEY, concurrency=2)
    for key in ("a", "b", "c", None):
        await h.enqueue(4, key=key)
    started = [job.key for job in await h.claim(BATCH_MAX)]
    equal([started.count(key) for key in ("a", "b", "c", None)], [2, 2, 2, 4], "starts of a, b, c and of no key")


@case(needs=_CLOCK)
async def each_key_has_its_rate_for_itself(h: Harness) -> None:
    await _limit(h, key=EACH_KEY, rate=10, burst=2)
    for key in ("a", "b"):
        await h.enqueue(10, key=key)
    for wanted, passed_ms in (([2, 2], 100), ([1, 1], 100), ([1, 1], 5_000), ([2, 2], 0), ([0, 0], 0)):
        started = [job.key for job in await h.claim(BATCH_MAX)]
        equal([started.count(key) for key in ("a", "b")], wanted, "starts of a and of b")
        await h.advance(passed_ms)


@case(needs=_NEEDS)
async def the_limit_of_the_very_key_goes_before_that_of_each(h: Harness) -> None:
    for own in (1, 4):
        name = f"t{own}"
        changes = [Limit(type=name, key=EACH_KEY, concurrency=2), Limit(type=name, key="a", concurrency=own)]
        await h.backend.limits(changes)
        for key in ("a", "b", "c"):
            await h.enqueue(6, type=name, queue=name, key=key)
        started = [job.key for job in await h.claim(BATCH_MAX, name)]
        counts = [started.count(key) for key in ("a", "b", "c")]
        equal(counts, [own, 2, 2], f"starts of a, b and c with 2 for each and {own} for a")


@case(needs=_NEEDS)
async def a_job_must_pass_the_limit_of_its_type_and_of_its_key(h: Harness) -> None:
    for whole, each, wanted in ((9, 2, {"a": 2, "b": 2}), (3, 2, None), (1, 5, None)):
        name = f"t{whole}-{each}"
        await h.backend.limits([Limit(type=name, concurrency=whole), Limit(type=name, key=EACH_KEY, concurrency=each)])
        for key in ("a", "b"):
            await h.enqueue(5, type=name, queue=name, key=key)
        started = [job.key for job in await h.claim(BATCH_MAX, name)]
        counts = {key: started.count(key) for key in ("a", "b")}
        if wanted is not None:
            equal(counts, wanted, f"starts with limits of {whole} and of {each} each")
        equal(len(started), min(whole, 2 * each), f"all starts with limits of {whole} and of {each} each")
        true(max(counts.values()) <= each, f"{counts} started with a limit of {each} each")


@case(needs=_CLOCK)
async def a_job_held_by_one_limit_takes_nothing_of_another(h: Harness) -> None:
    await _limit(h, rate=1, period_ms=100_000, burst=4)
    await _limit(h, key=EACH_KEY, concurrency=1)
    await h.enqueue(5, key="a")
    equal(await _starts(h), 1, "starts of the first key")
    equal(await _starts(h), 0, "starts while its only slot is taken")
    for key in ("b", "c", "d", "e"):
        await h.enqueue(1, key=key)
    equal(await _starts(h), 3, "starts of the other keys: the tokens that are left")


@case(needs=_NEEDS)
async def several_queues_share_one_limit(h: Harness) -> None:
    await _limit(h, concurrency=3)
    await h.enqueue(5, queue="a")
    await h.enqueue(5, queue="b")
    equal(await _starts(h, 2, "a"), 2, "starts from a")
    equal(await _starts(h, 5, "b"), 1, "starts from b: what a left")
    equal(await _starts(h, 5, "a", "b"), 0, "starts from both")


@case(needs=_CLOCK)
async def several_queues_share_one_bucket(h: Harness) -> None:
    await _limit(h, rate=10, burst=3)
    await h.enqueue(5, queue="a")
    await h.enqueue(5, queue="b")
    started = [job.queue for job in await h.claim(BATCH_MAX, "b", "a")]
    equal(started, ["b"] * 3, "queues of what started, in the order given")
    await h.advance(100)
    equal(await _starts(h, 5, "a"), 1, "starts from the other queue")
    equal(await _starts(h, 5, "b"), 0, "starts from the first")


# ---- what is held back delays nothing else ---------------------------------------------------------------


@case("B16", needs=_NEEDS)
async def what_may_start_starts_best_first(h: Harness) -> None:
    """Free and limited types, keys and priorities mixed: the order of rank, less what is held back."""
    await _limit(h, concurrency=2)
    await _limit(h, type="keyed", key=EACH_KEY, concurrency=1)
    plan = [("work", None, 5), ("free", None, 5), ("keyed", "a", 5), ("keyed", "a", 5), ("work", None, 5)]
    plan += [("work", None, 5), ("keyed", "b", 5), ("free", None, 5), ("keyed", None, 5), ("keyed", None, 5)]
    specs = [h.spec(type=name, key=key, priority=priority) for name, key, priority in plan]
    await h.backend.enqueue(specs)
    started = [job.id for job in await h.claim(BATCH_MAX)]
    wanted = [0, 1, 2, 4, 6, 7, 8, 9]
    if h.has("fair"):  # keys line up by fair_turn, not by arrival: judged in `fair`
        started, ids = sorted(started), sorted(specs[number].id for number in wanted)
    else:
        ids = [specs[number].id for number in wanted]
    equal(started, ids, "what started, in order")


@case(needs=("limits", "priorities"))
async def a_limited_type_starts_by_rank_too(h: Harness) -> None:
    await _limit(h, concurrency=1)
    specs = [h.spec(type=name, priority=priority) for name, priority in (("work", 8), ("free", 5), ("work", 2))]
    await h.backend.enqueue(specs)
    first = await h.claim(2)
    equal([job.id for job in first], [specs[2].id, specs[1].id], "what started at first")
    equal(await h.claim(2), [], "claimed while the slot is taken")
    await h.settle(first[0])
    equal([job.id for job in await h.claim(2)], [specs[0].id], "what started after it")


@case("B25", needs=_NEEDS)
async def thousands_held_back_hide_nothing(h: Harness) -> None:
    """Jobs of limited types and keys fill the head of the queue: one claim still reaches what lies behind."""
    await _limit(h, concurrency=1)
    await _limit(h, type="keyed", key=EACH_KEY, concurrency=1)
    await h.enqueue(3_000)
    await h.enqueue(2_000, type="keyed", key="busy")
    equal(await _starts(h), 2, "starts of the limited types")
    free = await h.enqueue(3, type="free")
    other = await h.add(type="keyed", key="idle")
    equal({job.id for job in await h.claim(10)}, {*free, other}, "claimed behind 5,000 that are held back")
    for _ in range(20):
        job_id = await h.add(type="free")
        equal([job.id for job in await h.claim(1)], [job_id], "claimed by one claim of 1")


# ---- live edits ------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_limit_holds_what_was_there_before_it(h: Harness) -> None:
    """Pending, delayed and running jobs alike: a limit is set when there is trouble, not before."""
    await h.enqueue(6)
    await h.enqueue(2, delay_ms=h.step_ms)
    running = await h.claim(2)
    await _limit(h, concurrency=3)
    equal(await _starts(h), 1, "starts beside two that ran before")
    await h.pass_time(2 * h.step_ms)
    equal(await _starts(h), 0, "starts when the delayed are due")
    for job in running:
        await h.settle(job)
    equal(await _starts(h), 2, "starts when those that ran before have ended")


@case(needs=_NEEDS)
async def a_limit_is_tightened_loosened_and_cleared_at_once(h: Harness) -> None:
    other = await h.open()
    await h.enqueue(40)
    await _limit(h, concurrency=4)
    jobs = await h.claim(BATCH_MAX)
    equal(len(jobs), 4, "starts with 4 slots")
    await other.limits([Limit(type="work", concurrency=2)])
    for job in jobs[:2]:
        await h.settle(job)
    equal(await _starts(h), 0, "starts with 2 slots, both taken by what ran before")
    await h.settle(jobs[2])
    equal(await _starts(h), 1, "starts with one of 2 slots free")
    await other.limits([Limit(type="work", concurrency=7)])
    equal(await _starts(h), 5, "starts with 7 slots, 2 of them taken")
    await other.limits([Limit(type="work", cleared=True)])
    equal(await _starts(h), 30, "starts without a limit")


@case(needs=_CLOCK)
async def a_rate_is_changed_at_once(h: Harness) -> None:
    """What the old rate would have let start next, in an hour, does not count for the new one."""
    await h.enqueue(60)
    await _limit(h, rate=1, period_ms=3_600_000)
    equal(await _starts(h), 1, "starts at first")
    await _limit(h, rate=100, burst=1)
    await h.advance(10)
    equal(await _starts(h), 1, "starts at the new, faster rate, after one of its intervals")
    await h.advance(10)
    equal(await _starts(h), 1, "starts after one interval more")
    await _limit(h, rate=1, burst=1)
    equal(await _starts(h), 0, "starts at the new, slower rate")
    await h.advance(1_000)
    equal(await _starts(h), 1, "starts after one of its intervals")
    await h.advance(999)
    equal(await _starts(h), 0, "starts a ms too early")
    await _limit(h, cleared=True)
    equal(await _starts(h), 56, "starts without a limit")


@case(needs=_NEEDS)
async def a_limit_by_key_may_come_and_go_while_jobs_wait(h: Harness) -> None:
    """Where jobs wait depends on the limits there are: each kind of change must find them all."""
    await h.enqueue(4, key="a")
    await h.enqueue(4, key="b")
    await _limit(h, concurrency=1)
    equal(await _starts(h), 1, "starts with a limit of the type")
    await _limit(h, key=EACH_KEY, concurrency=1)
    await _limit(h, cleared=True)
    equal(await _starts(h), 1, "starts with a limit of each key, one running")
    await h.enqueue(1, key="c")
    await _limit(h, key=EACH_KEY, cleared=True)
    await _limit(h, key="b", concurrency=2)
    started = [job.key for job in await h.claim(BATCH_MAX)]
    equal(sorted(key or "" for key in started), ["a", "a", "a", "b", "c"], "starts with a limit of b, one running")
    await _limit(h, key="b", cleared=True)
    equal(await _starts(h), 2, "starts without limits")


@case(needs=_NEEDS)
async def a_limit_of_a_type_nobody_has_is_kept(h: Harness) -> None:
    await _limit(h, type="later", concurrency=1)
    await h.tick()
    other = await h.open()
    equal([limit.type for limit in await other.limits()], ["later"], "limits on another connection")
    await h.enqueue(3, type="later")
    equal(await _starts(h), 1, "starts when the type comes")


@case(needs=_NEEDS)
async def limits_end_with_a_limit_not_with_its_jobs(h: Harness) -> None:
    await _limit(h, concurrency=1)
    for _ in range(3):
        job = await h.start()
        await h.settle(job)
        await h.backend.delete([job.id])
    equal([limit.concurrency for limit in await h.backend.limits()], [1], "limits")


# ---- how changes are read --------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def a_change_names_what_it_changes_and_keeps_the_rest(h: Harness) -> None:
    steps: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"rate": 10, "period_ms": 60_000, "burst": 4}, {"rate": 10, "period_ms": 60_000, "burst": 4}),
        ({"concurrency": 3}, {"rate": 10, "period_ms": 60_000, "burst": 4, "concurrency": 3}),
        ({"burst": 2}, {"rate": 10, "period_ms": 60_000, "burst": 2, "concurrency": 3}),
        ({}, {"rate": 10, "period_ms": 60_000, "burst": 2, "concurrency": 3}),
        ({"rate": 0}, {"concurrency": 3}),
        ({"rate": 5, "concurrency": 0}, {"rate": 5}),
        ({"concurrency": 1, "rate": 0}, {"concurrency": 1}),
        ({"concurrency": 0}, None),
        ({"concurrency": 0}, None),
        ({"concurrency": 2}, {"concurrency": 2}),
        ({"cleared": True}, None),
        ({"cleared": True}, None),
    ]
    for change, wanted in steps:
        answer = await _limit(h, **change)
        what = f"limits after {change}"
        fields = ("rate", "burst", "concurrency")
        shown = [{name: getattr(limit, name) for name in fields} for limit in answer]
        equal(shown, [{name: wanted.get(name) for name in fields}] if wanted is not None else [], what)
        periods_ms = [limit.period_ms for limit in answer if limit.rate]
        equal(periods_ms, [(wanted or {}).get("period_ms", 1_000)] * len(periods_ms), f"periods of {what}")
        equal(await h.backend.limits(), answer, f"{what}, asked again")


@case(needs=_NEEDS)
async def code_never_overrides_an_operator(h: Harness) -> None:
    async def now(**change: Any) -> list[tuple[int | None, str]]:
        return [(limit.concurrency, limit.source) for limit in await _limit(h, **change)]

    equal(await now(concurrency=5, source="app"), [(5, "app")], "set by code")
    equal(await now(concurrency=6, source="app"), [(6, "app")], "set by code again")
    equal(await now(concurrency=2), [(2, "")], "set by an operator")
    equal(await now(concurrency=9, source="app"), [(2, "")], "set by code over an operator")
    equal(await now(cleared=True, source="app"), [(2, "")], "cleared by code over an operator")
    equal(await now(cleared=True), [], "cleared by an operator")
    equal(await now(concurrency=5, source="app"), [(5, "app")], "set by code afterwards")


@case(needs=_NEEDS)
async def limits_are_answered_by_type_and_key(h: Harness) -> None:
    names: list[tuple[str, str | None]] = [
        ("b", None),
        ("a", "z"),
        ("a", EACH_KEY),
        ("c", "k"),
        ("a", None),
        ("a", "ü"),
    ]
    for name, key in names:
        await _limit(h, type=name, key=key, concurrency=1)
    found = [(limit.type, limit.key) for limit in await h.backend.limits()]
    equal(found, sorted(names, key=lambda name: (name[0], name[1] or "")), "limits")


@case("C6", needs=_NEEDS)
async def a_limit_that_makes_no_sense_is_refused_and_changes_nothing(h: Harness) -> None:
    before = await _limit(h, rate=5, concurrency=2)
    nonsense: list[dict[str, Any]] = [
        {"rate": -1},
        {"rate": 10**9},
        {"burst": -1, "rate": 1},
        {"burst": 10**9, "rate": 1},
        {"concurrency": -5},
        {"concurrency": 10**9},
        {"rate": 1, "period_ms": 0},
        {"rate": 1, "period_ms": -1_000},
        {"rate": 1, "period_ms": 10**15},
        {"concurrency": 1, "key": ""},
        {"concurrency": 1, "key": "k" * (KEY_CHARS_MAX + 1)},
        {"concurrency": 1, "key": "a\0b"},
    ]
    for fields in nonsense:
        changes = [Limit(type="fine", concurrency=1), Limit(**{"type": "work", **fields})]
        await raises(InvalidOption, h.backend.limits(changes), f"limit with {fields}")
        equal(await h.backend.limits(), before, f"limits after the refusal of {fields}")
    for name in ("", "a b", "x" * 129):
        await raises(Refused, h.backend.limits([Limit(type=name, concurrency=1)]), f"limit of type {name!r}")
    many = [Limit(type=f"t{number}", concurrency=1) for number in range(BATCH_MAX + 1)]
    await raises(InvalidOption, h.backend.limits(many), "one change too many")
    equal(await h.backend.limits(), before, "limits after all refusals")
