"""The app of the crash tests. Every start and end of a handler is one line in a file, written before anything else."""

import asyncio
import ctypes
import os
import signal
import sqlite3
import time
from contextlib import closing
from typing import Any

from packhorse import Context, Fail, Packhorse, Results

app = Packhorse(os.environ.get("CRASH_URL", "memory://"))


def note(what: str, ctx: Context) -> None:
    line = f"{what} {ctx.id} {ctx.attempt} {os.getpid()} {time.clock_gettime(time.CLOCK_BOOTTIME):.3f}\n"
    fd = os.open(os.environ["CRASH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


@app.task(backoff="20ms", backoff_max="200ms")
async def work(ctx: Context, ms: float = 5) -> int:
    note("start", ctx)
    await asyncio.sleep(ms / 1000)
    note("end", ctx)
    return ctx.attempt


@app.task
def block_thread(ctx: Context, ms: float) -> int:
    note("start", ctx)
    ctx.wait_cancelled(ms / 1000)
    return ctx.attempt


@app.task(timeout="1h")
async def hold_lock(ctx: Context, ms: int) -> int:
    """Hold the interpreter lock in C code: no thread of this process can run meanwhile."""
    note("start", ctx)
    ctypes.PyDLL(None).usleep(ms * 1000)
    note("end", ctx)
    return ctx.attempt


@app.task(timeout="1s", max_attempts=2, backoff="10ms")
async def wedge(ctx: Context) -> None:
    """Block the loop for good, far beyond the time-out."""
    note("start", ctx)
    while True:
        ctypes.PyDLL(None).usleep(100_000)


@app.task(max_attempts=3, backoff="10ms")
async def die(ctx: Context, how: str) -> None:
    note("start", ctx)
    if how == "exit":
        os._exit(1)
    os.kill(os.getpid(), signal.SIGSEGV if how == "segfault" else signal.SIGKILL)


@app.task(max_attempts=1, timeout="60s")
async def eat_memory(ctx: Context, megabytes: int) -> int:
    note("start", ctx)
    eaten = []
    for _ in range(megabytes):
        eaten.append(bytearray(os.urandom(1)) * (1 << 20))
        await asyncio.sleep(0.002)
    await asyncio.sleep(30)
    return len(eaten)


@app.task(backoff="10ms", backoff_max="50ms")
async def node(ctx: Context, ms: float = 1, fails: bool = False) -> int:
    """One job of a workflow."""
    note("start", ctx)
    await asyncio.sleep(ms / 1000)
    note("end", ctx)
    if fails:
        raise Fail("as planned")
    return 1


@app.task
async def join(ctx: Context, results: Results) -> dict[str, int]:
    note("start", ctx)
    note("end", ctx)
    return {"sum": sum(results[name] for name in results.succeeded), "failed": len(results.failed)}


def effect(ctx: Context, name: str) -> int:
    note(name, ctx)
    return ctx.attempt


@app.task(backoff="10ms", backoff_max="50ms")
async def five_steps(ctx: Context, ms: float = 50) -> list[int]:
    note("start", ctx)
    made = []
    for number in range(5):
        made.append(await ctx.step(f"step{number}", effect, ctx, f"step{number}"))
        await asyncio.sleep(ms / 1000)
    note("end", ctx)
    return made


@app.task(backoff="10ms", backoff_max="50ms")
def five_steps_and_kills(ctx: Context) -> list[int]:
    """Killed between two steps in the first attempt, within a step after its effect in the second."""
    note("start", ctx)

    def under_way(name: str) -> int:
        made = effect(ctx, name)
        if ctx.attempt == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    made = [ctx.blocking.step("step0", effect, ctx, "step0"), ctx.blocking.step("step1", effect, ctx, "step1")]
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    made.append(ctx.blocking.step("step2", effect, ctx, "step2"))
    made.append(ctx.blocking.step("step3", under_way, "step3"))
    made.append(ctx.blocking.step("step4", effect, ctx, "step4"))
    return made


@app.task(max_attempts=5, backoff="10ms", backoff_max="50ms")
def transfer(ctx: Context, kill: str, number: int) -> str:
    """An effect and the end of the job in one transaction. Killed in the first attempt where `kill` says."""
    note("start", ctx)
    with closing(connect()) as connection:
        connection.execute(f"INSERT INTO effects VALUES ({number})")
        ctx.then("work", {"ms": 1})
        if kill == "before settle_in" and ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ctx.blocking.settle_in(connection, number)
        if kill == "before the commit" and ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        connection.commit()
        if kill == "after the commit":
            os.kill(os.getpid(), signal.SIGKILL)
    note("end", ctx)
    return "ignored"


def connect() -> Any:
    """Connect as a handler would, to the store itself."""
    url = app.settings.url
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)
    import psycopg

    return psycopg.connect(url.partition("?")[0])
