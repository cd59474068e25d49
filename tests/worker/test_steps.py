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

from packhorse import Context, InvalidName, LeaseLost, State, Unavailable
from packhorse.backends.base import Capabilities, Note, Rerun
from packhorse.backends.memory import MemoryBackend
from packhorse.job import STEPS_BYTES_MAX, STEPS_MAX, Claimed
from packhorse.testing import drain, inline


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
            results = [await job.aresult(10) for job in jobs]
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
            await asyncio.gather(*(job.aresult(20) for job in jobs[::100]))
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
            assert await job.aresult(5) == 1
            await job.arerun()
            assert await job.aresult(5) == 1
            backend = await app.backend()
            await backend.rerun([Rerun(id=job.id, payload=b'{"n":2}')])
            assert await job.aresult(5) == 2
        await app.aclose()

    work(scenario)
    assert done == [1, 2]


class Wild:
    pass


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Wild, "its result cannot be kept: .*Wild"),
        (lambda: "x" * (1 << 20), "its result cannot be kept: 1,048,578 bytes"),
        (lambda: float("nan"), "its result cannot be kept"),
    ],
    ids=["no JSON", "too large", "nan"],
)
def test_a_result_that_cannot_be_kept_fails_the_job_for_good(value, why):
    app = new_app()
    done: list[int] = []

    def make() -> Any:
        done.append(1)
        return value()

    @app.task(max_attempts=5, backoff=0)
    async def bad(ctx: Context) -> None:
        await ctx.step("s", make)

    record = once(app, bad)
    assert record.state is State.FAILED
    assert record.errors[-1].kind == "Fail"
    import re

    assert re.search(why, record.errors[-1].message)
    assert done == [1]


def test_the_bounds_of_all_steps_of_a_job():
    app = new_app()

    @app.task(max_attempts=1)
    async def many(ctx: Context, count: int) -> int:
        for number in range(count):
            await ctx.step(f"s{number}", lambda: None)
        return count

    @app.task(max_attempts=1)
    async def large(ctx: Context, sizes: list[int]) -> int:
        for number, size in enumerate(sizes):
            await ctx.step(f"s{number}", lambda size=size: "x" * (size - 2))
        return len(sizes)

    quarter = STEPS_BYTES_MAX // 4
    assert once(app, many, {"count": STEPS_MAX}).state is State.SUCCEEDED
    failed = once(app, many, {"count": STEPS_MAX + 1})
    assert "at most 1,000 steps" in failed.errors[-1].message
    assert len(failed.steps) == STEPS_MAX
    assert once(app, large, {"sizes": [quarter] * 4}).state is State.SUCCEEDED
    failed = once(app, large, {"sizes": [*[quarter] * 4, 3]})
    assert "4,194,304 bytes in all" in failed.errors[-1].message


def test_names_and_misuse():
    app = new_app()

    async def never() -> None:
        raise AssertionError

    @app.task(max_attempts=1)
    async def misuse(ctx: Context) -> str:
        with pytest.raises(InvalidName):
            await ctx.step("no name", never)
        with pytest.raises(RuntimeError, match=r"ctx\.blocking would stop the event loop"):
            ctx.blocking.step("s", print)
        with pytest.raises(TypeError, match="needs an async handler"):
            await asyncio.to_thread(ctx.blocking.step, "s", never)
        with pytest.raises(TypeError, match="needs an async handler"):
            await asyncio.to_thread(ctx.blocking.step, "s", app.task("never")(never))
        with pytest.raises(RuntimeError, match=r"another event loop.*ctx\.blocking"):
            await asyncio.to_thread(lambda: asyncio.run(ctx.step("s", never)))
        return await asyncio.to_thread(ctx.blocking.step, "s", lambda: "kept")

    record = once(app, misuse)
    assert record.state is State.SUCCEEDED, record.errors
    lone = Context(app, Claimed("id", "token", "t", b"{}", 1, 1, 0, "default", 5, 0, 0))
    with pytest.raises(RuntimeError, match=r"packhorse\.testing\.inline"):
        asyncio.run(lone.step("s", never))
    with pytest.raises(RuntimeError, match="only a run of a worker"):
        _ = lone.blocking


def test_a_backend_without_steps_says_so_before_the_step_is_done():
    app, backend = faulty_app()
    backend.capabilities = Capabilities(durable=False, shared=False)
    done: list[int] = []

    @app.task(max_attempts=1)
    async def wants(ctx: Context) -> None:
        await ctx.step("s", done.append, 1)

    record = once(app, wants)
    assert record.state is State.FAILED
    assert record.errors[-1].kind == "Unsupported"
    assert "make each step a job of its own" in record.errors[-1].message
    assert done == []


