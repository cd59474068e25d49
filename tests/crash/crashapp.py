"""The app of the crash tests. Every start and end of a handler is one line in a file, written before anything else."""

import asyncio
import ctypes
import itertools
import logging
import os
import re
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from typing import Any

from packhorse import Context, Fail, Failure, Packhorse, Results

app = Packhorse(os.environ.get("CRASH_URL", "memory://"))


def note(what: str, ctx: Context | Failure, pid: int = 0) -> None:
    line = f"{what} {ctx.id} {ctx.attempt} {pid or os.getpid()} {time.clock_gettime(time.CLOCK_BOOTTIME):.3f}\n"
    fd = os.open(os.environ["CRASH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


if os.environ.get("CRASH_HOOK"):

    @app.on_failure
    def tell(failure: Failure) -> None:
        note("told-final" if failure.final else "told", failure)


@app.task(backoff="20ms", backoff_max="200ms")
async def work(ctx: Context, ms: float = 5) -> int:
    note("start", ctx)
    await asyncio.sleep(ms / 1000)
    note("end", ctx)
    return ctx.attempt


@app.task
async def talk(ctx: Context, ms: float) -> None:
    """Log, and go on for a while."""
    logging.getLogger("crash.talk").info("attempt %d begins", ctx.attempt)
    await asyncio.sleep(ms / 1000)


@app.task(timeout="1h")
async def hold(ctx: Context, go: str) -> int:
    """Go on until the test lets it go, by making the file `go`."""
    note("start", ctx)
    while not os.access(go, os.F_OK):
        await asyncio.sleep(0.01)
    note("end", ctx)
    return ctx.attempt


@app.task(timeout="1h")
async def hold_still(ctx: Context) -> None:
    """Stop this process, and again before it does anything else, whenever it is made to go on."""

    def stop(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    signal.signal(signal.SIGCONT, stop)
    note("start", ctx)
    stop()
    await asyncio.Event().wait()


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


@app.task(max_attempts=1)
async def take_turn(ctx: Context) -> int:
    """Take the loop for a moment: what was claimed with it waits."""
    note("start", ctx)
    time.sleep(0.002)
    return ctx.attempt


@app.task(max_attempts=1, executor="process")
def in_child(ctx: Context) -> int:
    note("start", ctx)
    time.sleep(0.2)
    return ctx.attempt


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


# ---- handlers to be looked into: tests/worker/test_blocked_runners.py, tests/cli/test_profile.py ----------------


@app.task(timeout="1h")
async def sleep_badly(ctx: Context, ms: int, secret: str = "", go: str = "") -> int:
    """Block the loop in Python code, for `ms` or until the test makes the file `go`."""
    note("start", ctx)
    end = time.monotonic() + ms / 1000
    while time.monotonic() < end and not (go and os.access(go, os.F_OK)):
        time.sleep(min(0.05, max(0, end - time.monotonic())))
    note("end", ctx)
    return ctx.attempt


@app.task(timeout="1s", max_attempts=1)
async def match_badly(ctx: Context, secret: str = "") -> None:
    """Hold the interpreter lock in C for longer than anybody waits."""
    note("start", ctx)
    re.fullmatch("(a+)+$", "a" * 64 + "b")


def burn(ms: int) -> int:
    end = time.monotonic() + ms / 1000
    total = 0
    while time.monotonic() < end:
        total += sum(number * number for number in range(2_000))
    return total


@app.task(timeout="1h")
def burn_in_thread(ctx: Context, ms: int) -> int:
    note("start", ctx)
    return burn(ms)


@app.task(timeout="1h", executor="process")
def burn_in_process(ctx: Context, ms: int) -> int:
    note("start", ctx)
    return burn(ms)


@app.task(timeout="1h")
async def burn_on_loop(ctx: Context, ms: int) -> int:
    note("start", ctx)
    for _ in range(ms // 20):
        burn(20)
        await asyncio.sleep(0)
    return ctx.attempt


@app.task(timeout="1h", executor="process")
def chat(ctx: Context) -> None:
    """Talk with the runner without a pause, beside a program that the handler has started."""
    with subprocess.Popen(["sleep", "3600"]) as program:
        note("start", ctx)
        note("program", ctx, program.pid)
        for number in itertools.count():
            ctx.progress(0.5, "x" * 200)
            ctx.blocking.step(f"step{number % 50}", int)


async def wait_deep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@app.task(timeout="1h")
async def wait_for_others(ctx: Context, ms: int) -> int:
    note("start", ctx)
    await asyncio.gather(wait_deep(ms / 1000), wait_deep(ms / 1000))
    return ctx.attempt
