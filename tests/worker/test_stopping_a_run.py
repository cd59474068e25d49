"""Time-outs and cancels reach a running job on every executor; what ignores them loses its slot, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import Any

import pytest
from process_jobs import add as add_in_process
from process_jobs import app as process_app
from process_jobs import fail_with_follow_up
from process_jobs import pid as pid_in_process
from process_jobs import sleep as sleep_in_process
from process_jobs import tell as tell_in_process
from working import ended, new_app, until, work

from packhorse import Cancel, Context, State
from packhorse.backends.base import Steered
from packhorse.testing import ajobs
from tests.witness import boot_s


def test_an_async_handler_is_stopped_at_its_time_out():
    app = new_app()
    cleaned = []

    @app.task(timeout="50ms", max_attempts=1)
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(1)

    @app.task(timeout="50ms")
    async def quick() -> str:
        await asyncio.sleep(0)
        return "in time"

    async def scenario():
        async with app.worker():
            record = await ended(app, await slow.aenqueue())
            assert await (await quick.aenqueue()).aresult(60) == "in time"
        await app.aclose()
        return record

    record = work(scenario)
    assert (record.state, cleaned) == (State.FAILED, [1])
    assert record.errors[0].kind == "TimedOut"
    assert record.errors[0].message == "still running after 0.05 s, its time-out"


@pytest.mark.parametrize("how", ["returns", "raises", "raises Cancel"])
def test_a_time_out_counts_whatever_the_handler_makes_of_it(how):
    app = new_app()

    @app.task(timeout="50ms", max_attempts=1)
    async def slow() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if how == "raises":
                raise ValueError("instead") from None
            if how == "raises Cancel":
                raise Cancel from None
        return "a value"

    async def scenario():
        async with app.worker():
            record = await ended(app, await slow.aenqueue())
        await app.aclose()
        return record

    record = work(scenario)
    assert (record.state, record.errors[0].kind) == (State.FAILED, "TimedOut")


def test_a_timed_out_job_is_tried_again():
    app = new_app()
    attempts = []

    @app.task(timeout="30ms", max_attempts=3, backoff=0)
    async def slow_at_first(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            await asyncio.sleep(60)
        return "at last"

    async def scenario():
        async with app.worker():
            assert await (await slow_at_first.aenqueue()).aresult(60) == "at last"
        await app.aclose()

    work(scenario)
    assert attempts == [1, 2, 3]


def test_without_a_time_out_a_run_may_take_as_long_as_it_wants():
    app = new_app()
    release = asyncio.Event()

    @app.task(timeout=None)
    async def slow() -> str:
        await release.wait()
        return "done"

    async def scenario():
        async with app.worker() as worker:
            job = await slow.aenqueue()
            await until(lambda: worker.engine.runner.busy == 1)
            (run,) = worker.engine.runner._runs
            assert run.timer is None
            release.set()
            assert await job.aresult(60) == "done"
        await app.aclose()

    work(scenario)


def test_a_thread_is_told_by_a_flag():
    app = new_app()
    waited = []

    @app.task(timeout="50ms", max_attempts=1)
    def slow(ctx: Context) -> None:
        waited.append(ctx.wait_cancelled(30))
        assert ctx.cancelled

    async def scenario():
        async with app.worker():
            record = await ended(app, await slow.aenqueue())
        await app.aclose()
        return record

    record = work(scenario)
    assert waited == [True]
    assert record.errors[0].kind == "TimedOut"


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_a_cancel_reaches_a_running_job_within_a_second(executor, witness):
    app = new_app()
    if executor == "async":

        @app.task(max_attempts=5)
        async def slow(ctx: Context) -> None:
            await asyncio.sleep(60)
    else:

        @app.task(max_attempts=5)
        def slow(ctx: Context) -> None:
            ctx.wait_cancelled(60)
            raise Cancel("stopped")

    async def scenario():
        async with app.worker() as worker:
            job = await slow.aenqueue()
            await until(lambda: worker.engine.runner.busy == 1)
            asked = boot_s()
            assert await job.acancel() is Steered.REQUESTED
            record = await ended(app, job)
            took_s = witness.since_s(asked)
        await app.aclose()
        return record, took_s

    record, took_s = work(scenario)
    assert record.state is State.CANCELLED
    assert took_s < 1.5
    assert record.attempt == 1


@pytest.mark.parametrize("executor", ["async", "thread"])
@pytest.mark.parametrize("asked", ["timeout", "cancel"])
def test_b30_a_run_that_ignores_its_stop_loses_its_slot(executor, asked):
    """B30: the slot is back within time-out and grace, the worker says which job it was, others go on."""
    app = new_app()
    release = threading.Event()
    stubborn_ended = []

    async def stubborn_on_loop() -> str:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.02)
        stubborn_ended.append(1)
        return "too late"

    def stubborn_in_thread() -> str:
        release.wait(30)
        stubborn_ended.append(1)
        return "too late"

    options: dict[str, Any] = {"timeout": "50ms" if asked == "timeout" else "60s", "max_attempts": 1}
    stubborn = app.task("stubborn", **options)(stubborn_on_loop if executor == "async" else stubborn_in_thread)

    @app.task
    async def quick() -> str:
        return "quick"

    @app.task
    def quick_in_thread() -> str:
        return "quick"

    async def scenario():
        async with app.worker(concurrency=1, stop_grace_ms=100) as worker:
            job = await app.aenqueue(stubborn)
            await until(lambda: worker.engine.runner.busy == 1)
            if asked == "cancel":
                await job.acancel()
            behind = [await quick.aenqueue(), await quick_in_thread.aenqueue()]
            assert [await other.aresult(60) for other in behind] == ["quick"] * 2
            record = await ended(app, job)
            release.set()
            await until(lambda: stubborn_ended)
            await until(lambda: worker.engine.runner._abandoned == 0)
            assert await (await quick.aenqueue()).aresult(60) == "quick"
            assert len(worker.engine.runner._slots) <= 2
        await app.aclose()
        return record

    record = work(scenario)
    assert record.state is (State.FAILED if asked == "timeout" else State.CANCELLED)
    assert "ignored its stop for 0.1 s" in record.errors[-1].message


def test_a_late_end_of_an_abandoned_run_decides_nothing():
    """B21: the job is over; what its old run does afterwards is not heard."""
    app = new_app()
    release = asyncio.Event()

    @app.task(timeout="30ms", max_attempts=1)
    async def stubborn(ctx: Context) -> str:
        ctx.then("follow.up")
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        return "too late"

    async def scenario():
        async with app.worker(stop_grace_ms=50) as worker:
            job = await stubborn.aenqueue()
            record = await ended(app, job)
            release.set()
            await until(lambda: worker.engine.runner._abandoned == 0)
        after = await job.arecord()
        found = await ajobs(app, type="follow.up")
        await app.aclose()
        return record, after, found

    record, after, found = work(scenario)
    assert after == record
    assert found == []


def test_a_handler_that_cancels_its_own_task_harms_no_other():
    """A slot runs one job after another: what one leaves behind must not stop the next."""
    app = new_app()

    @app.task(max_attempts=1)
    async def vandal() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "returned all the same"

    @app.task(max_attempts=1)
    async def later_vandal() -> str:
        await asyncio.sleep(0)
        return await vandal.handler()

    @app.task(max_attempts=1)
    async def victim() -> str:
        await asyncio.sleep(0.001)
        return "unharmed"

    async def scenario():
        made = []
        for _ in range(5):
            made += [await vandal.aenqueue(), await victim.aenqueue(), await later_vandal.aenqueue()]
            made += [await victim.aenqueue(), await victim.aenqueue()]
        async with app.worker(concurrency=1):
            records = [await ended(app, job) for job in made]
        await app.aclose()
        return records

    records = work(scenario)
    assert {record.state for record in records if record.type == "victim"} == {State.SUCCEEDED}


def test_time_outs_and_groups_inside_a_handler_work_as_anywhere():
    app = new_app()

    @app.task(max_attempts=1)
    async def careful() -> list[str]:
        said = []
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            said.append("timed out inside")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(60))
                group.create_task(_raise(ValueError("one of many")))
        except ExceptionGroup as error:
            said.append(str(error.exceptions[0]))
        await asyncio.sleep(0)
        return said

    async def scenario():
        async with app.worker(concurrency=1):
            first, second = await careful.aenqueue(), await careful.aenqueue()
            results = [await first.aresult(60), await second.aresult(60)]
        await app.aclose()
        return results

    assert work(scenario) == [["timed out inside", "one of many"]] * 2


def test_a_loop_that_ends_without_stopping_its_worker_ends_all_the_same():
    app = new_app()

    @app.task
    async def slow() -> None:
        await asyncio.sleep(60)

    async def forgetful():
        worker = app.worker()
        await worker.start()
        await slow.aenqueue()
        await until(lambda: worker.engine.runner.busy == 1)

    asyncio.run(asyncio.wait_for(forgetful(), 10))
    assert app.counts()["default"].states == {State.RUNNING: 1}  # it lapses
    app.close()


async def _raise(error: Exception) -> None:
    raise error


# ---- child processes -----------------------------------------------------------------------------------------


def test_a_child_unwinds_at_its_time_out_or_is_killed(tmp_path):
    async def scenario():
        polite, stubborn = tmp_path / "polite", tmp_path / "stubborn"

        async def timed_out(marks, **options):
            warm = await sleep_in_process.aenqueue(0.1, str(tmp_path / "warm"))
            assert await warm.aresult(60) == "slept"  # a child is up
            while True:  # until its time was not up before it had begun
                job = await sleep_in_process.using(timeout="400ms").aenqueue(60, str(marks), **options)
                record = await ended(process_app, job)
                if marks.exists() and marks.read_text():
                    assert await (await add_in_process.aenqueue(1, 2)).aresult(60) == 3
                    return record

        async with process_app.worker(concurrency=2, stop_grace_ms=60_000):
            records = [await timed_out(polite)]
        async with process_app.worker(concurrency=2, stop_grace_ms=600):
            records.append(await timed_out(stubborn, stubborn=True))
        await process_app.aclose()
        return records, polite.read_text(), stubborn.read_text()

    records, polite, stubborn = work(scenario)
    assert [record.errors[0].kind for record in records] == ["TimedOut"] * 2
    assert polite.splitlines()[1:] == ["unwound"]
    assert len(stubborn.splitlines()) == 1  # SIGTERM was ignored, SIGKILL leaves no time


def test_a_cancel_reaches_a_child(tmp_path):
    async def scenario():
        marks = tmp_path / "marks"
        async with process_app.worker(stop_grace_ms=1_000):
            job = await sleep_in_process.aenqueue(60, str(marks))
            await until(lambda: marks.exists() and marks.read_text())
            await job.acancel()
            record = await ended(process_app, job)
        await process_app.aclose()
        return record.state, marks.read_text().splitlines()[-1]

    assert work(scenario) == (State.CANCELLED, "unwound")


def test_waiting_for_a_place_is_not_running(tmp_path, monkeypatch, witness):
    """There are fewer children than slots: the time-out of a run counts from when a child takes it."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)

    async def scenario():
        marks = tmp_path / "marks"
        async with process_app.worker(concurrency=10):
            warm = [await sleep_in_process.aenqueue(0.1, str(marks)) for _ in range(2)]
            assert [await job.aresult(60) for job in warm] == ["slept"] * 2  # two children are up
            made = [await sleep_in_process.using(timeout="1s").aenqueue(0.4, str(marks)) for _ in range(8)]
            records = [await ended(process_app, job) for job in made]
        await process_app.aclose()
        return records

    states = {record.state for record in work(scenario)}
    if witness.stood_still_s() < 0.3:  # else one may have run for as long as its time-out
        assert states == {State.SUCCEEDED}


