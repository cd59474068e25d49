"""Durable steps where something is wrong: what cannot be kept, misuse, a store that is away, a worker that stops."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from process_jobs import app as process_app
from working import ended, faulty_app, new_app, store_of, until, work

from packhorse import Context, InvalidName, State, Unavailable
from packhorse.backends.base import Capabilities, Note
from packhorse.job import STEPS_BYTES_MAX, STEPS_MAX, Claimed
from packhorse.testing import drain, inline


def once(app: Any, task: Any, payload: Any = None, **options: Any) -> Any:
    """Run one job to its end; answers its record."""

    async def scenario():
        async with app.worker(lease="2s"):
            record = await ended(app, await app.aenqueue(task, payload, **options))
        await app.aclose()
        return record

    return work(scenario)


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
