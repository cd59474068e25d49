"""Middleware wraps every run, the first outermost; whatever it does with the run is what counts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from packhorse import Context, Retry, State
from packhorse.testing import drain, stored


def test_the_first_middleware_is_the_outermost(app):
    order: list[Any] = []

    @app.middleware
    async def outer(ctx: Context, call_next):
        order.append(("outer", ctx.type, ctx.attempt))
        try:
            return await call_next()
        finally:
            order.append("outer ends")

    @app.middleware
    async def inner(ctx, call_next):
        order.append("inner")
        return await call_next() * 2

    @app.task
    async def on_loop(n: int) -> int:
        order.append("handler")
        return n

    @app.task
    def in_thread(n: int) -> int:
        return n

    job, other = on_loop.enqueue(21), in_thread.enqueue(5)
    drain(app)
    assert order[:4] == [("outer", "on_loop", 1), "inner", "handler", "outer ends"]
    assert (job.result(), other.result()) == (42, 10)


def test_a_middleware_that_swallows_an_error_ends_the_job_well(app):
    @app.middleware
    async def forgiving(ctx, call_next):
        try:
            return await call_next()
        except ZeroDivisionError:
            return "forgiven"

    @app.task
    def divide() -> float:
        return 1 / 0

    job = divide.enqueue()
    drain(app)
    assert (job.state, job.result()) == (State.SUCCEEDED, "forgiven")


def test_a_middleware_that_raises_fails_the_run(app):
    @app.middleware
    async def strict(ctx, call_next):
        await call_next()
        raise PermissionError("after the handler")

    ran = []

    @app.task(max_attempts=1)
    async def work() -> None:
        ran.append(1)

    job = work.enqueue()
    drain(app)
    assert (job.state, ran) == (State.FAILED, [1])
    assert job.record().errors[0].kind == "PermissionError"


def test_a_middleware_may_keep_the_handler_from_running(app):
    @app.middleware
    async def gate(ctx, call_next):
        if ctx.attempt == 1:
            raise Retry("1h", reason="not yet")
        return await call_next()

    ran = []

    @app.task
    async def work() -> None:
        ran.append(1)

    with stored(app):
        job = work.enqueue()
        drain(app, scheduled=False)
        assert (job.state, ran) == (State.SCHEDULED, [])
        drain(app)
        assert (job.state, ran) == (State.SUCCEEDED, [1])


def test_what_a_middleware_answers_is_the_result(app):
    @app.middleware
    async def silent(ctx, call_next):
        await call_next()

    job = app.task("work")(lambda: "value").enqueue()
    drain(app)
    assert job.result() is None


# ---- lifespan and injection ----------------------------------------------------------------------------------


class Database:
    def __init__(self, name: str = "default") -> None:
        self.name = name
        self.open = True


def test_what_the_lifespan_yields_is_the_state_of_every_run(app):
    events: list[Any] = []

    @app.lifespan
    async def connect(app):
        events.append("up")
        yield Database("live")
        events.append("down")

    @app.task
    async def on_loop(ctx: Context) -> str:
        return ctx.state.name

    @app.task
    def in_thread(ctx: Context) -> str:
        return ctx.state.name

    first, second = on_loop.enqueue(), in_thread.enqueue()
    drain(app)
    assert (first.result(), second.result()) == ("live", "live")
    assert events == ["up", "down"] * (len(events) // 2)


def test_two_workers_of_one_app_each_have_their_own_lifespan(app):
    """One that stops must not take the other's state away."""

    @app.lifespan
    async def connect(app):
        database = Database()
        yield database
        database.open = False

    @app.task
    async def look(ctx: Context) -> bool:
        return ctx.state.open

    async def main():
        async with app.worker(queues=["a"]):
            async with app.worker(queues=["b"]):
                other = await look.using(queue="b").aenqueue()
                assert await other.aresult(60)
            job = await look.using(queue="a").aenqueue()
            assert await job.aresult(60)
        await app.aclose()

    asyncio.run(main())


def test_a_lifespan_that_fails_is_the_worker_s_failure(app):
    @app.lifespan
    async def connect(app):
        raise ConnectionError("no database")
        yield

    async def main():
        with pytest.raises(ConnectionError):
            async with app.worker():
                raise AssertionError("must not start")
        await app.aclose()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def _make() -> Database:
    return Database("function")


async def _make_async() -> Database:
    await asyncio.sleep(0)
    return Database("async function")


