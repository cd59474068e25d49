"""Tasks for child processes: at module level, so that a child finds them by import."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from packhorse import Cancel, Context, Fail, LeaseLost, Packhorse, Results, Retry, Snooze

app = Packhorse("memory://process-jobs")


@app.task(executor="process")
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@app.task(executor="process")
async def add_async(a: int, b: int, ctx: Context) -> list[int]:
    """Add, in an async handler that asks for its context."""
    await asyncio.sleep(0)
    return [a + b, ctx.attempt]


@app.task(executor="process", max_attempts=2, backoff=0)
def end(how: str, marks: str = "") -> str:
    """End in one of many ways."""
    if marks:
        with Path(marks).open("a") as file:
            file.write(f"{how}\n")
    match how:
        case "value":
            return "fine"
        case "error":
            raise ValueError("from the child")
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "stop iteration":
            raise StopIteration("done")
        case "generator exit":
            raise GeneratorExit
        case "cancelled":
            raise asyncio.CancelledError
        case "os._exit":
            os._exit(7)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fork":
            if os.fork() == 0:
                return "the copy"
            os.wait()
            return "the original"
        case "huge text":
            raise ValueError("x" * 10_000_000)
        case "bad str":
            raise Silent
        case "not json":
            return object()  # type: ignore[return-value]
        case "too large":
            return "x" * (1 << 20)
        case "nan":
            return float("nan")  # type: ignore[return-value]
        case "recursion":
            return end.handler("recursion")
        case "retry":
            raise Retry("1h", reason="later")
        case "snooze":
            raise Snooze("1h")
        case "fail":
            raise Fail("for good")
        case "cancel":
            raise Cancel("not needed")
    return how


class Silent(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@app.task(executor="process", max_attempts=1)
def sleep(seconds: float, marks: str, stubborn: bool = False) -> str:
    """Sleep, and say in a file how it went."""
    with Path(marks).open("a") as file:
        print("started", os.getpid(), file=file, flush=True)
        try:
            end_s = time.monotonic() + seconds
            while (left := end_s - time.monotonic()) > 0:
                try:
                    time.sleep(left)
                except BaseException:
                    if not stubborn:
                        raise
        finally:
            print("unwound", file=file, flush=True)
    return "slept"


@app.task(executor="process")
def tell(ctx: Context, go: str) -> None:
    """Tell progress, enqueue follow-ups, then wait until it may end: until the test makes the file `go`."""
    ctx.progress(0.25, "a quarter")
    ctx.then(add, {"a": 1, "b": 1})
    while not os.access(go, os.F_OK):
        time.sleep(0.01)


@app.task(executor="process", max_attempts=1)
def fail_with_follow_up(ctx: Context) -> None:
    """Enqueue a follow-up that must not exist."""
    ctx.then(add, {"a": 1, "b": 1})
    raise ValueError("no")


@app.task(executor="process")
def pid(ctx: Context) -> int:
    """Say which process this is."""
    return os.getpid()


def _mark(marks: str, word: str) -> str:
    with Path(marks).open("a") as file:
        file.write(f"{word}\n")
    return word


@app.task(executor="process", backoff=0)
def steps_blocking(ctx: Context, marks: str, fail: bool = True) -> list[str]:
    """Two steps, and a failure between them on the first attempt."""
    done = [ctx.blocking.step("one", _mark, marks, "one")]
    if fail and ctx.attempt == 1:
        raise ValueError("between the steps")
    return [*done, ctx.blocking.step("two", _mark, marks, "two")]


@app.task(executor="process", backoff=0)
async def steps_async(ctx: Context, marks: str, fail: bool = True) -> list[str]:
    """The same, in an async handler, two steps at once."""
    done = await asyncio.gather(*(ctx.step(word, _mark, marks, word) for word in ("one", "two")))
    if fail and ctx.attempt == 1:
        os._exit(3)
    return [*done, await ctx.step("three", _mark, marks, "three")]


@app.task(executor="process")
def sum_of_parents(ctx: Context, results: Results) -> list[int]:
    """Ask for the parents in three ways."""
    return [sum(results.values()), sum(ctx.blocking.results().values()), len(ctx.blocking.parents())]


@app.task(executor="process")
async def sum_of_parents_async(ctx: Context) -> list[int]:
    """Ask for the parents in async code."""
    return [sum((await ctx.results()).values()), len(await ctx.parents())]


@app.task(executor="process", backoff=0)
def lose_a_step(ctx: Context, marks: str) -> str:
    """Say what a lost lease looks like from inside."""
    try:
        ctx.blocking.step("one", _mark, marks, "one")
    except LeaseLost as error:
        _mark(marks, f"LeaseLost {ctx.attempt}: {error}")
        raise
    return f"attempt {ctx.attempt}"
