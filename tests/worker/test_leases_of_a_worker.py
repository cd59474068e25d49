"""A worker keeps what it runs for as long as it runs it, notices what it lost, and never speaks for another's run."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from working import ended, new_app, store_of, until, work

from packhorse import Context, State
from tests.witness import Witness


def test_b32_a_job_of_several_leases_runs_once(witness: Witness):
    """B32, B7: the lease is renewed for as long as the job runs."""
    app = new_app()
    runs = []

    @app.task(timeout="60s")
    async def long(kind: str) -> str:
        runs.append(kind)
        await asyncio.sleep(3.2)
        return kind

    @app.task(timeout="60s")
    def long_in_thread(kind: str) -> str:
        runs.append(kind)
        time.sleep(3.2)
        return kind

    async def scenario():
        async with app.worker(lease="1s"), app.worker(lease="1s"):
            made = [await long.aenqueue("async"), await long_in_thread.aenqueue("thread")]
            results = [await job.aresult(60) for job in made]
            records = [await job.arecord() for job in made]
        await app.aclose()
        return results, records

    results, records = work(scenario)
    assert sorted(results) == ["async", "thread"]
    if witness.stood_still_s() > 0.3:  # what cannot renew its lease loses it
        return
    assert sorted(runs) == ["async", "thread"]
    assert {(record.attempt, record.errors) for record in records} == {(1, ())}


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_b21_a_run_whose_job_was_taken_away_is_stopped_and_not_heard(executor, caplog):
    """B21, B24: behind the worker's back its lease ends and another worker runs the job. The new run's end stands."""
    app = new_app()
    events = []
    release = asyncio.Event()

    async def on_loop(ctx: Context) -> str:
        if ctx.attempt == 2:
            return "the new run"
        try:
            await release.wait()
        except asyncio.CancelledError:
            events.append("the old run was stopped")
            raise
        return "the old run"

    def in_thread(ctx: Context) -> str:
        if ctx.attempt == 2:
            return "the new run"
        if ctx.wait_cancelled(60):
            events.append("the old run was stopped")
        return "the old run"

    task = app.task("contested")(on_loop if executor == "async" else in_thread)

    async def scenario():
        async with app.worker(lease="1s") as old:
            job = await app.aenqueue(task)
            await until(lambda: old.engine.runner.busy == 1)
            assert len(await old.engine.backend.retire(old.engine.info.id, "an operator's mistake")) == 1
            old.engine._claiming.cancel()  # so that the other one gets it
            async with app.worker(lease="1s"):
                assert await job.aresult(60) == "the new run"
                await until(lambda: old.engine.runner.busy == 0)
            record = await job.arecord()
        after = await job.arecord()
        await app.aclose()
        return record, after

    with caplog.at_level(logging.WARNING, "packhorse"):
        record, after = work(scenario)
    assert events == ["the old run was stopped"]
    assert "was lost to another claim" in caplog.text
    assert after == record
    assert (record.state, record.attempt, record.result) == (State.SUCCEEDED, 2, b'"the new run"')
    assert [error.message for error in record.errors] == ["an operator's mistake"]


def test_b21_a_late_settle_is_stale_and_the_worker_lives(caplog):
    """B21: the old run ends before the worker learns that it lost the job: its end is refused."""
    app = new_app()
    release = asyncio.Event()

    @app.task
    async def contested(ctx: Context) -> str:
        if ctx.attempt == 1:
            ctx.then("follow.up")
            await release.wait()
            return "the old run"
        return "the new run"

    async def scenario():
        async with app.worker() as old:
            job = await contested.aenqueue()
            await until(lambda: old.engine.runner.busy == 1)
            store = store_of(app)
            await old.engine.backend.retire(old.engine.info.id, "its lease ran out")
            assert store.jobs[job.id].state in {State.PENDING, State.RUNNING}
            assert await job.aresult(60) == "the new run"
            release.set()
            await until(lambda: old.engine.settler.stale == 1)
            assert await (await contested.using(max_attempts=1).aenqueue()).aresult(60) == "the old run"
        record = await job.arecord()
        counts = await app.acounts()
        await app.aclose()
        return record, counts

    with caplog.at_level(logging.WARNING, "packhorse"):
        record, counts = work(scenario)
    assert record.result == b'"the new run"'
    assert "came too late and was refused" in caplog.text
    assert counts["default"].states == {State.SUCCEEDED: 2, State.PENDING: 1}  # one follow-up, of the second job


def test_a_blocked_loop_does_not_lose_its_neighbours():
    """A handler that sleeps on the loop delays the others; while it stays within the lease none is lost."""
    app = new_app()  # its lease is far longer than a machine stands still
    runs = []

    @app.task
    async def rude() -> str:
        runs.append("rude")
        time.sleep(1.5)  # several times as long as any beat may wait for the next
        return "slept"

    @app.task
    async def polite(n: int) -> int:
        runs.append(n)
        await asyncio.sleep(0.2)
        return n

    async def scenario():
        async with app.worker(lease="10s", concurrency=10):
            neighbours = [await polite.aenqueue(n) for n in range(5)]
            blocker = await rude.aenqueue()
            later = [await polite.aenqueue(n) for n in range(5, 10)]
            assert await blocker.aresult(60) == "slept"
            results = [await job.aresult(60) for job in (*neighbours, *later)]
            records = [await job.arecord() for job in (*neighbours, *later, blocker)]
        await app.aclose()
        return results, records

    results, records = work(scenario)
    assert results == list(range(10))
    assert {(record.attempt, record.errors) for record in records} == {(1, ())}
    assert len(runs) == 11


def test_a_dead_worker_s_jobs_start_again_when_its_lease_ran_out():
    app = new_app()
    runs = []

    @app.task
    async def job(ctx: Context) -> int:
        runs.append(ctx.attempt)
        return ctx.attempt

    async def scenario():
        made = await job.aenqueue()
        backend = await app.backend()
        assert len(await backend.claim(("default",), 1, 300, "a worker that died")) == 1
        async with app.worker():
            assert await made.aresult(60) == 2
            record = await made.arecord()
        await app.aclose()
        return record

    record = work(scenario)
    assert runs == [2]
    assert record.errors[0].kind == "LeaseLapsed"


def test_progress_arrives_with_the_heartbeats():
    app = new_app()
    told, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def work_on(ctx: Context) -> None:
        ctx.progress(0.1, "first")
        ctx.progress(0.5, "half")
        told.set()
        await release.wait()

    @app.task
    def in_thread(ctx: Context) -> None:
        ctx.progress(0.75)
        ctx.wait_cancelled(60)

    async def scenario():
        async with app.worker(lease="1s"):
            job = await work_on.aenqueue()
            other = await in_thread.aenqueue()

            async def shown():
                records = await job.arecord(), await other.arecord()
                return records if all(record.progress for record in records) else None

            first, second = await until(shown, limit_s=60)
            release.set()
            await other.acancel()
            await ended(app, other)
        await app.aclose()
        return first, second

    first, second = work(scenario)
    assert (first.progress, first.progress_note) == (0.5, "half")
    assert (second.progress, second.progress_note) == (0.75, None)


def test_progress_told_while_the_backend_was_away_is_told_again():
    from working import faulty_app

    from packhorse import Unavailable

    app, backend = faulty_app()
    tries = []

    def away() -> None:
        tries.append(1)
        if len(tries) <= 2:
            raise Unavailable("away")

    @app.task
    async def once(ctx: Context) -> None:
        ctx.progress(0.5, "half")
        await asyncio.sleep(60)

    async def scenario():
        async with app.worker(lease="1s", shutdown_timeout=0):
            job = await once.aenqueue()

            async def running():
                return (await job.astate()) is State.RUNNING

            await until(running)
            backend.fail["heartbeat"] = away

            async def shown():
                return (await job.arecord()).progress

            assert await until(shown, limit_s=60) == 0.5
        await app.aclose()

    work(scenario)


def test_workers_are_listed_while_they_live():
    app = new_app()

    @app.task
    async def some_task() -> None:
        await asyncio.sleep(60)

    async def scenario():
        backend = await app.backend()
        async with app.worker(queues=["default", "mail"], concurrency=7, lease="1s", shutdown_timeout=0) as worker:
            await some_task.aenqueue()

            async def known():
                found = await backend.workers()
                return found if found and found[0].busy else None

            (info,) = await until(known, limit_s=60)
            assert info.id == worker.engine.info.id
        gone = await backend.workers()
        await app.aclose()
        return info, gone

    info, gone = work(scenario)
    assert (info.queues, info.types, info.concurrency, info.busy) == (("default", "mail"), ("some_task",), 7, 1)
    assert info.pid
    assert info.host
    assert info.version
    assert gone == []
