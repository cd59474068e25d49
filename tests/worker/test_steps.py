"""Durable steps: done once, remembered for every further attempt, never believed before they are kept."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import pytest
from process_jobs import app as process_app
from working import ended, faulty_app, new_app, store_of, until, work

from packhorse import Context, LeaseLost, State, Unavailable
from packhorse.backends.base import Rerun
from packhorse.backends.memory import MemoryBackend


@dataclass
class Paid:
    order: int
    cents: int = 100


def once(app: Any, task: Any, payload: Any = None, **options: Any) -> Any:
    """Run one job to its end; answers its record."""

    async def scenario():
        async with app.worker(lease="2s"):
            record = await ended(app, await app.aenqueue(task, payload, **options))
        await app.aclose()
        return record

    return work(scenario)


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_a_kept_step_is_not_done_again(executor):
    app = new_app()
    done: list[str] = []

    async def pay(order: int) -> Paid:
        done.append("pay")
        return Paid(order)

    def pay_blocking(order: int) -> Paid:
        done.append("pay")
        return Paid(order)

    def mail(paid: Paid, *, copies: int = 1) -> dict[str, int]:
        done.append("mail")
        if done.count("mail") < 3:
            raise ValueError("no line")
        return {"cents": paid.cents, "copies": copies}

    async def on_loop(ctx: Context) -> Any:
        paid = await ctx.step("pay", pay, 7)
        assert paid == Paid(7)  # read as its annotation says, made or found
        return await ctx.step("mail", mail, paid, copies=2)

    def in_thread(ctx: Context) -> Any:
        paid = ctx.blocking.step("pay", pay_blocking, order=7)
        assert paid == Paid(7)
        return ctx.blocking.step("mail", mail, paid, copies=2)

    task = app.task("order", backoff=0)(on_loop if executor == "async" else in_thread)
    record = once(app, task)
    assert record.state is State.SUCCEEDED
    assert record.attempt == 3
    assert done == ["pay", "mail", "mail", "mail"]
    assert json.loads(record.result) == {"cents": 100, "copies": 2}
    assert {name: json.loads(data) for name, data in record.steps.items()} == {
        "pay": {"order": 7, "cents": 100},
        "mail": {"cents": 100, "copies": 2},
    }


@pytest.mark.parametrize(
    ("task", "words"), [("steps_blocking", ["one", "two"]), ("steps_async", ["one", "two", "three"])]
)
def test_steps_in_a_child_process(tmp_path, task, words):
    marks = tmp_path / "marks"
    record = once(process_app, task, {"marks": str(marks)})
    assert record.state is State.SUCCEEDED, record.errors
    assert record.attempt == 2
    assert marks.read_text().split() == words
    assert json.loads(record.result) == words


def test_steps_run_side_by_side_and_share_a_heartbeat():
    app, backend = faulty_app()
    sizes: list[int] = []
    heartbeat = backend.heartbeat

    async def counting(info: Any, lease_ms: int, notes: Any = ()) -> Any:
        sizes.append(len([note for note in notes if note.step is not None]))
        await asyncio.sleep(0.01)
        return await heartbeat(info, lease_ms, notes)

    backend.heartbeat = counting  # type: ignore[method-assign]
    running = [0, 0]

    async def part(number: int) -> int:
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0)
        running[0] -= 1
        return number

    @app.task
    async def many(ctx: Context, count: int) -> int:
        return sum(await asyncio.gather(*(ctx.step(f"s{number}", part, number) for number in range(count))))

    async def scenario():
        async with app.worker(lease="60s"):
            jobs = await app.aenqueue_many([(many, {"count": 50}) for _ in range(10)])
            results = [await job.aresult(60) for job in jobs]
        await app.aclose()
        return results

    assert work(scenario) == [sum(range(50))] * 10
    assert sum(sizes) == 500
    assert len([size for size in sizes if size]) <= 20, sizes
    assert running[1] > 1


def test_steps_and_progress_of_many_runs_keep_to_the_size_of_a_call():
    app, backend = faulty_app()
    heartbeat = backend.heartbeat
    sizes: list[int] = []

    async def counting(info: Any, lease_ms: int, notes: Any = ()) -> Any:
        sizes.append(len(notes))
        return await heartbeat(info, lease_ms, notes)

    backend.heartbeat = counting  # type: ignore[method-assign]
    gate = asyncio.Event()

    @app.task(timeout="60s")
    async def one(ctx: Context) -> None:
        await gate.wait()
        ctx.progress(0.5)
        await ctx.step("s", lambda: 1)

    async def scenario():
        async with app.worker(concurrency=1_500, lease="60s") as worker:
            jobs = await app.aenqueue_many([(one,)] * 1_500)
            await until(lambda: worker.engine.runner.busy == 1_500)
            gate.set()
            await asyncio.gather(*(job.aresult(60) for job in jobs[::100]))
            await until(lambda: worker.engine.runner.busy == 0)
        await app.aclose()

    work(scenario)
    assert max(sizes) == 1_000
    assert sum(sizes) >= 1_500


def test_the_same_name_twice_is_one_step():
    app = new_app()
    done: list[int] = []

    async def slow(number: int) -> int:
        await asyncio.sleep(0.01)
        done.append(number)
        return number

    @app.task
    async def twice(ctx: Context) -> list[int]:
        both = await asyncio.gather(ctx.step("s", slow, 1), ctx.step("s", slow, 2))
        return [*both, await ctx.step("s", slow, 3)]

    record = once(app, twice)
    assert json.loads(record.result) == [1, 1, 1]
    assert done == [1]


def test_a_step_that_fails_is_done_again_in_the_same_run():
    app = new_app()
    done: list[str] = []

    def shaky() -> str:
        done.append("try")
        if len(done) < 3:
            raise ValueError("not yet")
        return "done"

    @app.task(max_attempts=1)
    async def stubborn(ctx: Context) -> str:
        for _ in range(2):
            with pytest.raises(ValueError, match="not yet"):
                await ctx.step("s", shaky)
        return await ctx.step("s", shaky)

    record = once(app, stubborn)
    assert record.state is State.SUCCEEDED
    assert done == ["try"] * 3


def test_a_step_interrupted_while_it_is_kept_is_not_done_again():
    """The handler gives up waiting for a slow store, and asks again: what is done is only kept again."""
    app, backend = faulty_app()
    done: list[int] = []
    away = [True]

    def check() -> None:
        if away[0]:
            raise Unavailable("away")

    @app.task(max_attempts=1)
    async def impatient(ctx: Context) -> int:
        backend.fail["heartbeat"] = check
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ctx.step("s", lambda: done.append(1) or 5)
        away[0] = False
        return await ctx.step("s", lambda: done.append(2) or 6)

    record = once(app, impatient)
    assert record.state is State.SUCCEEDED, record.errors
    assert json.loads(record.result) == 5
    assert done == [1]


def test_a_store_that_is_away_is_waited_for():
    app, backend = faulty_app()
    failures: list[int] = []

    def check() -> None:
        if len(failures) < 3:
            failures.append(1)
            raise Unavailable("away")

    @app.task(max_attempts=1)
    async def patient(ctx: Context) -> int:
        backend.fail["heartbeat"] = check
        return await ctx.step("s", lambda: 5)

    record = once(app, patient)
    assert record.state is State.SUCCEEDED
    assert record.steps == {"s": b"5"}


@pytest.mark.parametrize("executor", ["async", "thread"])
@pytest.mark.parametrize("reason", ["timeout", "cancel"])
def test_a_run_that_waits_for_a_store_can_be_stopped(executor, reason):
    app, backend = faulty_app()

    def away() -> None:
        raise Unavailable("away")

    async def on_loop(ctx: Context) -> None:
        backend.fail["heartbeat"] = away
        await ctx.step("s", lambda: 1)

    def in_thread(ctx: Context) -> None:
        backend.fail["heartbeat"] = away
        ctx.blocking.step("s", lambda: 1)

    task = app.task("stuck", max_attempts=1, timeout="0.2s" if reason == "timeout" else "60s")(
        on_loop if executor == "async" else in_thread
    )

    async def scenario():
        async with app.worker(lease="60s") as worker:
            job = await app.aenqueue(task)
            await until(lambda: "heartbeat" in backend.fail)
            if reason == "cancel":
                worker.engine.runner.stop_all("cancel")
            record = await ended(app, job)
            backend.fail.clear()
        await app.aclose()
        return record

    record = work(scenario)
    assert record.state is (State.FAILED if reason == "timeout" else State.CANCELLED)
    assert record.errors[-1].kind == ("TimedOut" if reason == "timeout" else "Cancelled")


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_a_lost_lease_is_an_error_inside_the_handler_and_counts_for_nothing(executor):
    """The old run's step is not kept, the old run's end is refused, the new run does the step itself."""
    app = new_app()
    heard: list[str] = []
    lost = asyncio.Event()

    def effect(attempt: int) -> int:
        return attempt

    async def on_loop(ctx: Context) -> int:
        await until(lost.is_set if ctx.attempt == 1 else lambda: heard)
        try:
            return await ctx.step("s", effect, ctx.attempt)
        except LeaseLost as error:
            heard.append(str(error))
            return -1  # even a handler that takes it for a success decides nothing

    def in_thread(ctx: Context) -> int:
        while not (lost.is_set() if ctx.attempt == 1 else heard):
            time.sleep(0.002)
        try:
            return ctx.blocking.step("s", effect, ctx.attempt)
        except LeaseLost as error:
            heard.append(str(error))
            return -1

    task = app.task("contested")(on_loop if executor == "async" else in_thread)

    async def scenario():
        async with app.worker(lease="60s") as worker:
            job = await app.aenqueue(task)
            await until(lambda: worker.engine.runner.started == 1)
            await until(lambda: worker.engine.runner.busy == 1)
            await worker.engine.backend.retire(worker.engine.info.id, "an operator's mistake")
            lost.set()
            await until(lambda: heard)
            record = await ended(app, job)
        await app.aclose()
        return record

    record = work(scenario)
    assert record.state is State.SUCCEEDED
    assert json.loads(record.result) == 2
    assert record.steps == {"s": b"2"}
    assert len(heard) == 1
    assert "was taken from this run; its step s is not kept" in heard[0]


def test_a_lost_lease_is_heard_in_a_child_process(tmp_path):
    marks = tmp_path / "marks"

    class Losing(MemoryBackend):
        async def heartbeat(self, worker: Any, lease_ms: int, notes: Any = ()) -> Any:
            if any(note.step for note in notes) and not marks.read_text().count("two"):
                with marks.open("a") as file:
                    file.write("two\n")
                await self.retire(worker.id, "an operator's mistake")
            return await super().heartbeat(worker, lease_ms, notes)

    async def scenario():
        backend = await process_app.backend()
        losing = Losing(store_of(process_app))
        process_app._backends[asyncio.get_running_loop()] = losing
        async with process_app.worker(lease="60s"):
            record = await ended(process_app, await process_app.aenqueue("lose_a_step", {"marks": str(marks)}))
        process_app._backends[asyncio.get_running_loop()] = backend
        await process_app.aclose()
        return record

    record = work(scenario)
    assert record.state is State.SUCCEEDED
    assert json.loads(record.result) == "attempt 2"
    assert marks.read_text().split("\n")[:2] == ["one", "two"]


def test_a_rerun_keeps_the_steps_unless_the_payload_changes():
    app = new_app()
    done: list[int] = []

    @app.task
    async def work_on(ctx: Context, n: int) -> int:
        return await ctx.step("s", lambda: done.append(n) or n)

    async def scenario():
        async with app.worker():
            job = await app.aenqueue(work_on, {"n": 1})
            assert await job.aresult(60) == 1
            await job.arerun()
            assert await job.aresult(60) == 1
            backend = await app.backend()
            await backend.rerun([Rerun(id=job.id, payload=b'{"n":2}')])
            assert await job.aresult(60) == 2
        await app.aclose()

    work(scenario)
    assert done == [1, 2]