def _make_with_context(ctx: Context) -> Database:
    return Database(f"for {ctx.type}")


def _make_with_defaults(name: str = "from its default") -> Database:
    return Database(name)


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (_make, "function"),
        (_make_async, "async function"),
        (_make_with_context, "for look"),
        (_make_with_defaults, "from its default"),
        (Database, "default"),
        (lambda ctx: Database(ctx.queue), "default"),
    ],
    ids=["function", "async", "with context", "with defaults", "class", "lambda"],
)
@pytest.mark.parametrize("executor", ["async", "thread"])
def test_a_parameter_can_be_provided(app, factory, name, executor):
    app.provide(Database, factory)

    if executor == "async":

        async def look(n: int, db: Database) -> str:
            return db.name
    else:

        def look(n: int, db: Database) -> str:  # type: ignore[misc]
            return db.name

    task = app.task(look)
    job = task.enqueue(1)
    drain(app)
    assert job.result() == name
    assert job.record().payload == b'{"n":1}'


def test_a_provider_may_come_after_the_tasks_that_use_it(app):
    @app.task
    async def look(db: Database) -> str:
        return db.name

    app.provide(Database, _make)
    job = look.enqueue()
    drain(app)
    assert job.result() == "function"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_a_provider_cleans_up_whatever_became_of_the_run(app, kind, fails):
    events: list[str] = []

    def generator():
        try:
            yield Database("g")
        except ValueError as error:
            events.append(f"saw {error}")
            raise
        finally:
            events.append("closed")

    async def async_generator(ctx: Context):
        try:
            yield Database("g")
        except ValueError as error:
            events.append(f"saw {error}")
            raise
        finally:
            events.append("closed")

    app.provide(Database, generator if kind == "generator" else async_generator)

    @app.task(max_attempts=1)
    async def work(db: Database) -> str:
        if fails:
            raise ValueError("boom")
        return db.name

    job = work.enqueue()
    drain(app)
    assert events == (["saw boom", "closed"] if fails else ["closed"])
    assert job.state is (State.FAILED if fails else State.SUCCEEDED)


def test_a_provider_that_fails_fails_the_run(app):
    def broken():
        raise ConnectionError("no database")

    app.provide(Database, broken)

    @app.task(max_attempts=1)
    async def work(db: Database) -> None: ...

    job = work.enqueue()
    drain(app)
    assert job.record().errors[0].message == "no database"


# ---- the context ---------------------------------------------------------------------------------------------


def test_what_the_context_tells(app):
    seen = {}

    @app.task(queue="q", max_attempts=7)
    def look(ctx: Context) -> None:
        seen.update(
            id=ctx.id,
            type=ctx.type,
            queue=ctx.queue,
            attempt=ctx.attempt,
            max_attempts=ctx.max_attempts,
            key=ctx.key,
            tags=ctx.tags,
            meta=ctx.meta,
            state=ctx.state,
            cancelled=ctx.cancelled,
            app=ctx.app,
        )
        started = time.monotonic()
        assert not ctx.wait_cancelled(0.01)
        assert time.monotonic() - started < 60
        ctx.meta["changed"] = "no"
        ctx.log.info("said")

    job = look.using(key="k", tags=["t"], meta={"m": "1"}).enqueue()
    drain(app)
    assert seen == {
        "id": job.id,
        "type": "look",
        "queue": "q",
        "attempt": 1,
        "max_attempts": 7,
        "key": "k",
        "tags": ("t",),
        "meta": {"m": "1"},
        "state": None,
        "cancelled": False,
        "app": app,
    }
    assert job.record().meta == {"m": "1"}


def test_progress_has_bounds(app):
    errors = []

    @app.task
    def work(ctx: Context) -> None:
        for wrong in (-0.1, 1.1, float("nan")):
            try:
                ctx.progress(wrong)
            except Exception as error:
                errors.append(type(error).__name__)
        ctx.progress(0)
        ctx.progress(1, "x" * 10_000 + "\0\ud800")

    job = work.enqueue()
    drain(app)
    assert job.state is State.SUCCEEDED
    assert errors == ["InvalidOption"] * 3


def test_follow_ups_have_a_limit(app):
    @app.task
    def parent(ctx: Context) -> None:
        for _ in range(1_000):
            ctx.then("child")
        with pytest.raises(Exception, match="at most 1000 follow-ups"):
            ctx.then("child")

    job = parent.enqueue()
    drain(app)
    assert job.state is State.SUCCEEDED
