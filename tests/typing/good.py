"""What a typed program may write. `mypy --strict` must find nothing; test_types.py runs it."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Any, assert_type

from packhorse import (
    Cancel,
    Context,
    Fail,
    Flow,
    Job,
    JobRecord,
    JobSpec,
    Packhorse,
    Parent,
    Results,
    Retry,
    Schedule,
    ScheduleHandle,
    Snooze,
    State,
    Task,
    Transaction,
    Workflow,
    WorkflowRun,
    chain,
    chord,
    group,
)

app = Packhorse("memory://typed")


@app.task
async def send_email(to: str, subject: str, body: str = "") -> str:
    """Send."""
    return f"{to}: {subject} {body}"


@app.task("add", max_attempts=5, timeout=30, queue="sums", backoff="50ms")
def add(a: int, b: int = 0) -> int:
    """Add."""
    return a + b


@app.task(executor="process", fail_on=ValueError)
def nothing() -> None:
    """Do nothing."""


@app.task
async def follow(ctx: Context, n: int) -> list[int]:
    """Ask for the context, which no caller passes."""
    ctx.then(add, {"a": n})
    ctx.progress(0.5, "half")
    if ctx.attempt > 3:
        raise Fail("enough")
    if ctx.cancelled:
        raise Cancel
    if n < 0:
        raise Retry("30s")
    if n == 0:
        raise Snooze(5)
    return [n]


@app.task("with.options")
def with_options(ctx: Context, name: str) -> str:
    """Ask for the context, registered with options."""
    return name + ctx.id


@app.task
def anything(payload: Any) -> None:
    """Take any payload."""


@app.schedule("0 9 * * *", tz="Europe/Paris", missed="all", overlap="skip", jitter="5s", payload={"a": 1})
@app.schedule(every="30s", name="often", queue="q")
@app.task
def again(a: int = 0) -> int:
    """Run again and again."""
    return a


def schedules() -> None:
    """Define and steer schedules from data."""
    assert_type(again.enqueue(a=1), Job[int])
    assert_type(app.schedules, dict[str, Schedule])
    handle = app.define_schedule(again, {"a": 1}, name="s", cron="@daily", paused=True, queue="q")
    assert_type(handle, ScheduleHandle)
    assert_type(app.enqueue("add", {"a": 1}, recurring={"cron_expression": "0 0 * * *"}), ScheduleHandle)
    assert_type(app.enqueue("add", {"a": 1}, queue="q"), Job[Any])
    assert_type(handle.record(), Schedule)
    assert_type(handle.next(3), list[datetime])
    assert_type(handle.run(), Job[Any])


def blocking() -> None:
    """Enqueue from blocking code."""
    assert_type(send_email.enqueue("a@example.com", subject="Hi"), Job[str])
    assert_type(send_email.enqueue("a", "b", "c").result(timeout=10), str)
    assert_type(add.enqueue(1), Job[int])
    assert_type(add.using(priority="high", delay="30s").enqueue(1, b=2).result(), int)
    assert_type(add.job(1), JobSpec)
    nothing_job = nothing.enqueue()
    assert_type(nothing_job, Job[None])
    assert_type(follow.enqueue(3), Job[list[int]])
    assert_type(follow.enqueue(n=3).result(), list[int])
    assert_type(with_options.enqueue("a"), Job[str])
    anything.enqueue({"a": 1})
    job = app.enqueue("by.name", {"any": 1}, at=datetime.now(UTC))
    assert_type(job.state, State)
    assert_type(job.record(), JobRecord)
    assert_type(app.enqueue_many([add.job(1), (add, {"a": 1}), {"type": "add"}]), list[Job[Any]])
    task: Task[..., Any] = add
    print(task.type)


async def in_async_code() -> None:
    """Enqueue from async code."""
    job = await send_email.aenqueue("a", "b")
    assert_type(job, Job[str])
    assert_type(await job.aresult(10), str)
    assert_type(await (await add.using(queue="x").aenqueue(1)).aresult(), int)
    assert_type(await (await follow.aenqueue(1)).aresult(), list[int])
    async with app.worker(queues=["sums"], concurrency=3, lease="10s"):
        pass


@app.task
async def sum_up(results: Results, factor: int = 1) -> int:
    """Ask for the results of the parents, which no caller passes."""
    total: int = sum(results.values())
    return factor * total


@app.task("sum.in.thread")
def sum_in_thread(ctx: Context, results: Results) -> list[str]:
    """Ask for both, registered with options."""
    value = ctx.blocking.step("add", add.handler, 1, b=2)
    assert_type(value, Any)
    assert_type(ctx.blocking.step("text", str.upper, "x"), str)
    assert_type(ctx.blocking.parents(), dict[str, Parent])
    return results.succeeded


async def load(n: int) -> bytes:
    """Load."""
    return bytes(n)


@app.task
async def in_steps(ctx: Context, n: int) -> int:
    """Work in durable steps."""
    assert_type(await ctx.step("load", load, n), bytes)
    assert_type(await ctx.step("count", len, [1, 2]), int)
    assert_type(await ctx.results(), Results)
    return n


@app.task
async def in_a_transaction(ctx: Context, n: int) -> None:
    """Settle in a transaction of its own."""
    connection = sqlite3.connect("jobs.db")
    await ctx.settle_in(connection, {"n": n})
    ctx.blocking.settle_in(connection)


async def transactions(connection: sqlite3.Connection) -> None:
    """Enqueue in a transaction."""
    with app.transaction(connection) as tx:
        assert_type(tx, Transaction)
        assert_type(tx.enqueue(add, {"a": 1}, priority="high"), Job[Any])
        assert_type(tx.enqueue_many([add.job(1), ("add", {"a": 1})]), list[Job[Any]])
    async with app.transaction(connection) as tx:
        assert_type(await tx.aenqueue("add", {"a": 1}), Job[Any])
        assert_type(await tx.aenqueue_many([add.job(1)]), list[Job[Any]])
    assert_type(add.using(connection=connection, delay="1s").enqueue(1), Job[int])
    assert_type(await add.using(connection=connection).aenqueue(1, b=2), Job[int])


async def workflows() -> None:
    """Build workflows, with all that may go into each other."""
    flow = chain(add.job(1), group(sum_up.job(), sum_in_thread.job()), group(add.job(n) for n in range(3)))
    assert_type(flow, Flow)
    workflow = app.workflow(chord([add.job(1), flow], sum_up.job(factor=2)), name="all")
    node = workflow.add("one", in_steps.job(1), after=["two", add.job(1), app.job("id")], after_failed="continue")
    workflow.add("two", app.spec("by name"), after=node)
    assert_type(workflow.enqueue(), WorkflowRun)
    run = await workflow.aenqueue()
    assert_type(await run.aresult("5m", nodes=["one"]), dict[str, Any])
    assert_type(run.state, dict[State, int])
    assert_type(run.jobs["one"], Job[Any])
    assert_type(app.batch([add.job(1)], then=sum_up.job()), Workflow)
    assert_type(sum_up.enqueue(factor=3), Job[int])
