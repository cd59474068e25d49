"""Fair turns: keys that share a queue start in turn, exactly as `packhorse.job.fair_turn` says (decision 9)."""

from __future__ import annotations

from ...backends.base import BATCH_MAX, EACH_KEY, Limit
from ...job import AGEING_MS, State
from .case import case, equal, true
from .harness import Harness

_NEEDS = ("fair",)
_CLOCK = ("fair", "manual_clock")


async def _order(h: Harness, count: int = BATCH_MAX, queue: str = "default") -> list[str]:
    return [job.id for job in await h.claim(count, queue)]


@case(needs=_NEEDS)
async def a_key_with_many_jobs_does_not_hold_up_the_next(h: Harness) -> None:
    """1,000 of one key are pending when 10 of another come: each of the ten starts after one of the thousand."""
    big = await h.enqueue(1_000, key="big")
    equal(await _order(h, 5), big[:5], "the first, alone in the queue")
    await h.advance(h.step_ms)
    small = await h.enqueue(10, key="small")
    wanted = [small[0]]
    for number in range(9):
        wanted += [big[5 + number], small[1 + number]]
    equal(await _order(h, 19), wanted, "starts after the second key came")
    equal(await _order(h), big[14:], "the rest, in their order")


@case(needs=_NEEDS)
async def keys_of_one_call_start_in_turn(h: Harness) -> None:
    specs = [h.spec(key=key) for key in "aaaabbbcc"]
    await h.backend.enqueue(specs)
    started = [job.key for job in await h.claim(BATCH_MAX)]
    equal("".join(key or "-" for key in started), "abcabcaba", "keys in the order of their starts")


@case(needs=_NEEDS)
async def many_keys_start_before_the_second_job_of_any(h: Harness) -> None:
    first = await h.enqueue(3, key="k0")
    others = [await h.add(key=f"k{number}") for number in range(1, 40)]
    equal(await _order(h), [first[0], *others, *first[1:]], "order of starts")


@case(needs=_NEEDS)
async def jobs_of_one_key_start_in_the_order_they_came(h: Harness) -> None:
    ids = []
    for _ in range(4):
        ids += await h.enqueue(3, key="k")
        await h.advance(h.step_ms)
    equal(await _order(h, 5) + await _order(h), ids, "order of starts")


@case(needs=_CLOCK)
async def jobs_without_a_key_keep_their_place(h: Harness) -> None:
    """Their turn is when they became ready, whatever the keys beside them do."""
    plain = [await h.add()]
    keyed = await h.enqueue(3, key="k")  # turns 0, 1, 2 ms from now
    await h.advance(1)
    plain.append(await h.add())
    await h.advance(1)
    plain.append(await h.add())
    await h.advance(1)
    plain.append(await h.add())
    wanted = [plain[0], keyed[0], keyed[1], plain[1], keyed[2], plain[2], plain[3]]
    equal(await _order(h), wanted, "order of starts")


@case(needs=("fair", "priorities"))
async def a_better_priority_of_the_same_key_starts_first(h: Harness) -> None:
    normal = await h.enqueue(20, key="k", priority=5)
    low = await h.enqueue(2, key="k", priority=8)
    high = await h.enqueue(2, key="k", priority=2)
    other = await h.add(key="l", priority=5)
    equal(await _order(h, 4), [*high, normal[0], other], "the first starts")
    equal(await _order(h), [*normal[1:], *low], "the rest")


@case(needs=_NEEDS)
async def a_key_that_comes_back_has_saved_nothing_and_lost_nothing(h: Harness) -> None:
    """Its turn is where the others are: neither before all of them for its pause, nor behind for its past."""
    first = await h.enqueue(6, key="a")
    early = await h.enqueue(2, key="b")
    equal(await _order(h, 4), [first[0], early[0], first[1], early[1]], "the first starts")
    equal(await _order(h, 2), first[2:4], "starts while the other has none")
    back = await h.enqueue(3, key="b")
    equal(await _order(h), [back[0], first[4], back[1], first[5], back[2]], "starts after it came back")


