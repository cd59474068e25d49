"""Where handlers that are not async run: a pool of threads, and child processes that can be killed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..app import Packhorse
from ..context import Context
from ..task import Task
from .options import WorkerOptions


class Executors:
    """The threads and child processes of one engine, made when first needed."""

    def __init__(self, app: Packhorse, options: WorkerOptions) -> None:
        self._app = app
        self._options = options
        self._threads: ThreadPoolExecutor | None = None

    async def in_thread(self, handler: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run a blocking handler in a thread. Told to stop, it waits for the thread: nobody can end it from outside."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="packhorse-job")
        context = contextvars.copy_context()
        future = asyncio.get_running_loop().run_in_executor(self._threads, context.run, _guarded, handler, kwargs)
        try:
            ended = await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            ended = future.result()
        value, error = ended
        if error is not None:
            raise error
        return value

    async def in_process(self, task: Task[..., Any], kwargs: dict[str, Any], ctx: Context) -> Any:
        raise RuntimeError("soon")

    def replace_threads(self) -> None:
        """Use new threads from now on: one of the old ones will not come back."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None

    def close(self) -> None:
        """Let the threads go. One that still runs a handler does not hold the worker up."""
        self.replace_threads()


def _guarded(handler: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[Any, BaseException | None]:
    """Call the handler; whatever it raises is carried as a value (a future cannot hold StopIteration)."""
    try:
        return handler(**kwargs), None
    except BaseException as error:  # SystemExit too: it is about this job
        return None, error