def test_progress_and_follow_ups_of_a_child_arrive(tmp_path):
    async def scenario():
        async with process_app.worker(lease="1s"):
            job = await tell_in_process.aenqueue(str(tmp_path / "go"))

            async def progress():
                return (await job.arecord()).progress

            await until(progress)
            (tmp_path / "go").touch()
            record = await ended(process_app, job)
            failed = await ended(process_app, await fail_with_follow_up.aenqueue())
            children = [job for job in await ajobs(process_app, type="add") if job.payload == b'{"a":1,"b":1}']
        await process_app.aclose()
        return record, failed, len(children)

    record, failed, children = work(scenario)
    assert (record.state, failed.state, children) == (State.SUCCEEDED, State.FAILED, 1)
    assert (record.progress, record.progress_note) == (0.25, "a quarter")


def test_a_child_serves_many_jobs():
    async def scenario():
        async with process_app.worker(concurrency=1):
            pids = {await (await pid_in_process.aenqueue()).aresult(60) for _ in range(5)}
        await process_app.aclose()
        return pids

    assert len(work(scenario)) == 1


def test_a_child_that_died_while_idle_costs_no_attempt():
    async def scenario():
        async with process_app.worker(concurrency=1) as worker:
            first = await (await pid_in_process.aenqueue()).aresult(60)
            os.kill(first, signal.SIGKILL)
            (child,) = worker.engine.executors._alive
            await until(child.is_gone)
            job = await pid_in_process.aenqueue()
            second = await job.aresult(60)
            record = await job.arecord()
        await process_app.aclose()
        return first, second, record.attempt

    first, second, attempt = work(scenario)
    assert first != second
    assert attempt == 1


def test_a_middleware_sees_the_result_of_a_child_as_a_value():
    seen: list[Any] = []

    async def watch(ctx, call_next):
        try:
            value = await call_next()
        except Exception as error:
            seen.append(type(error).__name__)
            raise
        seen.append(value)
        return value

    async def scenario():
        process_app.middleware(watch)
        try:
            async with process_app.worker():
                assert await (await add_in_process.aenqueue(1, 2)).aresult(60) == 3
                await ended(process_app, await fail_with_follow_up.aenqueue())
        finally:
            process_app.middlewares.clear()
        await process_app.aclose()

    work(scenario)
    assert seen[0] == 3
    assert len(seen) == 2
