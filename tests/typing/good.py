"""What a typed program may write. `mypy --strict` must find nothing; test_types.py runs it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, assert_type

from packhorse import (
    Cancel,
    Context,
    Fail,
    Job,
    JobRecord,
    JobSpec,
    Packhorse,
    Retry,
    Schedule,
    ScheduleHandle,
    Snooze,
    State,
    Task,
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