def test_a_refused_note_fails_its_own_run_only():
    app, backend = faulty_app()
    heartbeat = backend.heartbeat

    async def picky(info: Any, lease_ms: int, notes: list[Note] = []) -> Any:  # noqa: B006
        if any(note.step == "bad" for note in notes):
            from packhorse import InvalidOption

            raise InvalidOption("not this one")
        return await heartbeat(info, lease_ms, notes)

    backend.heartbeat = picky  # type: ignore[method-assign]

    @app.task(max_attempts=1)
    async def one(ctx: Context, name: str) -> str:
        return await ctx.step(name, lambda: name)

    async def scenario():
        async with app.worker(lease="60s"):
            jobs = await app.aenqueue_many([(one, {"name": name}) for name in ("good", "bad", "fine")])
            records = [await ended(app, job) for job in jobs]
        await app.aclose()
        return records

    good, bad, fine = work(scenario)
    assert (good.state, bad.state, fine.state) == (State.SUCCEEDED, State.FAILED, State.SUCCEEDED)
    assert bad.errors[-1].kind == "InvalidOption"


def test_inline_runs_steps_too():
    app = new_app()
    done: list[str] = []

    @app.task(backoff="1m")
    def twice(ctx: Context) -> str:
        ctx.blocking.step("first", done.append, "first")
        if ctx.attempt == 1:
            raise ValueError("later")
        return "done"

    with inline(app):
        job = twice.enqueue()
        assert job.state is State.SCHEDULED
        drain(app)
        assert job.result() == "done"
    assert done == ["first"]


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_a_worker_that_stops_gives_back_a_run_that_waits_for_the_store(executor):
    app, backend = faulty_app()

    def away() -> None:
        raise Unavailable("away")

    async def on_loop(ctx: Context) -> None:
        backend.fail["heartbeat"] = away
        await ctx.step("s", lambda: 1)

    def in_thread(ctx: Context) -> None:
        backend.fail["heartbeat"] = away
        ctx.blocking.step("s", lambda: 1)

    task = app.task("stuck")(on_loop if executor == "async" else in_thread)

    async def scenario():
        async with app.worker(lease="60s", shutdown_timeout="50ms"):
            job = await app.aenqueue(task)
            await until(lambda: "heartbeat" in backend.fail)
        record = await job.arecord()
        await app.aclose()
        return record

    record = work(scenario)
    assert (record.state, record.attempt, record.steps) == (State.PENDING, 0, None)


def test_a_backend_that_breaks_its_contract_is_heard_by_the_runs_and_ends_nothing_else():
    app, backend = faulty_app()
    heartbeat = backend.heartbeat
    broken = [True]

    async def breaking(info: Any, lease_ms: int, notes: Any = ()) -> Any:
        if notes and broken:
            raise ValueError("a bug of the backend")
        return await heartbeat(info, lease_ms, notes)

    backend.heartbeat = breaking  # type: ignore[method-assign]

    @app.task(max_attempts=1)
    async def one(ctx: Context) -> int:
        return await ctx.step("s", lambda: 1)

    assert once(app, one).errors[-1].message == "a bug of the backend"
    broken.clear()
    assert once(app, one).state is State.SUCCEEDED


def test_a_result_whose_annotation_means_nothing_stays_plain():
    app = new_app()

    def odd() -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
        return {"a": (1, 2)}

    @app.task
    async def one(ctx: Context) -> Any:
        return [await ctx.step("odd", odd), await ctx.step("builtin", divmod, 7, 2), await ctx.step("sum", sum, [1, 2])]

    assert json.loads(once(app, one).result) == [{"a": [1, 2]}, [3, 1], 3]


def test_a_task_is_a_function_too():
    app = new_app()

    @app.task
    async def double(n: int) -> int:
        return 2 * n

    @app.task
    async def one(ctx: Context) -> int:
        return await ctx.step("double", double, 4)

    assert once(app, one).result == b"8"


def test_a_child_process_hears_that_its_store_is_away(tmp_path):
    async def scenario():
        backend = await process_app.backend()
        get = backend.get

        async def away(ids: Any) -> Any:
            raise Unavailable("the store is away")

        backend.get = away  # type: ignore[method-assign]
        async with process_app.worker():
            job = await process_app.aenqueue("steps_blocking", {"marks": str(tmp_path / "m")}, max_attempts=1)
            await until(lambda: store_of(process_app).jobs[job.id].state is State.FAILED)
        backend.get = get  # type: ignore[method-assign]
        record = await job.arecord()
        await process_app.aclose()
        return record

    record = work(scenario)
    assert (record.errors[-1].kind, record.errors[-1].message) == ("Unavailable", "the store is away")
    assert not (tmp_path / "m").exists()
