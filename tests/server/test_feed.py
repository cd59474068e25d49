"""The feed: what listeners are told of the moves of jobs, and what it costs the store."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence

import pytest

from packhorse.backends.base import Rerun, Settlement
from packhorse.job import JobError, JobRecord, State
from packhorse.server.feed import following as feed_module
from packhorse.server.feed import known
from packhorse.server.feed.events import Batch, Filter, Told
from packhorse.server.feed.known import KnownJobs
from packhorse.server.feed.streaming import HELD_EVENTS_MAX, Stream

from ..worker.working import until
from .feeding import Hearer, Watched, feeding, joined, run, spec
from .hearing import in_loop

# ---- what is told ----------------------------------------------------------------------------------------------


@in_loop
async def test_every_move_is_told_in_order_with_what_is_known_of_the_job() -> None:
    store = Watched()
    async with feeding(store) as feed:
        hearer = await joined(feed, Hearer())
        job = spec(key="tenant", tags=("red", "blue"), workflow="flow", max_attempts=2)
        await store.enqueue([job])
        await until(lambda: hearer.told)
        (claimed,) = await store.claim(["default"], 1, 30_000, "worker-1")
        await until(lambda: len(hearer.told) == 2)
        error = JobError(attempt=1, at_ms=1, kind="ValueError", message="it broke " + "x" * 5_000, traceback="canary")
        settled = Settlement(id=job.id, token=claimed.token, state=State.FAILED, error=error)
        await store.settle([settled])
        await until(lambda: len(hearer.told) == 3)
        await store.rerun([Rerun(id=job.id)])
        await store.delete([job.id])
        await until(lambda: len(hearer.told) == 5)
    stored, started, failed, again, gone = [told.event for told in hearer.told]
    assert (stored.state, stored.type, stored.queue, stored.attempt) == (State.PENDING, "email", "default", 0)
    assert (stored.key, stored.tags, stored.workflow) == ("tenant", ("red", "blue"), "flow")
    assert (started.state, started.previous, started.attempt) == (State.RUNNING, State.PENDING, 1)
    assert started.worker == "worker-1"
    assert (failed.state, failed.previous, failed.attempt) == (State.FAILED, State.RUNNING, 1)
    assert failed.error.startswith("ValueError: it broke")
    assert len(failed.error) <= known.ERROR_CHARS_MAX + 1
    assert again.state is State.PENDING
    assert gone.state is None
    assert b"canary" not in Batch(hearer.told).frames


FILTERS = [
    ({"queues": frozenset({"mail"})}, ["mail"]),
    ({"queues": frozenset({"mail", "default"})}, ["mail", "plain", "flow", "keyed", "red", "typed"]),
    ({"types": frozenset({"sms"})}, ["typed"]),
    ({"workflows": frozenset({"flow-1"})}, ["flow"]),
    ({"jobs": frozenset({"plain"})}, ["plain"]),
    ({"keys": frozenset({"tenant"})}, ["keyed"]),
    ({"tags": frozenset({"red", "pink"})}, ["red"]),
    ({"scope": frozenset({"mail"})}, ["mail"]),
    ({"scope": frozenset({"mail"}), "queues": frozenset({"default"})}, []),
    ({"states": frozenset({State.PENDING})}, ["mail", "plain", "flow", "keyed", "red", "typed"]),
    ({"states": frozenset({State.FAILED})}, []),
    ({"types": frozenset({"email"}), "tags": frozenset({"red"})}, ["red"]),
]


@in_loop
async def test_each_filter_lets_through_what_it_says() -> None:
    store = Watched()
    specs = [
        spec(id="mail", queue="mail"),
        spec(id="plain"),
        spec(id="flow", workflow="flow-1"),
        spec(id="keyed", key="tenant"),
        spec(id="red", tags=("red", "big")),
        spec(id="typed", type="sms"),
    ]
    async with feeding(store) as feed:
        hearers = [await joined(feed, Hearer(Filter(**parts))) for parts, _ in FILTERS]
        everything = await joined(feed, Hearer())
        await store.enqueue(specs)
        await until(lambda: len(everything.told) == len(specs))
    for hearer, (parts, expected) in zip(hearers, FILTERS, strict=True):
        assert [told.event.id for told in hearer.told] == expected, parts


@in_loop
async def test_what_is_not_known_to_be_of_its_queues_is_not_told_to_a_scoped_caller() -> None:
    """C19: a job that is gone before it could be looked at is told only to those who may see all."""
    store = Watched()
    job = spec()
    await store.enqueue([job])
    async with feeding(store) as feed:
        scoped = await joined(feed, Hearer(Filter(scope=frozenset({"default"}))))
        everything = await joined(feed, Hearer())
        await store.delete([job.id])
        await until(lambda: everything.told)
        assert everything.states(job.id) == [None]
        assert scoped.told == []


@in_loop
async def test_an_event_is_encoded_once_for_all() -> None:
    store = Watched()
    async with feeding(store) as feed:
        hearers = [await joined(feed, Hearer()) for _ in range(5)]
        other = await joined(feed, Hearer(Filter(queues=frozenset({"default"}))))
        await store.enqueue([spec()])
        await until(lambda: other.told)
    assert len({id(hearer.told[0]) for hearer in [*hearers, other]}) == 1


# ---- what it costs the store -----------------------------------------------------------------------------------


@in_loop
async def test_the_store_is_asked_only_while_somebody_listens() -> None:
    store = Watched()
    async with feeding(store) as feed:
        assert not feed.is_following
        hearer = await joined(feed, Hearer())
        assert feed.is_following
        feed.remove(hearer)
        await until(lambda: not feed.is_following)
        asked = store.asked
        await asyncio.sleep(3 * feed_module.ROUND_MS / 1000)  # nothing to wait for: it is about what does not happen
        assert store.asked == asked
        again = await joined(feed, Hearer())
        await store.enqueue([spec()])
        await until(lambda: again.told)


@in_loop
async def test_a_job_is_not_looked_up_for_each_move() -> None:
    store = Watched()
    async with feeding(store) as feed:
        hearer = await joined(feed, Hearer())
        job = spec()
        await store.enqueue([job])
        await run(store, job.id)
        await until(lambda: len(hearer.told) == 3)
        assert store.got == [job.id], "three moves of one round: one look-up"
        store.got.clear()
        slow = spec(delay_ms=60_000)
        await store.enqueue([slow])
        await until(lambda: hearer.states(slow.id) == [State.SCHEDULED])
        await store.cancel([slow.id])
        await until(lambda: len(hearer.states(slow.id)) == 2)
        assert store.got == [slow.id] * 2, "when it was new, and for the error of its end"


@in_loop
async def test_what_nobody_wants_is_not_looked_up() -> None:
    store = Watched()
    async with feeding(store) as feed:
        failures = await joined(feed, Hearer(Filter(states=frozenset({State.FAILED}))))
        jobs = [spec() for _ in range(50)]
        await store.enqueue(jobs)
        await run(store, jobs[7].id, State.FAILED)
        await until(lambda: failures.told)
        assert store.got == [jobs[7].id]


@in_loop
async def test_what_is_remembered_is_bounded_and_ended_jobs_are_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(known, "JOBS_MAX", 10)
    store, jobs = Watched(), KnownJobs()
    cursor = (await store.changes()).cursor
    specs = [spec() for _ in range(100)]
    await store.enqueue(specs)
    await jobs.tell(store, (await store.changes(cursor)).changes)
    assert len(jobs) == 10
    await store.cancel([item.id for item in specs])
    await jobs.tell(store, (await store.changes(cursor)).changes)
    assert len(jobs) == 0


@in_loop
async def test_large_jobs_are_looked_up_few_at_a_time() -> None:
    """A look-up brings payloads along: a thousand of a MiB must not be in memory at once."""

    calls: list[int] = []

    class Sizes(Watched):
        async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
            calls.append(len(ids))
            return await super().get(ids)

    store, jobs = Sizes(), KnownJobs()
    cursor = (await store.changes()).cursor
    await store.enqueue([spec(payload=b'"' + b"x" * 500_000 + b'"') for _ in range(80)])
    await jobs.tell(store, (await store.changes(cursor)).changes)
    assert max(calls[1:]) <= 4
    assert sum(calls) == 80


@pytest.mark.parametrize(
    ("took_ms", "changes", "since_ms", "expected_ms"),
    [
        (0, 0, 100, 100),  # idle
        (20, 100, 100, 100),
        (60, 1_000, 200, 180),  # three times as long as the round took
        (5_000, 0, 5_000, 500),  # but at most
        (150, 5_000, 250, 125),  # the store is busy: 2,500 more changes are enough
        (400, 10_000, 100, 100),
    ],
)
def test_the_feed_takes_a_part_of_a_core_but_does_not_fall_behind(took_ms, changes, since_ms, expected_ms) -> None:
    assert feed_module._pause_ms(took_ms, changes, since_ms) == expected_ms


# ---- slow listeners --------------------------------------------------------------------------------------------


@in_loop
async def test_a_listener_that_does_not_read_is_cut_off_and_holds_nothing() -> None:
    """Bounded memory: what waited for it is let go, and it is told nothing more."""
    store = Watched()
    async with feeding(store) as feed:
        slow = Stream(feed, Filter(), owner="somebody")
        feed.add(slow)
        steady = await joined(feed, Hearer())
        for turn in range(4):
            await store.enqueue([spec(tags=tuple("t" * 100 for _ in range(10))) for _ in range(1_000)])
            await until(lambda turn=turn: len(steady.told) == 1_000 * (turn + 1))
            assert slow._held_events <= HELD_EVENTS_MAX
        assert slow.is_cut
        assert slow.ended
        assert slow not in feed.listeners
        assert not slow._held
        steady.told.clear()
        gc.collect()
        assert sum(type(item) is Told for item in gc.get_objects()) < 1_000


# ---- counts ----------------------------------------------------------------------------------------------------


@in_loop
async def test_counts_are_told_when_they_changed_and_not_more_often_than_once_a_second(monkeypatch) -> None:
    store = Watched()
    async with feeding(store) as feed:
        hearer = Hearer()
        hearer.wants_counts = True
        await store.enqueue([spec(queue="old")])
        await joined(feed, hearer)
        await until(lambda: hearer.counts)
        assert b'"old":{"waiting":0,"scheduled":0,"pending":1' in hearer.counts[0]
        await store.enqueue([spec()])
        await until(lambda: len(hearer.counts) == 2)
        assert b'"default"' in hearer.counts[1]
        assert b'"old"' not in hearer.counts[1], "only what changed"
        assert store.counted_at[1] - store.counted_at[0] > 0.8
        counted = store.counted
        late = Hearer(Filter(queues=frozenset({"old"})))
        late.wants_counts = True
        await joined(feed, late)
        await until(lambda: late.counts)
        assert b'"old"' in late.counts[0]
        assert b'"default"' not in late.counts[0]
        assert store.counted == counted, "who comes later is told what is known"


@in_loop
async def test_counts_are_not_asked_for_where_nobody_wants_them() -> None:
    store = Watched()
    async with feeding(store) as feed:
        hearer = await joined(feed, Hearer())
        await store.enqueue([spec()])
        await until(lambda: hearer.told)
        assert store.counted == 0