@case(needs=_NEEDS)
async def a_job_that_is_released_lines_up_behind_its_key(h: Harness) -> None:
    ids = await h.enqueue(4, key="k", max_attempts=9)
    (job,) = await h.claim(1)
    await h.settle(job, State.PENDING)
    equal(await _order(h), [*ids[1:], ids[0]], "order of starts after the release")


@case(needs=_CLOCK)
async def a_retry_and_a_delayed_job_take_their_turn_when_they_are_due(h: Harness) -> None:
    crowd = await h.enqueue(30, key="a", max_attempts=9)
    other = await h.add(key="b", delay_ms=h.step_ms)
    (job,) = await h.claim(1)
    await h.settle(job, State.SCHEDULED, delay_ms=h.step_ms)
    equal(await _order(h, 3), crowd[1:4], "starts meanwhile")
    await h.pass_time(h.step_ms)
    equal(await _order(h), [other, *crowd[4:], crowd[0]], "starts when both are due")


@case(needs=_NEEDS)
async def a_lapsed_job_takes_its_turn_again(h: Harness) -> None:
    lapsed = await h.add(key="a", max_attempts=9)
    await h.claim(1, worker="dying")
    crowd = await h.enqueue(5, key="b")
    await h.backend.retire("dying", "gone")
    equal(await _order(h), [lapsed, *crowd], "order of starts: at the front, and older than who stands there")


@case(needs=_CLOCK)
async def with_no_keyed_job_pending_turns_start_afresh(h: Harness) -> None:
    """The past of the queue is forgotten: a thousand turns taken put nobody behind who comes now."""
    for emptied in ("claimed", "cancelled", "deleted"):
        ids = await h.enqueue(1_000, key="k", queue=emptied)
        equal(await _order(h, 500, emptied), ids[:500], "the first")
        if emptied == "claimed":
            await _order(h, 500, emptied)
        else:
            await (h.backend.cancel if emptied == "cancelled" else h.backend.delete)(ids[500:])
        await h.advance(10)
        keyed = await h.add(key="k", queue=emptied)
        await h.advance(1)
        plain = await h.add(queue=emptied)
        equal(await _order(h, 5, emptied), [keyed, plain], f"order after all were {emptied}")


@case("B36", needs=_CLOCK)
async def no_turn_is_further_than_one_step_of_ageing(h: Harness) -> None:
    """The clock was set back an hour: who comes now is not put behind everybody of the next hour."""
    before = await h.enqueue(2, key="a")
    h.jump(-3_600_000)
    keyed = await h.add(key="b")
    await h.advance(AGEING_MS - 1)
    sooner = await h.add()
    await h.advance(2)
    later = await h.add()
    equal(await _order(h), [sooner, keyed, later, *before], "order of starts")


@case(needs=_NEEDS)
async def queues_do_not_share_turns(h: Harness) -> None:
    await h.enqueue(300, key="a", queue="other")
    await _order(h, 200, "other")
    keyed = await h.enqueue(2, key="a")
    late = await h.add(key="b")
    equal(await _order(h), [keyed[0], late, keyed[1]], "order in a queue beside a busy one")


@case(needs=_NEEDS)
async def a_turn_is_not_an_instant(h: Harness) -> None:
    """What a job says of its times is true, whatever its place."""
    ids = await h.enqueue(50, key="k")
    for record in [await h.record(ids[0]), await h.record(ids[49])]:
        equal(record.due_at_ms, record.created_at_ms, "due at")
    jobs = await h.claim(BATCH_MAX)
    equal({job.ready_at_ms - job.created_at_ms for job in jobs}, {0}, "ready after creation, ms")
    age_ms = (await h.backend.counts())["default"].oldest_pending_ms
    true(age_ms is None, f"{age_ms} ms of age with nothing pending")


@case(needs=("fair", "limits"))
async def a_key_that_is_held_back_does_not_stop_the_turns(h: Harness) -> None:
    await h.backend.limits([Limit(type="work", key=EACH_KEY, concurrency=1)])
    held = await h.enqueue(100, key="held")
    equal(await _order(h, 5), held[:1], "starts of the only key")
    for number in range(5):
        others = await h.enqueue(2, key=f"k{number}", type="free")
        equal(await _order(h, 5), others, "starts of another key beside the one that is held back")
