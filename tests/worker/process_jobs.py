"""Tasks for child processes: at module level, so that a child finds them by import."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from packhorse import Cancel, Context, Fail, Packhorse, Retry, Snooze

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
def tell(ctx: Context) -> None:
    """Tell progress, enqueue follow-ups, then wait until it may end."""
    ctx.progress(0.25, "a quarter")
    ctx.then(add, {"a": 1, "b": 1})
    time.sleep(0.4)


@app.task(executor="process", max_attempts=1)
def fail_with_follow_up(ctx: Context) -> None:
    """Enqueue a follow-up that must not exist."""
    ctx.then(add, {"a": 1, "b": 1})
    raise ValueError("no")


@app.task(executor="process")
def pid(ctx: Context) -> int:
    """Say which process this is."""
    return os.getpid()
