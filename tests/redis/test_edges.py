"""What stands at the edges: rows that were lost, rights that are missing, calls in groups, and numbers too large."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from packhorse.backends import grouping
from packhorse.backends.base import (
    ABSENT_KEPT_MS,
    Keep,
    Limit,
    QueueChange,
    Rerun,
    ScheduleChange,
    Settlement,
    Tie,
    Transfer,
    queue_topic,
)
from packhorse.backends.opening import open_backend
from packhorse.backends.redis import RedisBackend
from packhorse.clock import ManualClock
from packhorse.errors import ConfigurationError, InvalidOption, Unavailable
from packhorse.job import JobError, State
from tests.servers import Private, with_parameter
from tests.witness import Witness, boot_s

from .kit import add, beat, claim, key, opened, run, shell, specs, until

FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)


async def settle(backend: RedisBackend, *jobs, state: State = State.SUCCEEDED, **fields) -> None:
    await backend.settle([Settlement(id=job.id, token=job.token, state=state, **fields) for job in jobs])


async def move_all(source: RedisBackend, target: RedisBackend, limit: int = 1_000) -> None:
    stored = None
    for _ in range(20):
        batch = await source.hand_over("there", limit, stored)
        await target.take_over(batch)
        if not batch.jobs and batch.last:
            return
        stored = batch.number
    raise AssertionError("a move without end")


def other(url: str) -> str:
    """Answer the URL of another store on the same server, whose keys go with those of the first."""
    return f"{url}-b"


# ---- moves -------------------------------------------------------------------------------------------------------


def test_children_that_hear_of_their_parent_as_they_leave_leave_as_they_are_then(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            (parent,) = await add(backend, queue="parents")
            children = [*await add(backend, 1_000, after=(parent,)), *await add(backend, 300, after=(parent,))]
            await settle(backend, *await claim(backend, queue="parents"))
            await claim(backend, 1_000)
            batch = await backend.hand_over("there", 1_000)
            moved = Counter((one.record.state, tuple(one.parents.values())) for one in batch.jobs)
            assert moved == {(State.PENDING, (Tie.TOLD,)): 300, (State.SUCCEEDED, ()): 1}
            assert len(children) == 1_300

    run(main)


def test_errors_count_in_the_bytes_of_a_batch(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            await add(backend, 100, max_attempts=99)
            error = JobError(attempt=1, at_ms=1, kind="E", message="m" * 4_000, traceback="t" * 16_000)
            for last in (*(False,) * 19, True):
                state = State.FAILED if last else State.PENDING
                await settle(backend, *await claim(backend), state=state, error=error)
            batch = await backend.hand_over("there", 1_000)
            assert 0 < len(batch.jobs) < 100  # of 40 MB in all
            with shell(redis_url) as client:
                assert client.strlen(key(backend, "departing")) < 20_000_000

    run(main)


def test_what_is_expected_and_lost_its_row_is_given_up(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as source, opened(other(redis_url)) as target:
            (parent,) = await add(source, queue="parents")
            await add(source, 2, after=(parent,))
            await claim(source, queue="parents")
            batch = await source.hand_over("there", 10)
            await target.take_over(batch)
            await target.take_over(await source.hand_over("there", 10, batch.number))
            with shell(redis_url) as client:
                assert client.zcard(key(target, "expected")) == 1
                client.delete(key(target, f"j:{parent}"))
                last = Transfer(source=batch.source, number=batch.number + 1, jobs=(), schedules=(), last=True)
                await target.take_over(last)
                assert not client.exists(key(target, "expected"))

    run(main)


def test_the_names_of_families_that_left_are_forgotten(redis_url: str) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(redis_url, clock) as source, opened(other(redis_url), clock) as target:
            parents = specs(20, queue="parents")
            await source.enqueue(parents)
            for parent in parents:
                await add(source, after=(parent.id,))
            await move_all(source, target)
            with shell(redis_url) as client:
                assert client.zcard(key(source, "away")) == 40
                clock.advance(ABSENT_KEPT_MS + 1_000)
                await source.tick(1_000, FOREVER)
                assert not client.exists(key(source, "away"))

    run(main)


# ---- lanes -------------------------------------------------------------------------------------------------------


def test_a_lane_whose_best_job_lost_its_row_starts_no_job_twice(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            await backend.limits([Limit(type="work", key=None, concurrency=50)])
            with shell(redis_url) as client:
                (lost,) = await add(backend)
                client.delete(key(backend, f"j:{lost}"))
                assert await claim(backend, 5) == []
                assert not client.exists(key(backend, "heads:default:work"), key(backend, "lanes:default"))
                ids = await add(backend, 3)
                assert client.zcard(key(backend, "heads:default:work")) == 1
                client.zadd(key(backend, "heads:default:work"), {b"\0" * 8 + b"work:": 0})  # one that an older one left
                jobs = [*await claim(backend, 10), *await claim(backend, 10)]
                assert sorted(job.id for job in jobs) == ids
                assert {job.attempt for job in jobs} == {1}
                assert client.hgetall(key(backend, "busy")) == {b"work": b"3"}

    run(main)


def test_an_empty_claim_of_a_limited_queue_writes_nothing(private: Private) -> None:
    server = private.redis()

    async def main() -> None:
        async with opened(server.url) as backend:
            await backend.limits([Limit(type="work", key=None, concurrency=1)])
            await add(backend, 3)
            await claim(backend, 1)
            await claim(backend, 1)
            with shell(server.url) as client:
                before = client.info("persistence")["rdb_changes_since_last_save"]
                assert not await claim(backend, 1)
                assert client.info("persistence")["rdb_changes_since_last_save"] == before

    run(main)


# ---- sweeps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["held:w1"], ["holders", "leases"], ["held:w1", "holders", "leases", "workers"]])
def test_running_jobs_that_nobody_holds_are_found_and_lapse(redis_url: str, names: list[str]) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(redis_url, clock) as backend:
            await add(backend, 600)
            ids = sorted(job.id for job in await claim(backend, 600))
            await backend.tick(1_000, FOREVER)
            with shell(redis_url) as client:
                client.delete(*(key(backend, name) for name in names))
            for _ in range(3):
                clock.advance(61_000)
                await backend.tick(1_000, FOREVER)
            assert sorted(job.id for job in await claim(backend, 1_000)) == ids

    run(main)


def test_a_running_job_whose_row_was_lost_holds_no_room(redis_url: str) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(redis_url, clock) as backend:
            await backend.limits([Limit(type="work", key=None, concurrency=2)])
            await add(backend, 3)
            lost, kept = await claim(backend)
            with shell(redis_url) as client:
                client.delete(key(backend, f"j:{lost.id}"))
                assert list(await beat(backend)) == [kept.id]
                clock.advance(61_000)
                await beat(backend)
                await backend.tick(1_000, FOREVER)
                assert client.hgetall(key(backend, "busy")) == {b"work": b"1"}
            assert (await backend.counts())["default"].states == {State.PENDING: 1, State.RUNNING: 1}
            assert len(await claim(backend)) == 1
            assert list(await beat(backend)) != [kept.id]

    run(main)


# ---- rights and memory -------------------------------------------------------------------------------------------


def test_a_user_without_channels_is_told_so_at_once(private: Private) -> None:
    server = private.redis()

    async def main() -> None:
        with shell(server.url) as client:
            client.acl_setuser("ph", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], channels=["*"])
            url = server.url.replace("redis://", "redis://ph:pw@")
            async with opened(url) as backend:
                client.acl_setuser("ph", enabled=True, keys=["*"], categories=["+@all"], reset_channels=True)
                await add(backend, 2)  # what is done is not failed by a hint that cannot be given
                (job,) = await claim(backend, 1)
                await settle(backend, job)
                assert (await backend.get([job.id]))[0].state == State.SUCCEEDED
            with pytest.raises(ConfigurationError, match="channels"):
                await open_backend(url).open()

    run(main)


def test_a_full_server_can_be_steered_and_left(private: Private) -> None:
    server = private.redis()

    async def main() -> None:
        async with opened(server.url) as backend:
            await add(backend, 3)
            with shell(server.url) as client:
                client.config_set("maxmemory", "1")
            with pytest.raises(Unavailable):
                await add(backend)
            await backend.queues([QueueChange(queue="default", paused=True)])
            await backend.limits([Limit(type="work", key=None, concurrency=1)])
            await backend.schedules([ScheduleChange(name="nobody", removed=True)])
            assert len((await backend.hand_over("there", 10)).jobs) == 3

    run(main)


# ---- bounds of one call ------------------------------------------------------------------------------------------


def test_a_look_at_large_jobs_takes_several_calls(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            ids = [(await add(backend, payload=b"p" * 1_500_000))[0] for _ in range(7)]
            asked = [ids[0], "nobody", *ids]
            calls: list[int] = []
            real = backend._link.run

            async def counted(verb, args):
                found = await real(verb, args)
                calls.append(len(found))
                return found

            backend._link.run = counted  # type: ignore[method-assign]
            assert [one and one.id for one in await backend.get(asked)] == [ids[0], None, *ids]
            assert calls == [4, 3, 2]

    run(main)


def test_jobs_of_very_many_parents_are_dropped_over_several_ticks(redis_url: str) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(redis_url, clock) as backend:
            parents = [job_id for _ in range(5) for job_id in await add(backend, 1_000, queue="parents")]
            await add(backend, 6, after=tuple(parents))
            for _ in range(5):
                await settle(backend, *await claim(backend, 1_000, queue="parents"))
            for _ in range(30):
                await backend.tick(1_000, FOREVER)
            jobs = await claim(backend)
            assert len(jobs) == 6
            await settle(backend, *jobs)
            clock.advance(10_000)
            dropped = [(await backend.tick(5, Keep(succeeded_ms=0, failed_ms=0, cancelled_ms=0))).dropped]
            assert dropped[0] == 5
            for _ in range(30):
                dropped.append((await backend.tick(1_000, Keep(succeeded_ms=0, failed_ms=0, cancelled_ms=0))).dropped)
            assert sum(dropped) == 5_006

    run(main)


# ---- calls -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_packed_fails_its_own_caller_only(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            good, bad, wide = specs(3)
            outcomes = await asyncio.gather(
                backend.enqueue([good]),
                backend.enqueue([msgspec.structs.replace(bad, queue="\ud800")]),
                backend.enqueue([msgspec.structs.replace(wide, priority=2**70)]),
                return_exceptions=True,
            )
            assert [isinstance(one, Exception) for one in outcomes] == [False, True, True]

    run(main)


def test_follow_ups_and_errors_count_in_a_group(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "GROUP_BYTES_MAX", 50_000)

    async def main() -> None:
        async with opened(redis_url) as backend:
            await add(backend, 8)
            jobs = await claim(backend)
            calls: list[int] = []
            real = backend._link.run

            async def counted(verb, args):
                calls.append(len(args))
                return await real(verb, args)

            backend._link.run = counted  # type: ignore[method-assign]
            error = JobError(attempt=1, at_ms=1, kind="E", message="m" * 20_000)
            await asyncio.gather(*(settle(backend, job, state=State.FAILED, error=error) for job in jobs))
            assert sum(calls) == 8
            assert max(calls) <= 3

    run(main)


def test_calls_under_an_eager_task_factory(redis_url: str) -> None:
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("this Python has no eager tasks")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with opened(redis_url) as backend:
            for _ in range(3):
                await asyncio.gather(*(add(backend) for _ in range(3)))
            assert len(await claim(backend)) == 9

    run(main)


def test_a_heartbeat_waits_for_no_other_call(private: Private, witness: Witness) -> None:
    server = private.redis()

    async def main() -> None:
        async with opened(with_parameter(server.url, "timeout", "0.5")) as backend:
            (job_id,) = await add(backend)
            with shell(server.url) as client:
                client.client_pause(1_000_000, all=True)
            gets = [asyncio.create_task(backend.get([job_id])) for _ in range(80)]
            await asyncio.sleep(0.05)
            begun = boot_s()
            with pytest.raises(Unavailable):
                await beat(backend)
            assert witness.since_s(begun) < 1.5
            assert all(isinstance(one, Unavailable) for one in await asyncio.gather(*gets, return_exceptions=True))
            assert witness.since_s(begun) < 3.0

    run(main)


def test_bells_hung_at_once_listen_on_one_connection(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            with shell(redis_url) as client, backend.watch([queue_topic("q")]) as bell:
                wake, ended = key(backend, "wake"), key(backend, "ended")
                with backend.watch(["job:a"]), backend.watch(["job:b"]), backend.watch(["job:c"]):
                    await until(
                        lambda: [count for _, count in client.pubsub_numsub(wake, ended)] == [1, 1], "both are heard"
                    )
                    await asyncio.sleep(0.1)
                    assert [count for _, count in client.pubsub_numsub(wake, ended)] == [1, 1]
                    await bell.wait(100)
                    client.publish(wake, b"\xc1 no msgpack")
                    client.publish(wake, msgspec.msgpack.encode(7))
                    assert await bell.wait(30_000), "what it cannot read rings all bells"
                    await bell.wait(50)
                    async with opened(redis_url) as other_one:
                        await add(other_one, queue="q")
                    assert await bell.wait(30_000), "it still listens"

    run(main)


@pytest.mark.parametrize("fields", [{"priority": 300}, {"priority": -1}, {"max_attempts": 70_000}])
def test_numbers_that_do_not_fit_are_refused(redis_url: str, fields: dict[str, int]) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            with pytest.raises(InvalidOption):
                await add(backend, **fields)
            (job_id,) = await add(backend)
            with pytest.raises(InvalidOption):
                await backend.rerun([Rerun(id=job_id, **fields)])

    run(main)
