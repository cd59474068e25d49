"""Get, find, counts, queues: what is answered is what is there."""

from __future__ import annotations

from collections import Counter

import msgspec

from ...backends.base import BATCH_MAX, Query, QueueChange, WorkerInfo
from ...errors import InvalidOption
from ...job import TERMINAL, State
from .case import case, equal, raises, true
from .harness import FOREVER, Harness


@case()
async def get_answers_in_the_order_given(h: Harness) -> None:
    first, second = await h.enqueue(2)
    ids = [second, h.new_id(), first, second, "", "'", "x" * 500]
    found = await h.backend.get(ids)
    wanted = [second, None, first, second, None, None, None]
    equal([job.id if job is not None else None for job in found], wanted, "ids")
    equal(await h.backend.get([]), [], "nothing")


@case()
async def get_is_bounded(h: Harness) -> None:
    ids = await h.enqueue(BATCH_MAX)
    equal([job.id for job in await h.backend.get(ids) if job is not None], ids, "a whole batch")
    await raises(InvalidOption, h.backend.get([*ids, h.new_id()]), "get of one too many")


@case()
async def find_answers_newest_first_or_oldest_first(h: Harness) -> None:
    ids = await h.enqueue(3)
    await h.advance(h.step_ms)
    ids += await h.enqueue(3)
    equal([job.id for job in (await h.backend.find(Query())).jobs], ids[::-1], "newest first")
    equal([job.id for job in (await h.backend.find(Query(oldest_first=True))).jobs], ids, "oldest first")


@case()
async def find_answers_the_records_that_get_answers(h: Harness) -> None:
    for state in (State.SCHEDULED, State.RUNNING, *TERMINAL):
        await h.put(state, queue=f"for-{state}", tags=("a", "b"), meta={"m": "1"}, key="k")
    for job in await h.all():
        equal(job, await h.record(job.id), "record")


@case()
async def workers_answers_what_each_said_of_itself_last(h: Harness) -> None:
    """Also what it says after others: its trouble must be seen while it lasts, and no longer."""
    said = WorkerInfo(id="w1", host="box", pid=7, busy=2, trouble="event loop blocked for 3 s in shop.py:31 resize")
    await h.backend.heartbeat(WorkerInfo(id="w1", host="box", pid=7), h.lease_ms)
    await h.backend.heartbeat(WorkerInfo(id="w2"), h.lease_ms)
    for now in (said, msgspec.structs.replace(said, busy=1), WorkerInfo(id="w1", host="box", pid=7)):
        await h.backend.heartbeat(now, h.lease_ms)
        found = {info.id: (info.busy, info.trouble) for info in await h.backend.workers()}
        equal(found, {"w1": (now.busy, now.trouble), "w2": (0, "")}, "busy and trouble")


@case()
async def find_filters_by_each_field(h: Harness) -> None:
    plain = await h.add()
    queue = await h.add(queue="q2")
    type_ = await h.add(type="email")
    tags = await h.add(tags=("red", "blue"))
    key = await h.add(key="tenant")
    (running,) = await h.claim(1, "q2")
    for query, wanted in (
        ({"queue": "q2"}, {queue}),
        ({"type": "email"}, {type_}),
        ({"tag": "red"}, {tags}),
        ({"tag": "blue"}, {tags}),
        ({"tag": "re"}, set()),
        ({"key": "tenant"}, {key}),
        ({"states": (State.RUNNING,)}, {running.id}),
        ({"states": (State.RUNNING, State.PENDING)}, {plain, queue, type_, tags, key}),
        ({"states": (State.FAILED,)}, set()),
        ({"states": tuple(State)}, {plain, queue, type_, tags, key}),
        ({}, {plain, queue, type_, tags, key}),
    ):
        equal({job.id for job in await h.all(**query)}, wanted, f"found by {query}")


@case()
async def find_filters_by_workflow_and_schedule(h: Harness) -> None:
    await h.add()
    first = await h.enqueue(2, workflow="w-1", schedule="nightly")
    second = await h.enqueue(3, workflow="w-2")
    third = await h.enqueue(2, schedule="hourly")
    for query, wanted in (
        ({"workflow": "w-1"}, first),
        ({"workflow": "w-2"}, second),
        ({"workflow": "w"}, []),
        ({"schedule": "nightly"}, first),
        ({"schedule": "hourly"}, third),
        ({"workflow": "w-1", "schedule": "nightly"}, first),
        ({"workflow": "w-2", "schedule": "nightly"}, []),
        ({"workflow": "w-2", "states": (State.PENDING,), "queue": "default"}, second),
        ({"workflow": "w-2", "states": (State.FAILED,)}, []),
    ):
        for limit in (1, 100):
            equal({job.id for job in await h.all(limit=limit, **query)}, set(wanted), f"found by {query}")


