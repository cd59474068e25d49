"""Stopping a worker: the running finish, the unstarted go back, nothing is lost and no attempt is charged."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from working import ended, faulty_app, new_app, until, work

from packhorse import Context, State
from tests.witness import Witness


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_running_jobs_finish_and_are_settled(executor):
    app = new_app()
    started, release = threading.Event(), threading.Event()

    async def on_loop() -> str:
        started.set()
        while not release.is_set():
            await asyncio.sleep(0.002)
        return "finished"

    def in_thread() -> str:
        started.set()
        release.wait(60)
        return "finished"

    task = app.task("slow")(on_loop if executor == "async" else in_thread)

    async def scenario():
        worker = app.worker()
        await worker.start()
        job = await app.aenqueue(task)
        await until(started.is_set)
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.02)
        assert not stopping.done()
        late = await app.aenqueue(task)
        release.set()
        await stopping
        records = await job.arecord(), await late.arecord()
        await app.aclose()
        return records

    first, late = work(scenario)
    assert (first.state, first.result, first.attempt) == (State.SUCCEEDED, b'"finished"', 1)
    assert (late.state, late.attempt) == (State.PENDING, 0)  # nothing was claimed any more


def test_b14_what_was_claimed_and_not_started_goes_back_with_its_attempt():
    """B14: a deploy costs no attempt, not even the only one."""
    app = new_app()
    ran = []

    @app.task(max_attempts=1)
    async def quick(n: int) -> None:
        ran.append(n)
        if n == 30:
            blocking.set()
            await release.wait()
        await asyncio.sleep(0)

    blocking, release = asyncio.Event(), asyncio.Event()

    async def scenario():
        made = [await quick.aenqueue(n) for n in range(200)]
        worker = app.worker(concurrency=1)
        await worker.start()
        worker.engine.claimer._rate_per_ms = 1.0  # as if it had been fast: so that it claims ahead
        await blocking.wait()
        unstarted = worker.engine.runner.unstarted
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: worker.engine.runner.unstarted == 0)
        release.set()
        await stopping
        records = [await job.arecord() for job in made]
        await app.aclose()
        return unstarted, records

    unstarted, records = work(scenario)
    assert unstarted > 0
    assert [(record.state, record.attempt) for record in records[:31]] == [(State.SUCCEEDED, 1)] * 31
    assert {(record.state, record.attempt, record.errors) for record in records[31:]} == {(State.PENDING, 0, ())}
    assert ran == list(range(31))


def test_b14_ten_rolling_restarts_of_a_job_with_one_attempt():
    """B14: the job outlives ten workers that were stopped under it."""
    app = new_app()
    runs = []

    @app.task(max_attempts=1)
    async def patient(ctx: Context) -> str:
        runs.append(ctx.attempt)
        if len(runs) <= 10:
            await asyncio.sleep(60)
        return "at last"

    async def scenario():
        job = await patient.aenqueue()
        for number in range(11):
            async with app.worker(shutdown_timeout=0) as worker:
                await until(lambda number=number: len(runs) == number + 1)
                if number == 10:
                    assert await job.aresult(60) == "at last"
                assert worker.engine is not None
        record = await job.arecord()
        await app.aclose()
        return record

    record = work(scenario)
    assert runs == [1] * 11
    assert (record.state, record.attempt, record.errors) == (State.SUCCEEDED, 1, ())


def test_what_ignores_the_end_of_the_grace_time_lapses_at_once_and_is_charged():
    app = new_app()
    release = asyncio.Event()

    @app.task(max_attempts=2)
    async def stubborn() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async def scenario():
        job = await stubborn.aenqueue()
        async with app.worker(shutdown_timeout=0, stop_grace_ms=50) as worker:
            await until(lambda: worker.engine.runner.busy == 1)
        record = await job.arecord()
        release.set()
        await asyncio.sleep(0.01)
        after = await job.arecord()
        await app.aclose()
        return record, after

    record, after = work(scenario)
    assert (record.state, record.attempt) == (State.PENDING, 1)
    assert record.errors[0].kind == "LeaseLapsed"
    assert after == record  # its late end decides nothing


def test_a_handler_may_finish_quickly_when_it_is_told_to_stop():
    app = new_app()

    @app.task
    async def tidy() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "saved half of it"
        return "never"

    async def scenario():
        job = await tidy.aenqueue()
        async with app.worker(shutdown_timeout=0) as worker:
            await until(lambda: worker.engine.runner.busy == 1)
        record = await job.arecord()
        await app.aclose()
        return record

    record = work(scenario)
    assert (record.state, record.result) == (State.SUCCEEDED, b'"saved half of it"')


def test_b7_the_lease_is_kept_while_a_worker_stops(witness: Witness):
    """B7: a job of several leases finishes during the shutdown and runs once."""
    app = new_app()
    runs = []
    started = asyncio.Event()

    @app.task
    async def long() -> str:
        runs.append(1)
        started.set()
        await asyncio.sleep(2.5)
        return "done"

    async def scenario():
        job = await long.aenqueue()
        worker = app.worker(lease="1s")
        await worker.start()
        await started.wait()
        stopping = asyncio.create_task(worker.stop())
        async with app.worker(lease="1s"):
            await stopping
            assert await job.aresult(60) == "done"
        record = await job.arecord()
        await app.aclose()
        return record

    record = work(scenario)
    if witness.stood_still_s() > 0.3:  # what cannot renew its lease loses it
        return
    assert (runs, record.attempt) == ([1], 1)


def test_a_stop_that_is_cut_short_leaves_nothing_running():
    """Ctrl+C twice: the second ends the wait, and still every part of the worker."""
    app = new_app()
    ended_lifespan = []

    @app.lifespan
    async def life(app):
        yield
        ended_lifespan.append(1)

    @app.task
    async def slow() -> None:
        await asyncio.sleep(60)

    async def scenario():
        worker = app.worker()
        await worker.start()
        await slow.aenqueue()
        await until(lambda: worker.engine.runner.busy == 1)
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.01)
        stopping.cancel()
        await asyncio.wait([stopping])
        assert stopping.cancelled()
        await app.aclose()

    work(scenario)
    assert ended_lifespan == [1]


def test_stopping_twice_and_starting_again():
    app = new_app()

    @app.task
    async def job() -> str:
        return "ran"

    async def scenario():
        worker = app.worker()
        await worker.stop()  # never started
        for _ in range(2):
            async with worker:
                assert await (await job.aenqueue()).aresult(60) == "ran"
            await worker.stop()
        await app.aclose()

    work(scenario)


def test_a_claim_on_its_way_is_not_forgotten():
    app, backend = faulty_app()
    asked, answer = asyncio.Event(), asyncio.Event()
    claim = backend.claim

    async def slow_claim(*args):
        claimed = await claim(*args)
        if claimed:
            asked.set()
            await answer.wait()
        return claimed

    backend.claim = slow_claim

    @app.task
    async def job() -> None:
        raise AssertionError("must not start")

    async def scenario():
        made = await job.aenqueue()
        worker = app.worker()
        await worker.start()
        await asked.wait()
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.01)
        answer.set()
        await stopping
        record = await made.arecord()
        await app.aclose()
        return record

    record = work(scenario)
    assert (record.state, record.attempt, record.errors) == (State.PENDING, 0, ())


def test_burst_works_until_nothing_is_left():
    app = new_app()
    ran = []

    @app.task
    async def parent(n: int, ctx: Context) -> None:
        ran.append(n)
        await asyncio.sleep(0)
        if n:
            ctx.then(parent, {"n": n - 1})

    async def scenario():
        await parent.aenqueue(5)
        other = await parent.using(queue="other").aenqueue(0)
        later = await parent.using(delay="1h").aenqueue(0)
        await app.worker(burst=True).run()
        states = await other.astate(), await later.astate()
        await app.worker(burst=True, queues=["empty"]).run()
        await app.aclose()
        return states

    assert work(scenario) == (State.PENDING, State.SCHEDULED)
    assert ran == [5, 4, 3, 2, 1, 0]


def test_a_worker_s_options_are_checked():
    from packhorse import ConfigurationError, InvalidName, InvalidOption

    app = new_app()
    for options, error in [
        ({"concurrency": 0}, ConfigurationError),
        ({"concurrency": 100_001}, ConfigurationError),
        ({"lease": "999ms"}, ConfigurationError),
        ({"lease": "2d"}, ConfigurationError),
        ({"lease": "soon"}, InvalidOption),
        ({"queues": ["a b"]}, InvalidName),
        ({"shutdown_timeout": -1}, InvalidOption),
        ({"conccurency": 3}, TypeError),
    ]:
        with pytest.raises(error):
            app.worker(**options)
    assert app.worker(queues="mail").options.queues == ("mail",)
    assert app.worker().options.queues == ("default",)


def test_waiting_for_the_end_of_a_job_from_another_loop():
    app = new_app()

    @app.task
    async def job() -> str:
        return "ran"

    async def scenario():
        async with app.worker():
            made = await asyncio.to_thread(job.enqueue)
            assert await asyncio.to_thread(made.result, 60) == "ran"
            await ended(app, made)
        await app.aclose()

    work(scenario)
    app.close()
