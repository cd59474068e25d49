"""The app of the crash tests. Every start and end of a handler is one line in a file, written before anything else."""

import asyncio
import ctypes
import os
import signal
import time

from packhorse import Context, Packhorse

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