@case()
async def a_brief_page_leaves_out_what_may_be_large(h: Harness) -> None:
    job = await h.start(payload=b"[1]", tags=("t",), meta={"m": "1"}, key="k", workflow="w")
    await h.settle(job, result=b'"done"', error=h.error())
    (whole,) = await h.all()
    equal((whole.payload, whole.result), (b"[1]", b'"done"'), "payload and result of a whole page")
    (brief,) = await h.all(brief=True)
    equal((brief.payload, brief.result), (b"", None), "payload and result of a brief page")
    equal(msgspec.structs.replace(brief, payload=b"[1]", result=b'"done"'), whole, "all else")
    equal((await h.record(job.id)).payload, b"[1]", "payload afterwards")


@case()
async def find_joins_its_filters(h: Harness) -> None:
    fields = {"queue": ("a", "b"), "type": ("t", "u"), "key": ("k", "l"), "tags": (("x",), ("y",))}
    for bits in range(16):
        await h.add(**{name: values[bits >> place & 1] for place, (name, values) in enumerate(fields.items())})
    (job,) = await h.all(queue="a", type="u", key="k", tag="y", states=(State.PENDING,))
    equal((job.queue, job.type, job.key, job.tags), ("a", "u", "k", ("y",)), "the only one that matches all")
    equal(len(await h.all(queue="a", type="u")), 4, "matches of two")
    equal(await h.all(queue="a", type="u", states=(State.FAILED,)), [], "matches of none")


@case()
async def find_filters_by_when_jobs_were_created(h: Harness) -> None:
    ids = []
    for _ in range(4):
        ids.append(await h.add())
        await h.advance(h.step_ms)
    at_ms = [(await h.record(job_id)).created_at_ms for job_id in ids]
    found = await h.all(created_from_ms=at_ms[1], created_before_ms=at_ms[3])
    equal({job.id for job in found}, set(ids[1:3]), "from inclusive, before exclusive")
    equal(len(await h.all(created_from_ms=at_ms[3])), 1, "from the last")
    equal(await h.all(created_from_ms=at_ms[3] + 1), [], "from after the last")
    equal(await h.all(created_before_ms=at_ms[0]), [], "before the first")


@case("C6")
async def a_page_has_1_to_the_limit_of_jobs(h: Harness) -> None:
    await h.enqueue(3)
    for limit in (0, -1, BATCH_MAX + 1, 10**9):
        await raises(InvalidOption, h.backend.find(Query(limit=limit)), f"find with limit {limit}")
    equal(len((await h.backend.find(Query(limit=1))).jobs), 1, "jobs on a page of 1")
    page = await h.backend.find(Query(limit=BATCH_MAX))
    equal((len(page.jobs), page.next), (3, None), "jobs on the largest page, next")


@case("C6")
async def what_is_no_cursor_is_refused(h: Harness) -> None:
    await h.enqueue(3)
    for cursor in ("nonsense", "", "-1", "1 OR 1=1", "9" * 40, "1.5", "٣", "\0"):
        await raises(InvalidOption, h.backend.find(Query(cursor=cursor)), f"find with cursor {cursor!r}")


