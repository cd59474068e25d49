"""Each run has a context of its own; a fork in a handler makes no second worker; failures leave nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
from typing import Any

import pytest
from process_jobs import app as process_app
from process_jobs import end as end_in_process
from working import ended, new_app, until, work

from packhorse import Context, State

current_user: contextvars.ContextVar[str] = contextvars.ContextVar("current_user", default="nobody")
connection: contextvars.ContextVar[str] = contextvars.ContextVar("connection", default="none")


@pytest.mark.parametrize("concurrency", [1, 10])
def test_context_variables_do_not_leak_from_run_to_run(concurrency):
    app = new_app()

    @app.task
    async def on_loop(n: int) -> list[str]:
        before = current_user.get()
        current_user.set(f"user {n}")
        await asyncio.sleep(0)
        inner = await asyncio.create_task(_inner())
        await asyncio.sleep(0.001)
        return [before, current_user.get(), inner]

    @app.task
    async def at_once(n: int) -> list[str]:
        before = current_user.get()
        current_user.set(f"user {n}")
        return [before, current_user.get(), current_user.get()]

    @app.task
    def in_thread(n: int) -> list[str]:
        before = current_user.get()
        current_user.set(f"user {n}")
        return [before, current_user.get(), current_user.get()]

    async def scenario():
        made = []
        for n in range(10):
            made += [await task.aenqueue(n) for task in (on_loop, at_once, in_thread)]
        current_user.set("the program itself")
        await app.worker(concurrency=concurrency, burst=True).run()
        results = [await job.aresult(1) for job in made]
        assert current_user.get() == "the program itself"
        await app.aclose()
        return results

    for number, (before, after, inner) in enumerate(work(scenario)):
        n = number // 3
        assert (after, inner) == (f"user {n}", f"user {n}")
        assert before == "the program itself"  # what was set when the worker started


async def _inner() -> str:
    return current_user.get()


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_what_the_lifespan_sets_is_seen_by_every_run(executor):
    app = new_app()

    @app.lifespan
    async def connect(app):
        connection.set("open")
        yield {"state": "too"}
        connection.set("closed")

    async def on_loop(ctx: Context) -> list[Any]:
        await asyncio.sleep(0)
        return [connection.get(), ctx.state]

    def in_thread(ctx: Context) -> list[Any]:
        return [connection.get(), ctx.state]

    task = app.task("look")(on_loop if executor == "async" else in_thread)

    async def scenario():
        async with app.worker():
            job = await app.aenqueue(task)
            answer = await app.job(job.id).aresult(60)
        await app.aclose()
        return answer

    assert work(scenario) == ["open", {"state": "too"}]


def test_middleware_and_handler_share_one_context():
    app = new_app()

    @app.middleware
    async def sign_in(ctx, call_next):
        current_user.set(f"signed in for {ctx.type}")
        return await call_next()

    @app.task
    async def on_loop() -> str:
        await asyncio.sleep(0)
        return current_user.get()

    @app.task
    def in_thread() -> str:
        return current_user.get()

    async def scenario():
        async with app.worker(concurrency=1):
            answers = [await (await task.aenqueue()).aresult(60) for task in (on_loop, in_thread)]
        await app.aclose()
        return answers

    assert work(scenario) == ["signed in for on_loop", "signed in for in_thread"]


# ---- forks ---------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("how", ["at once", "after waiting", "and then waits", "and raises", "in a thread"])
def test_a_copy_that_waits_ends(how):
    """The copy of a runner that `os.fork` in a handler makes never settles, never runs another job, and ends."""
    app = new_app()
    reader, writer = os.pipe()
    pids: list[int] = []

    def fork() -> int:
        pid = os.fork()
        if pid:
            pids.append(pid)
        else:
            os.write(writer, b"copy;")
        return pid

    async def on_loop() -> str:
        if how == "after waiting":
            await asyncio.sleep(0.001)
        # Made before the fork: after it, asyncio itself refuses the copy a new one.
        nap = asyncio.get_running_loop().create_future()
        timer = asyncio.get_running_loop().call_later(0.05, nap.set_result, None)
        pid = fork()
        if how == "and then waits":
            await nap  # long enough for the copy to run the neighbours to their end, did it go on
        timer.cancel()
        if how == "and raises" and not pid:
            raise ValueError("in the copy")
        return "the original" if pid else "the copy"

    def in_thread() -> str:
        return "the original" if fork() else "the copy"

    @app.task
    async def neighbour() -> None:
        await asyncio.sleep(0.005)
        os.write(writer, f"neighbour in {os.getpid()};".encode())

    task = app.task("forks")(in_thread if how == "in a thread" else on_loop)

    async def scenario():
        async with app.worker(concurrency=5):
            neighbours = [await neighbour.aenqueue() for _ in range(3)]
            job = await app.aenqueue(task)
            neighbours += [await neighbour.aenqueue() for _ in range(3)]
            assert await app.job(job.id).aresult(60) == "the original"
            for other in neighbours:
                await ended(app, other)
            (pid,) = pids
            status = await until(lambda: _waited(pid), limit_s=60)
        await app.aclose()
        return status

    status = work(scenario)
    assert os.waitstatus_to_exitcode(status[1]) == 0
    os.close(writer)
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    assert said.count("copy;") == 1
    assert said.count("neighbour in ") == 6
    assert said.count(f"neighbour in {os.getpid()};") == 6


def _waited(pid: int) -> tuple[int, int] | None:
    done = os.waitpid(pid, os.WNOHANG)
    return done if done[0] else None


def test_a_fork_in_a_child_process_makes_no_second_answer():
    async def scenario():
        async with process_app.worker(concurrency=1):
            first = await end_in_process.aenqueue("fork")
            second = await end_in_process.aenqueue("value")
            answers = [await first.aresult(60), await second.aresult(60)]
        await process_app.aclose()
        return answers

    assert work(scenario) == ["the original", "fine"]


# ---- memory, and asyncio's own checks ------------------------------------------------------------------------


class Block:
    """What a handler's frame holds; counts how many there are."""

    alive = 0

    def __init__(self) -> None:
        type(self).alive += 1

    def __del__(self) -> None:
        type(self).alive -= 1


