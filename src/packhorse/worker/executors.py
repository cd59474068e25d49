"""Where handlers that are not async run: a pool of threads, and child processes that can be killed."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from .. import codec
from .. import outcome as outcomes
from ..app import Packhorse
from ..context import Context, Mark
from ..errors import LeaseLost, PackhorseError
from ..observe.current import CURRENT_JOB, CURRENT_TRACE, Here
from ..observe.job_log import RunLogs
from ..reach import Reach
from ..task import Task
from .exits import said_exit
from .forking import end_copy, forks
from .frames import (
    LENGTH_BYTES,
    ChildAnswer,
    ChildAsk,
    ChildDone,
    ChildJob,
    ChildLog,
    ChildNote,
    ChildSettled,
    ChildSetup,
    pack,
    unpack,
)
from .inspection import BlockingInspection
from .options import WorkerOptions


class Executors:
    """The threads and child processes of one engine, made when first needed."""

    def __init__(self, app: Packhorse, options: WorkerOptions) -> None:
        self._app = app
        self._options = options
        self._threads: ThreadPoolExecutor | None = None
        self._idle: dict[str, list[HandlerChild]] = {}
        self._alive: set[HandlerChild] = set()
        # Handlers in processes are there to use processors: more at once than that only costs memory.
        self._places = asyncio.Semaphore(min(options.concurrency, 2 * (os.cpu_count() or 1)))
        self.app_path: str | None = None
        self.here = Here("")
        self.logs: RunLogs | None = None  # who keeps what handlers in child processes log
        self.log_form: tuple[str, str] | None = None
        self._forks = forks()

    # ---- threads ---------------------------------------------------------------------------------------

    async def in_thread(self, handler: Callable[..., Any], kwargs: dict[str, Any], ctx: Context) -> Any:
        """Run a blocking handler in a thread. Told to stop, it waits for the thread: nobody can end it from outside."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="packhorse-job")
        context = contextvars.copy_context()
        if ctx.mark is not None:
            ctx.mark.wait()
        future = asyncio.get_running_loop().run_in_executor(
            self._threads, context.run, _guarded, handler, kwargs, self._forks, ctx.mark
        )
        try:
            value, error = await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            value, error = future.result()
        if isinstance(error, StopIteration):  # cannot be raised out of a coroutine
            raise outcomes.Ended(outcomes.from_exception(error))
        if error is not None:
            raise error
        return value

    def replace_threads(self) -> None:
        """Use new threads from now on: one of the old ones will not come back."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=False)
            self._threads = None

    # ---- child processes -------------------------------------------------------------------------------

    async def in_process(self, task: Task[..., Any], ctx: Context) -> Any:
        """Run a handler in a child process. Told to stop, the child gets SIGTERM, half the grace time, then SIGKILL."""
        ctx.hold_timeout()
        if ctx.mark is not None:
            ctx.mark.wait()
        async with self._places:
            ctx.restart_timeout()
            idle = self._idle.setdefault(task.type, [])
            while idle and idle[-1].is_gone():  # it died while it had nothing to do: no job's fault
                gone = idle.pop()
                self._alive.discard(gone)
                await gone.end(0)
            child = idle.pop() if idle else await self._start_child(task)
            if ctx.mark is not None:
                ctx.mark.begin()
            try:
                done = await child.run(ctx, self.logs)
            except BaseException:
                await child.end(self._options.stop_grace_ms / 2000)
                self._alive.discard(child)
                raise
            if done is None:
                how = await child.end(0)
                self._alive.discard(child)
                raise outcomes.Ended(outcomes.crashed(how))
            idle.append(child)
        ctx.follow_ups.extend(done.follow_ups)
        outcome = done.outcome
        if outcome.kind is not outcomes.Kind.SUCCEEDED:
            raise outcomes.Ended(outcome)
        # As a value, so that middleware sees no error where there is none.
        return None if outcome.result is None else codec.decode(outcome.result)

    async def _start_child(self, task: Task[..., Any]) -> HandlerChild:
        child = await HandlerChild.start()
        self._alive.add(child)
        child.send(
            ChildSetup(
                app=self.app_path,
                module=_module(task),
                task=task.type,
                url=self._app.settings.url,
                paths=sys.path,
                worker=self.here.id,
                keep_level=None if self.logs is None else self.logs.level,
                log_form=self.log_form,
            )
        )
        return child

    def children(self) -> list[HandlerChild]:
        """Answer the child processes. From any thread."""
        return list(self._alive)

    async def close(self) -> None:
        """Let the threads go and end the child processes. A stuck thread does not hold the worker up."""
        self.replace_threads()
        children, self._alive = self._alive, set()
        self._idle.clear()
        for child in children:
            if self._app.tracing() is None:
                child.kill()
            else:  # it sends its last spans, and ends: `end` waits a second for that
                child.hang_up()
        for child in children:  # seen to their end: no zombie, no open socket. tests/demo/test_jobs.py
            await child.end(0)


class HandlerChild:
    """A child process that runs handlers, one at a time."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        inspection: BlockingInspection,
    ) -> None:
        self._process = process
        self.pid = process.pid
        self.inspection = inspection
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls) -> HandlerChild:
        """Start a process in a group of its own, so that what the handler starts ends with it."""
        ours, theirs = socket.socketpair()
        inspecting, inspected = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "packhorse.worker.child_process",
            str(theirs.fileno()),
            str(inspected.fileno()),
            pass_fds=(theirs.fileno(), inspected.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        inspected.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer, BlockingInspection(inspecting))

    def send(self, frame: ChildSetup | ChildJob | ChildAnswer) -> None:
        """Send without waiting."""
        self._writer.write(pack(frame))

    def is_gone(self) -> bool:
        """Answer whether the process has ended."""
        return self._process.returncode is not None or self._reader.at_eof()

    async def run(self, ctx: Context, logs: RunLogs | None = None) -> ChildDone | None:
        """Run the job of `ctx`; None if the process died. What it logs goes to `logs`."""
        steps = ctx.reach is not None and ctx.reach.steps
        self.send(ChildJob(ctx.claimed, steps=steps, trace=_traceparent()))
        asked: set[asyncio.Task[None]] = set()
        try:
            while True:
                try:
                    head = await self._reader.readexactly(LENGTH_BYTES)
                    frame = unpack(await self._reader.readexactly(int.from_bytes(head)))
                except (asyncio.IncompleteReadError, ConnectionError):
                    return None
                if isinstance(frame, ChildNote):
                    ctx.keep_note(frame.note)
                elif isinstance(frame, ChildLog):
                    if logs is not None:
                        logs.add(ctx.claimed, frame.lines, frame.left_out)
                elif isinstance(frame, ChildAsk):
                    task = asyncio.get_running_loop().create_task(self._answer(frame, ctx.reach))
                    asked.add(task)
                    task.add_done_callback(asked.discard)
                elif isinstance(frame, ChildSettled):
                    ctx.settled = frame.settled
                elif isinstance(frame, ChildDone):
                    return frame
        finally:
            for task in asked:
                task.cancel()

    async def _answer(self, ask: ChildAsk, reach: Reach | None) -> None:
        answer = ChildAnswer(ask.number)
        try:
            if reach is None:
                answer.error = "this run cannot reach its store"
            elif ask.note is not None:
                await reach.keep(ask.note)
            else:
                answer.jobs = await reach.get(ask.ids)
        except LeaseLost as error:
            answer.lost = str(error)
        except PackhorseError as error:
            answer.error = str(error)
        self.send(answer)

    async def end(self, grace_s: float) -> str:
        """End the process: SIGTERM, `grace_s` seconds, SIGKILL for its group. Answers how it ended."""
        if grace_s > 0 and self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(grace_s):
                    while not await self._said_done():
                        pass
            except TimeoutError:
                pass
        else:
            try:  # its socket is closed: it is about to be gone, with an exit code of its own
                async with asyncio.timeout(1):
                    await self._process.wait()
            except TimeoutError:
                pass
        self.kill()
        code = await self._process.wait()
        self._writer.close()
        self.inspection.close()
        return f"its process {said_exit(code)}"

    async def _said_done(self) -> bool:
        try:
            head = await self._reader.readexactly(LENGTH_BYTES)
            return isinstance(unpack(await self._reader.readexactly(int.from_bytes(head))), ChildDone)
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):  # or told to stop within a frame
            return True

    def hang_up(self) -> None:
        """Tell the process that nobody waits for it any more: it ends by itself."""
        self._writer.close()

    def kill(self) -> None:
        """End the process and all it started, now."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def _traceparent() -> str | None:
    """Answer the traceparent of the span that is current in a run which is traced."""
    if CURRENT_TRACE.get() is None:
        return None
    from ..observe.spans import traceparent_here

    return traceparent_here()


def _module(task: Task[..., Any]) -> str:
    """Answer where a child finds the task: its module, or the file of a program that runs as `__main__`."""
    name = task.handler.__module__
    if name == "__main__":
        return getattr(sys.modules["__main__"], "__file__", None) or name
    return name


def _guarded(
    handler: Callable[..., Any], kwargs: dict[str, Any], forks_at_start: int, mark: Mark | None
) -> tuple[Any, BaseException | None]:
    """Call the handler; whatever it raises is carried as a value (a future cannot hold StopIteration)."""
    job = CURRENT_JOB.get()  # noqa: F841  # read from beside this thread: observe.stacks.job_at
    if mark is not None:
        mark.begin()
    try:
        return handler(**kwargs), None
    except BaseException as error:  # SystemExit too: it is about this job
        return None, error
    finally:
        end_copy(forks_at_start)
