"""From a task to something the runner can start: arguments, injection, middleware and executor joined once."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from ..app import Packhorse
from ..composing import is_results
from ..context import Context
from ..job import Claimed
from ..observe.runs import RunCells
from ..reach import Reach
from ..task import Task
from .executors import Executors

Start = Callable[[dict[str, Any], Context], Coroutine[Any, Any, Any]]


class Handler:
    """A task made ready to run in this process."""

    __slots__ = ("begins_elsewhere", "cells", "needs_context", "read", "start", "start_plain", "task")

    def __init__(self, app: Packhorse, task: Task[..., Any], executors: Executors) -> None:
        self.task = task
        #: What is counted of its runs, by queue: those that the worker takes from.
        self.cells: dict[str, RunCells] = {}
        self.read = task.arguments.read
        body = _body(task, executors)
        if task.executor != "process":  # the child process injects on its side
            body = inject(app, task, body)
        for middleware in reversed(app.middlewares):
            body = _wrap(middleware, body)
        self.start: Start = body
        #: Whether nothing of the app's runs before a thread or a process takes the job, for which it may have to wait.
        self.begins_elsewhere = bool(
            task.executor != "async"
            and not app.middlewares
            and (task.executor == "process" or not task.arguments.injected)
        )
        #: The short way for the most common case: an async function that asks for nothing.
        self.needs_context = bool(task.arguments.injected or app.middlewares or task.executor != "async")
        self.start_plain: Callable[..., Coroutine[Any, Any, Any]] = task.handler


def _body(task: Task[..., Any], executors: Executors) -> Start:
    async def on_loop(kwargs: dict[str, Any], ctx: Context) -> Any:
        return await task.handler(**kwargs)

    async def in_thread(kwargs: dict[str, Any], ctx: Context) -> Any:
        return await executors.in_thread(task.handler, kwargs, ctx)

    async def in_process(kwargs: dict[str, Any], ctx: Context) -> Any:
        return await executors.in_process(task, ctx)

    return {"async": on_loop, "thread": in_thread, "process": in_process}[task.executor]


def inject(app: Packhorse, task: Task[..., Any], body: Start) -> Start:
    """Fill the parameters that do not come from the payload, for the time of the run."""
    if not task.arguments.injected:
        return body

    async def run(kwargs: dict[str, Any], ctx: Context) -> Any:
        async with AsyncExitStack() as stack:
            for name, kind in task.arguments.injected.items():
                if kind is Context:
                    kwargs[name] = ctx
                elif is_results(kind):
                    kwargs[name] = await ctx.results()
                else:
                    kwargs[name] = await _provide(app.providers[kind], ctx, stack)
            return await body(kwargs, ctx)

    return run


async def _provide(factory: Callable[..., Any], ctx: Context, stack: AsyncExitStack) -> Any:
    args = (ctx,) if _wants_context(factory) else ()
    if inspect.isasyncgenfunction(factory):
        return await stack.enter_async_context(asynccontextmanager(factory)(*args))
    if inspect.isgeneratorfunction(factory):
        return stack.enter_context(contextmanager(factory)(*args))
    value = factory(*args)
    return await value if inspect.isawaitable(value) else value


def _wants_context(factory: Callable[..., Any]) -> bool:
    """Answer whether a factory has a parameter that must be given; one with a default is its own affair."""
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in inspect.signature(factory).parameters.values()
    )


def _wrap(middleware: Callable[..., Awaitable[Any]], body: Start) -> Start:
    async def run(kwargs: dict[str, Any], ctx: Context) -> Any:
        async def call_next() -> Any:
            return await body(kwargs, ctx)

        return await middleware(ctx, call_next)

    return run


def new_context(app: Packhorse, job: Claimed, state: object, reach: Reach | None) -> Context:
    """Make the context of one run; `state` is what the worker's lifespan yielded."""
    ctx = Context(app, job, state)
    ctx.give_reach(reach)
    return ctx
