"""A task: a Python function registered for a job type, and the ways to enqueue it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, get_args

from .arguments import Arguments
from .client import Job
from .errors import ConfigurationError, InvalidOption
from .job import JobSpec, check_name
from .options import FULL_TIMEOUT_MS, over_defaults, read_options
from .retry import Backoff

if TYPE_CHECKING:
    from .app import Packhorse
    from .backends.base import Limit

P = ParamSpec("P")
R = TypeVar("R")

Executor = Literal["async", "thread", "process"]


class Task(Generic[P, R]):
    """A function registered for a type. Calling it calls the function; `enqueue` stores a job instead."""

    def __init__(
        self,
        app: Packhorse,
        handler: Callable[P, Any],
        *,
        type: str,  # noqa: A002  # DESIGN's word for it
        executor: Executor | None,
        backoff: Backoff,
        fail_on: tuple[type[BaseException], ...],
        options: dict[str, Any],
        description: str | None = None,
        limits: dict[str, Any] | None = None,
    ) -> None:
        self.app = app
        self.handler = handler
        self.type = check_name(type, "job type")
        self.backoff = backoff
        self.fail_on = fail_on
        self.defaults = read_options(options)
        if "id" in self.defaults:
            raise InvalidOption(f"{type}: an idempotency key stands for one job; give it with the job")
        self.limits = _read_limits(type, limits or {})
        self.description = description or _first_line(handler)
        self.read_signature()
        self.executor: Executor = executor or ("async" if inspect.iscoroutinefunction(handler) else "thread")
        if self.executor not in get_args(Executor):
            raise ConfigurationError(f"{type}: executor={executor!r} must be async, thread or process")
        if self.executor == "async" and not inspect.iscoroutinefunction(handler):
            raise ConfigurationError(f"{type}: executor='async' needs `async def`; leave executor out for a thread")
        if self.executor == "thread" and inspect.iscoroutinefunction(handler):
            raise ConfigurationError(f"{type}: `async def` runs on the event loop; leave executor out")
        self.__wrapped__ = handler
        self.__name__ = getattr(handler, "__name__", type)
        self.__doc__ = handler.__doc__

    def read_signature(self) -> None:
        """Sort the handler's parameters into those from the payload and those that the app provides."""
        self.arguments = Arguments(self.handler, self.app.injectable)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, now and here, with its context if it asks for one."""
        return self.handler(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.type}>"

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Store a job with these arguments. Blocks until it is kept as the backend promises.

        Raises InvalidPayload where the function would not take them, UniqueConflict, QueueFull, Unavailable.
        """
        return self.using().enqueue(*args, **kwargs)

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Store a job with these arguments, in async code."""
        return await self.using().aenqueue(*args, **kwargs)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> JobSpec:
        """Make a job without storing it, for `app.enqueue_many`."""
        return self.using().job(*args, **kwargs)

    def using(self, *, connection: object = None, **options: Any) -> Using[P, R]:
        """Answer this task with options for the jobs enqueued through it: `task.using(delay="30s").enqueue(...)`.

        With `connection`, the jobs are stored in the transaction that is open there; see `Packhorse.transaction`.

        Options: queue, priority, max_attempts (or max_retries), timeout, delay, at, unique, unique_for, unique_states,
        on_conflict, idempotency_key, after, after_failed, key, tags, meta, full_timeout.
        """
        return Using(self, read_options(options) if options else {}, connection)


class Using(Generic[P, R]):
    """A task with options of the jobs it makes."""

    def __init__(self, task: Task[P, R], fields: dict[str, Any], connection: object = None) -> None:
        self._task = task
        self._fields = fields
        self._connection = connection

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Store a job, see `Task.enqueue`."""
        specs = [self._job(*args, **kwargs)]
        return self._task.app.enqueue_specs(specs, self._full_timeout_ms, connection=self._connection)[0]

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Store a job in async code, see `Task.enqueue`."""
        specs = [self._job(*args, **kwargs)]
        app = self._task.app
        return (await app.aenqueue_specs(specs, self._full_timeout_ms, connection=self._connection))[0]

    def job(self, *args: P.args, **kwargs: P.kwargs) -> JobSpec:
        """Make a job without storing it."""
        if FULL_TIMEOUT_MS in self._fields:
            raise InvalidOption("full_timeout: give it to enqueue or enqueue_many; it says how long the call may wait")
        if self._connection is not None:
            raise InvalidOption("connection: it says how a job is stored; enqueue it in app.transaction(connection)")
        return self._job(*args, **kwargs)

    @property
    def _full_timeout_ms(self) -> int | None:
        return self._fields.get(FULL_TIMEOUT_MS, self._task.defaults.get(FULL_TIMEOUT_MS))

    def _job(self, *args: P.args, **kwargs: P.kwargs) -> JobSpec:
        task = self._task
        return task.app.make_spec(
            task.type, task.arguments.bind(args, kwargs), over_defaults(task.defaults, self._fields)
        )


def _read_limits(job_type: str, given: dict[str, Any]) -> tuple[Limit, ...]:
    if all(value is None for value in given.values()):
        return ()
    from .rates import task_limits

    return task_limits(job_type, **given)


def _first_line(handler: Callable[..., Any]) -> str:
    return (inspect.getdoc(handler) or "").strip().partition("\n")[0]