@case()
async def a_walk_along_the_cursor_sees_every_job_once(h: Harness) -> None:
    ids = await h.enqueue(23)
    for limit in (1, 5, 7, 23, 24):
        for oldest_first in (False, True):
            pages = await h.pages(limit=limit, oldest_first=oldest_first)
            walked = [job.id for page in pages for job in page]
            equal(walked, ids if oldest_first else ids[::-1], f"walk by {limit}")
            equal(len(pages), -(-23 // limit), f"pages by {limit}")


@case()
async def a_walk_with_a_filter_sees_every_match_once(h: Harness) -> None:
    ids = [await h.add(tags=("odd",) if number % 2 else (), queue=f"q{number % 3}") for number in range(30)]
    for oldest_first in (False, True):
        walked = [job.id for job in await h.all(limit=4, tag="odd", oldest_first=oldest_first)]
        equal(walked, ids[1::2] if oldest_first else ids[1::2][::-1], "walk")


@case()
async def a_walk_never_repeats_while_jobs_come_move_and_go(h: Harness) -> None:
    for oldest_first in (False, True):
        queue = f"q{oldest_first}"
        ids = await h.enqueue(40, queue=queue, max_attempts=99)
        other = await h.open()
        seen: list[str] = []
        cursor = None
        for turn in range(200):
            page = await h.backend.find(Query(queue=queue, limit=6, oldest_first=oldest_first, cursor=cursor))
            seen += [job.id for job in page.jobs]
            cursor = page.next
            if cursor is None:
                break
            await other.enqueue(h.specs(3 if turn < 9 else 0, queue=queue))
            for job in await h.claim(2, queue, backend=other):
                await h.settle(job, State.SUCCEEDED if turn % 2 else State.PENDING, backend=other)
            if len(page.jobs) > 1:
                await other.delete([page.jobs[-1].id])  # the job the cursor stands on
        equal([job_id for job_id, times in Counter(seen).items() if times > 1], [], "repeated")
        equal(set(ids) <= set(seen), True, "every job that was there all the time was seen")


@case()
async def counts_are_true(h: Harness) -> None:
    equal(await h.backend.counts(), {}, "counts of an empty store")
    await h.enqueue(3, queue="a")
    await h.enqueue(2, queue="a", delay_ms=9_000)
    await h.enqueue(4, queue="b")
    for state, job in zip((State.SUCCEEDED, State.FAILED), await h.claim(2, "b"), strict=True):
        await h.settle(job, state)
    await h.claim(1, "b")
    counts = await (await h.open()).counts()
    equal(counts["a"].states, {State.PENDING: 3, State.SCHEDULED: 2}, "states of a")
    wanted = {State.PENDING: 1, State.RUNNING: 1, State.SUCCEEDED: 1, State.FAILED: 1}
    equal(counts["b"].states, wanted, "states of b")
    equal(set(counts), {"a", "b"}, "queues")
    found = Counter((job.queue, job.state) for job in await h.all())
    counted = {(name, state): number for name, each in counts.items() for state, number in each.states.items()}
    equal(counted, dict(found), "counts against find")


@case()
async def counts_follow_every_move(h: Harness) -> None:
    async def now() -> dict[State, int]:
        counts = await h.backend.counts()
        return {state: number for state, number in counts["default"].states.items() if number}

    job_id = await h.add(delay_ms=h.step_ms, max_attempts=2)
    equal(await now(), {State.SCHEDULED: 1}, "scheduled")
    await h.pass_time(2 * h.step_ms)
    equal(await now(), {State.PENDING: 1}, "promoted")
    (job,) = await h.claim()
    equal(await now(), {State.RUNNING: 1}, "claimed")
    await h.settle(job, State.PENDING)
    equal(await now(), {State.PENDING: 1}, "released")
    await h.claim()
    await h.pass_time(2 * h.lease_ms)
    equal(await now(), {State.FAILED: 1}, "lapsed")
    await h.backend.queues([QueueChange(queue="default", paused=False)])
    await h.backend.delete([job_id])
    equal(await now(), {}, "deleted")


@case()
async def counts_say_how_old_the_oldest_pending_job_is(h: Harness) -> None:
    first = await h.add(priority=9)
    await h.advance(4 * h.step_ms)
    await h.add(priority=0)
    await h.add(queue="other", delay_ms=90 * h.step_ms)
    counts = await h.backend.counts()
    age_ms = counts["default"].oldest_pending_ms
    true(age_ms is not None and 4 * h.step_ms <= age_ms < 4 * h.step_ms + 5_000, f"{age_ms} ms")
    equal(counts["other"].oldest_pending_ms, None, "oldest pending where none is")
    await h.backend.cancel([first])
    age_ms = (await h.backend.counts())["default"].oldest_pending_ms
    true(age_ms is not None and age_ms < 4 * h.step_ms, f"{age_ms} ms after the oldest was cancelled")


@case()
async def counts_list_queues_with_settings_but_without_jobs(h: Harness) -> None:
    await h.backend.queues([QueueChange(queue="empty", paused=True)])
    await h.add()
    counts = await h.backend.counts()
    equal(set(counts), {"default", "empty"}, "queues")
    equal((counts["empty"].paused, counts["default"].paused), (True, False), "paused")
    equal(sum(counts["empty"].states.values()), 0, "jobs in the empty queue")


@case()
async def queues_answers_all_that_have_settings(h: Harness) -> None:
    equal(await h.backend.queues(), {}, "settings at first")
    changed = await h.backend.queues([QueueChange(queue="a", paused=True), QueueChange(queue="b", paused=False)])
    equal({name: change.paused for name, change in changed.items()}, {"a": True, "b": False}, "answer")
    other = await h.open()
    equal(await other.queues(), changed, "answer on another connection")
    again = await other.queues([QueueChange(queue="b", paused=True)])
    equal({name: change.paused for name, change in again.items()}, {"a": True, "b": True}, "answer after a change")
    equal(await h.backend.queues(), again, "answer on the first connection")


@case()
async def none_leaves_a_setting_as_it_is(h: Harness) -> None:
    await h.backend.queues([QueueChange(queue="a", paused=True)])
    await h.backend.queues([QueueChange(queue="a")])
    equal((await h.backend.queues())["a"].paused, True, "paused")
    await h.backend.queues([QueueChange(queue="a", paused=False), QueueChange(queue="a", paused=True)])
    equal((await h.backend.queues())["a"].paused, True, "paused after two changes in one call")


@case()
async def changes_of_queues_are_bounded(h: Harness) -> None:
    changes = [QueueChange(queue=f"q{number}", paused=True) for number in range(BATCH_MAX + 1)]
    await raises(InvalidOption, h.backend.queues(changes), "one change too many")
    equal(await h.backend.queues(), {}, "settings after the refusal")


@case()
async def looking_changes_nothing(h: Harness) -> None:
    ids = [(await h.put(state, queue=f"for-{state}"))[0] for state in (State.SCHEDULED, State.RUNNING, *TERMINAL)]
    before = await h.backend.get(ids)
    await h.all()
    await h.backend.counts()
    await h.backend.workers()
    await h.backend.queues()
    await h.backend.tick(10, FOREVER)
    equal(await h.backend.get(ids), before, "records")