@pytest.mark.parametrize("kind", ["async", "thread", "chained"])
def test_b6_failing_jobs_leave_nothing_behind(kind, caplog):
    """B6: tracebacks hold frames, frames hold everything: none may be kept. 20,000 failures; fewer in threads."""
    app = new_app()

    async def on_loop(n: int) -> None:
        block = Block()  # noqa: F841  # held by the traceback's frame
        if n % 2:
            await asyncio.sleep(0)
        raise ValueError("x" * 1_000)

    def in_thread(n: int) -> None:
        block = Block()  # noqa: F841
        raise ValueError("x" * 1_000)

    async def chained(n: int) -> None:
        try:
            await on_loop(n)
        except ValueError as error:
            raise RuntimeError("again") from error

    handler = {"async": on_loop, "thread": in_thread, "chained": chained}[kind]
    task = app.task("fails", max_attempts=1)(handler)
    rounds, size = (5, 4_000) if kind == "async" else (4, 500)

    async def scenario():
        used, blocks = [], []
        async with app.worker(concurrency=20, keep_failed_ms=0) as worker:
            backend = await app.backend()
            for _ in range(rounds):
                await app.aenqueue_many([app.spec(task, {"n": n}) for n in range(size)])

                async def all_gone():
                    await worker.engine.ticker.tick()  # drops what has ended
                    return worker.engine.runner.holding == 0 and not (await backend.counts())

                await until(all_gone, limit_s=60)
                caplog.clear()  # pytest keeps what is logged, and of a slow round more is
                gc.collect()
                used.append(sys.getallocatedblocks())
                blocks.append(Block.alive)
        await app.aclose()
        return used, blocks

    used, blocks = work(scenario, limit_s=100)
    assert max(blocks) <= 20, blocks  # the last run of each slot or thread, at most
    assert used[-1] - used[1] < 5 * size, used


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_asyncio_s_debug_mode_has_nothing_to_say(executor, caplog, recwarn):
    app = new_app()

    @app.lifespan
    async def life(app):
        yield "state"

    async def on_loop(n: int, ctx: Context) -> int:
        await asyncio.sleep(0)
        ctx.progress(0.5)
        if n % 3 == 0 and ctx.attempt == 1:
            raise ValueError("once more")
        return n

    def in_thread(n: int, ctx: Context) -> int:
        if n % 3 == 0 and ctx.attempt == 1:
            raise ValueError("once more")
        return n

    task = app.task("job", backoff=0, timeout=60)(on_loop if executor == "async" else in_thread)

    async def scenario():
        asyncio.get_running_loop().slow_callback_duration = 100  # a machine may stand still
        async with app.worker(lease="1s"):
            made = [await app.aenqueue(task, {"n": n}) for n in range(30)]
            results = [await app.job(job.id).aresult(60) for job in made]
        states = (await app.acounts())["default"].states
        await app.aclose()
        return results, states

    results, states = work(scenario, debug=True)
    assert results == list(range(30))
    assert states == {State.SUCCEEDED: 30}
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelname != "DEBUG"] == []
    assert [str(warning.message) for warning in recwarn] == []
