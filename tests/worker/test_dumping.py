"""A runner that does not answer is asked for its stacks by a signal, and that never hurts it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from packhorse.observe.meters import Meters
from packhorse.observe.stacks import Stack, read_dump
from packhorse.worker.child import Child
from packhorse.worker.launch import Launched
from packhorse.worker.link import Ready
from packhorse.worker.page import Page
from tests.witness import boot_s

START = """
import faulthandler, random, sys, threading
from packhorse.worker import dumping
from packhorse.worker.page import Page

faulthandler.enable()
dumping.accept(Page(int(sys.argv[1])))
"""

MOVES = (
    START
    + """
sys.setrecursionlimit(100_000)


def deep(depth):
    return deep(depth - 1) if depth else 0


def work():
    while True:
        deep(random.randrange(50, 2_000))
        names = {}  # code that goes, too
        exec("def new(depth):\\n    return new(depth - 1) if depth else 0\\n", names)
        names["new"](100)


for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
work()
"""
)

STANDS = (
    START
    + """
import ctypes


def holds_the_lock():
    print("ready", flush=True)
    ctypes.PyDLL(None).pause()


def waits(event):
    event.wait()


threading.Thread(target=waits, args=(threading.Event(),), daemon=True).start()
threading.Thread(target=holds_the_lock).start()
while True:
    sum(range(10))
"""
)

IS_ANOTHER = (
    START
    + """
import os
os.execvp("sh", ["sh", "-c", "echo ready; read line; exit 7"])
"""
)


@asynccontextmanager
async def runner(script: str) -> AsyncIterator[tuple[Child, subprocess.Popen[bytes]]]:
    """A process that stands for a runner, as its keeper sees it."""
    page = Page.create()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(page.fd)],
        pass_fds=[page.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    link, theirs = socket.socketpair()
    inspection, inspected = socket.socketpair()
    with theirs, inspected:
        child = await Child.adopt(Launched(process, link, page, inspection), "worker", Meters().sheet())
        child.ready = cast("Ready", "told so")
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
            yield child, process
        finally:
            child.kill("the test is over")
            await child.ended()
            child.link.close()
            child.inspection.close()
            page.close()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def functions(stack: Stack) -> list[str]:
    return [frame.function for frame in stack.frames]


def test_a_process_that_was_only_late_lives_on() -> None:
    """With many busy threads, or without time for any, it moves while it is asked."""

    async def main() -> None:
        async with runner(MOVES) as (child, process):
            shown = 0
            for _ in range(100):
                stacks = read_dump(await child.dump())
                assert process.poll() is None, await child.ended()
                shown += bool(stacks) and stacks[0].is_loop
            assert shown  # others came too late, on a machine without time

    asyncio.run(main())


def test_every_thread_shows_its_own_stack() -> None:
    async def main() -> None:
        async with runner(STANDS) as (child, _):
            end_s = boot_s() + 60
            while len(stacks := read_dump(await child.dump())) < 3:  # not all are in time where there is none
                assert boot_s() < end_s
            loop, *others = stacks
            assert loop.is_loop
            assert functions(loop)[-1] == "<module>"
            theirs = {name for stack in others for name in functions(stack)}
            assert {"holds_the_lock", "waits"} <= theirs
            while not (stacks := read_dump(await child.dump(whole=False))):
                assert boot_s() < end_s
            assert [functions(stack)[-1] for stack in stacks] == ["<module>"]

    asyncio.run(main())


def test_a_process_that_is_another_program_by_now_is_not_ended() -> None:
    async def main() -> None:
        async with runner(IS_ANOTHER) as (child, process):
            assert await child.dump() == ""
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert await child.ended() == "ended with exit code 7"

    asyncio.run(main())


def test_dumps_wait_for_each_other() -> None:
    async def main() -> None:
        async with runner(STANDS) as (child, _):
            texts = await asyncio.gather(*(child.dump() for _ in range(5)))
            assert any(texts)
            for text in filter(read_dump, texts):
                heads = [line for line in text.splitlines() if line.endswith("(most recent call first):")]
                shown = [line for line in heads if "hread" in line]
                assert shown[0].startswith("Current thread")
                assert len(shown) == len(set(shown)) <= 3, text

    asyncio.run(main())


def test_a_process_that_is_gone_shows_nothing() -> None:
    async def main() -> None:
        async with runner(STANDS) as (child, process):
            os.kill(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            assert read_dump(await child.dump()) == []

    asyncio.run(main())
