"""The app: where tasks are registered and jobs are enqueued."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from . import codec
from .backends.base import Capabilities, Enqueued, QueueCounts, Steered
from .backends.opening import redact
from .chance import CHANCE, Chance
from .client import Job
from .clock import SYSTEM_CLOCK, Clock
from .composing import Composing, is_results
from .connecting import Connecting
from .context import Context
from .enqueueing import Store
from .errors import ConfigurationError, InvalidOption
from .failing import Failing
from .job import DELAY_MS_MAX, JobSpec, check_name
from .limiting import Limiting
from .measuring import Measuring
from .observe.labels import LabelBounds
from .observe.meters import Meters
from .options import AT_MS, FULL_TIMEOUT_MS, over_defaults, read_options, settle_unique
from .retry import Backoff
from .scheduling import Scheduling, calling_module
from .settings import Settings, duration_ms, load
from .sync import Portal
from .task import Executor, Task
from .transaction import Transaction, current

if TYPE_CHECKING:
    from .observe.failures import FailureHook
    from .parents import Results
    from .recurring import Declared, ScheduleHandle
    from .worker.local import LocalWorker

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Given = TypeVar("Given", "Context", "Results")

Next = Callable[[], Awaitable[Any]]
Middleware = Callable[[Context, Next], Awaitable[Any]]
Lifespan = Callable[["Packhorse"], AbstractAsyncContextManager[Any]]


class Packhorse(Connecting, Scheduling, Composing, Limiting, Measuring, Failing):
    """An app: tasks by type, and one store of jobs.

    `url` names the backend; without it `PACKHORSE_URL`, then `packhorse.toml`, then `sqlite:///packhorse.db`.
    Nothing is opened before the first job is enqueued or looked up. Safe to use from many threads and loops.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
        chance: Chance = CHANCE,
        lifespan: Lifespan | None = None,
        **settings: Any,
    ) -> None:
        #: Whose schedules these are in a store that several apps share: the module that made the app, unless given.
        self.name = calling_module(self) if name is None else check_name(name, "app")
        self.settings: Settings = load({"url": url, **settings})
        self.clock = clock
        self.chance = chance
        self.tasks: dict[str, Task[..., Any]] = {}
        self.declared: dict[str, Declared] = {}  # what @app.schedule was told
        self.middlewares: list[Middleware] = []
        self.providers: dict[object, Callable[..., Any]] = {}
        self.enqueue_hooks: list[Callable[[JobSpec], JobSpec]] = []
        self.failure_hooks: list[FailureHook] = []
        self.lifespan_hook = lifespan
        #: What this process counts of the app: its jobs, runs and calls of the store.
        self.meters = Meters(LabelBounds(queues=(name.partition("=")[0] for name in self.settings.queues)))
        self.portal = Portal()
        super().__init__()
        self._after_enqueue: Callable[[], Awaitable[None]] | None = None  # testing.inline runs the job here

    def __repr__(self) -> str:
        return f"<Packhorse {redact(self.settings.url)}>"

    # ---- registering -----------------------------------------------------------------------------------

    # A handler that asks for its context or its parents' results first is enqueued without them.
    @overload
    def task(self, name: Callable[Concatenate[Context, Results, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def task(self, name: Callable[Concatenate[Context, Results, P], R], /) -> Task[P, R]: ...
    @overload
    def task(self, name: Callable[Concatenate[Given, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def task(self, name: Callable[Concatenate[Given, P], R], /) -> Task[P, R]: ...
    @overload
    def task(self, name: Callable[P, Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def task(self, name: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        name: str | None = None,
        *,
        executor: Executor | None = None,
        backoff: float | str | None = None,
        backoff_max: float | str | None = None,
        fail_on: type[BaseException] | tuple[type[BaseException], ...] = (),
        description: str | None = None,
        rate: str | None = None,
        burst: int | None = None,
        concurrency: int | None = None,
        rate_per_key: str | None = None,
        concurrency_per_key: int | None = None,
        **options: Any,
    ) -> _Registrar: ...
    def task(
        self,
        name: Any = None,
        *,
        executor: Executor | None = None,
        backoff: float | str | None = None,
        backoff_max: float | str | None = None,
        fail_on: type[BaseException] | tuple[type[BaseException], ...] = (),
        description: str | None = None,
        rate: str | None = None,
        burst: int | None = None,
        concurrency: int | None = None,
        rate_per_key: str | None = None,
        concurrency_per_key: int | None = None,
        **options: Any,
    ) -> Any:
        """Register a function as the handler of a job type (its name, unless `name` is given).

        `async def` runs on the event loop, `def` in a thread, `executor="process"` in a child process that can be
        killed. `backoff` and `backoff_max` bound the delays between attempts, `fail_on` names errors that no retry
        will mend. `rate` ("100/m", with `burst` at once) and `concurrency` limit its starts over all workers,
        `rate_per_key` and `concurrency_per_key` those of each key; workers set them when they start, unless an operator
        did. The other options are the defaults of its jobs, as in `Task.using`.
        """
        policy = Backoff(
            base_ms=duration_ms("1s" if backoff is None else backoff, "backoff"),
            max_ms=duration_ms("10m" if backoff_max is None else backoff_max, "backoff_max"),
        )
        limits = {
            "rate": rate,
            "burst": burst,
            "concurrency": concurrency,
            "rate_per_key": rate_per_key,
            "concurrency_per_key": concurrency_per_key,
        }

        def register(handler: Callable[..., Any]) -> Task[..., Any]:
            if not isinstance(name, str) and not hasattr(handler, "__name__"):
                raise ConfigurationError(f"{handler!r} has no name; give it one: app.task('name')(...)")
            task: Task[..., Any] = Task(
                self,
                handler,
                type=name if isinstance(name, str) else handler.__name__,
                executor=executor,
                backoff=policy,
                fail_on=fail_on if isinstance(fail_on, tuple) else (fail_on,),
                options=options,
                description=description,
                limits=limits,
            )
            if task.type in self.tasks:
                raise ConfigurationError(f"the job type {task.type!r} has a task already; give this one another name")
            self.tasks[task.type] = task
            self.meters.bounds.learn([task.type])
            return task

        return register(name) if callable(name) else register

    def middleware(self, function: Middleware) -> Middleware:
        """Wrap every run: `async def timing(ctx, call_next): ...; return await call_next()`. The first is outermost."""
        self.middlewares.append(function)
        return function

    def on_enqueue(self, function: Callable[[JobSpec], JobSpec]) -> Callable[[JobSpec], JobSpec]:
        """Look at, change (`msgspec.structs.replace`) or refuse (raise) every job before it is stored."""
        self.enqueue_hooks.append(function)
        return function

    def lifespan(self, function: Callable[[Packhorse], AsyncIterator[Any]]) -> Lifespan:
        """Run an async generator around each worker process; what it yields is `ctx.state`."""
        self.lifespan_hook = asynccontextmanager(function)
        return self.lifespan_hook

    def provide(self, kind: type[T], factory: Callable[..., Any]) -> None:
        """Fill handler parameters annotated `kind` by calling `factory()` or `factory(ctx)` for each run.

        The factory may be a function, an async function, or a generator (async or not) that cleans up after its yield.
        """
        self.providers[kind] = factory
        for task in self.tasks.values():  # it may come before or after the tasks that use it
            task.read_signature()

    def injectable(self, hint: object) -> bool:
        """Answer whether a parameter with this annotation is filled by packhorse rather than by the payload."""
        if hint is Context or is_results(hint):
            return True
        try:
            return hint in self.providers
        except TypeError:  # an annotation that cannot be hashed
            return False

    # ---- enqueueing ------------------------------------------------------------------------------------

    def spec(
        self,
        task: Task[..., Any] | str,
        payload: object = None,
        options: Mapping[str, Any] | None = None,
        *,
        checked: bool = False,
    ) -> JobSpec:
        """Make a job of a task or of a type by name, checked against the task where it is registered here.

        `checked`: the payload is plain JSON as `codec.parse` answers it.
        """
        job_type = task.type if isinstance(task, Task) else check_name(task, "job type")
        if options and "full_timeout" in options:
            raise InvalidOption("full_timeout: give it to enqueue or enqueue_many; it says how long the call may wait")
        known = self.tasks.get(job_type)
        if checked and payload is not None:
            value = payload
        else:
            value = {} if payload is None else dict(payload) if isinstance(payload, Mapping) else payload
            value = value if known is not None else codec.to_plain(value)
        if known is not None:
            data = known.arguments.write(value, checked=checked)
        else:
            data = codec.encode(value, checked=checked)
        fields = read_options(options) if options else {}
        return self.make_spec(job_type, data, over_defaults(known.defaults, fields) if known is not None else fields)

    def make_spec(self, job_type: str, payload: bytes, fields: dict[str, Any]) -> JobSpec:
        """Put a job together from parts that are checked already."""
        now_ms = self.clock.now_ms()
        if AT_MS in fields:
            delay_ms = fields[AT_MS] - now_ms
            if delay_ms > DELAY_MS_MAX:
                raise InvalidOption("at: is more than ten years ahead")
            fields = {name: value for name, value in fields.items() if name != AT_MS} | {"delay_ms": max(0, delay_ms)}
        known = self.tasks.get(job_type)
        fields = settle_unique(fields, job_type, payload, known.arguments.names if known is not None else ())
        fields.pop(FULL_TIMEOUT_MS, None)  # of the task: it belongs to the call
        if self.settings.max_attempts is not None:
            fields.setdefault("max_attempts", self.settings.max_attempts)
        job_id = fields.pop("id", None) or self.chance.id(now_ms)
        spec = JobSpec(id=job_id, type=job_type, payload=payload, **fields)
        for hook in self.enqueue_hooks:
            spec = hook(spec)
            if not isinstance(spec, JobSpec):
                raise ConfigurationError(f"the on_enqueue hook {hook.__qualname__} must answer a JobSpec, or raise")
        return spec

    def transaction(self, connection: object) -> Transaction:
        """Enqueue in a transaction of your own: its commit stores the jobs, a rollback leaves none of them.

            with psycopg.connect(url) as connection, app.transaction(connection) as tx:
                connection.execute("INSERT INTO orders ...")
                tx.enqueue("ship", {"order": 7})
                ship.enqueue(order=8)  # in the block, the enqueues of this app's tasks and workflows join in too

        `connection` leads to the app's own store: of psycopg or asyncpg (PostgreSQL) or `sqlite3` (SQLite), or
        SQLAlchemy's Connection or Session, also async. You begin, commit and roll back. Both `with` and `async with`
        work; an async connection is for `aenqueue` and the like, a blocking one for either, where it blocks.

        Not covered: other threads, blocks that have ended, schedules, and anything but enqueues (cancel, rerun ...).
        A full queue is QueueFull at once. Until the commit a job's handle knows its id and whether it is new.
        Raises InvalidOption (another kind of connection, another store, no transaction that is open), Unsupported.
        """
        return Transaction(self, connection)

    async def acapabilities(self) -> Capabilities:
        """Answer what the store can do that enqueues go to here."""
        transaction = current(self)
        return (await self.backend()).capabilities if transaction is None else transaction.capabilities

    async def aenqueue_specs(
        self,
        specs: list[JobSpec],
        full_timeout_ms: int | None = None,
        *,
        together: bool = False,
        connection: object = None,
    ) -> list[Job[Any]]:
        """Store jobs made before, in batches of 1,000; waits for room in a full queue. See `enqueueing.Store`.

        In a transaction, of `connection` or of the block it is in, it does not wait.
        """
        transaction = current(self) if connection is None else await Transaction(self, connection).abind()
        if transaction is not None:
            return await transaction.store(specs)
        if full_timeout_ms is None:
            full_timeout_ms = self.settings.enqueue_timeout_ms
        backend, tracing = await self.backend(), self.tracing()
        store = Store(backend, self.chance, full_timeout_ms, self._after_enqueue, together=together, tracing=tracing)
        return self.handles(specs, await store(specs))

    def handles(self, specs: list[JobSpec], answers: list[Enqueued]) -> list[Job[Any]]:
        """Make the handles of jobs that were stored."""
        jobs: list[Job[Any]] = []
        for spec, answer in zip(specs, answers, strict=True):
            task = self.tasks.get(spec.type)
            result_type = task.arguments.result_type if task is not None else Any
            jobs.append(Job(self, answer.id, created=answer.created, result_type=result_type))
        return jobs

    def enqueue_specs(
        self, specs: list[JobSpec], full_timeout_ms: int | None = None, *, connection: object = None
    ) -> list[Job[Any]]:
        """Store jobs made before; blocks. See `aenqueue_specs`."""
        if connection is not None:
            transaction = Transaction(self, connection).bind()
            return transaction.run(transaction.store(specs))
        return self.run_enqueue(self.aenqueue_specs(specs, full_timeout_ms))

    def run_enqueue(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that enqueues, for blocking code: here in a transaction, else on the background loop."""
        transaction = current(self)
        return self.portal.call(coroutine) if transaction is None else transaction.run(coroutine)

    def _full_timeout_ms(self, task: Task[..., Any] | str, options: dict[str, Any]) -> int | None:
        """Take from `options` how long the call may wait for room; else the task says."""
        given = options.pop("full_timeout", None)
        if given is not None:
            return duration_ms(given, "full_timeout")
        known = task if isinstance(task, Task) else self.tasks.get(task)
        return known.defaults.get(FULL_TIMEOUT_MS) if known is not None else None

    @overload
    def enqueue(
        self, task: Task[..., Any] | str, payload: object = None, /, *, recurring: Mapping[str, Any], **options: Any
    ) -> ScheduleHandle: ...
    @overload
    def enqueue(self, task: Task[..., Any] | str, payload: object = None, /, **options: Any) -> Job[Any]: ...
    def enqueue(self, task: Task[..., Any] | str, payload: object = None, /, **options: Any) -> Any:
        """Store a job by type, without importing its task: `app.enqueue("email", {"to": "a@example.com"})`.

        With `recurring={"cron_expression": "0 0 * * *"}` it defines a schedule of such jobs, see `define_schedule`.
        """
        if "recurring" in options:
            return self.portal.call(self.aenqueue(task, payload, **options))
        connection = options.pop("connection", None)
        full_timeout_ms = self._full_timeout_ms(task, options)
        return self.enqueue_specs([self.spec(task, payload, options)], full_timeout_ms, connection=connection)[0]

    @overload
    async def aenqueue(
        self, task: Task[..., Any] | str, payload: object = None, /, *, recurring: Mapping[str, Any], **options: Any
    ) -> ScheduleHandle: ...
    @overload
    async def aenqueue(self, task: Task[..., Any] | str, payload: object = None, /, **options: Any) -> Job[Any]: ...
    async def aenqueue(self, task: Task[..., Any] | str, payload: object = None, /, **options: Any) -> Any:
        """Store a job by type, in async code. See `enqueue`."""
        if (recurring := options.pop("recurring", None)) is not None:
            from .schedule import from_recurring

            job_type = task.type if isinstance(task, Task) else task
            return await self.adefine_schedule(
                task, payload, **{"name": job_type, **from_recurring(recurring), **options}
            )
        connection = options.pop("connection", None)
        full_timeout_ms = self._full_timeout_ms(task, options)
        specs = [self.spec(task, payload, options)]
        return (await self.aenqueue_specs(specs, full_timeout_ms, connection=connection))[0]

    def enqueue_many(
        self,
        jobs: Iterable[JobSpec | Mapping[str, Any] | tuple[Any, ...]],
        *,
        full_timeout: float | str | None = None,
    ) -> list[Job[Any]]:
        """Store many jobs in few transactions. All are checked before the first is stored.

        An item is `task.job(...)`, a tuple `(task or type, payload)` or a mapping with `type`, `payload` and options.
        Where a queue is full they are stored in pieces as room appears; QueueFull after `full_timeout` without any, and
        its `stored` says how many are stored.
        """
        return self.run_enqueue(self.aenqueue_many(jobs, full_timeout=full_timeout))

    async def aenqueue_many(
        self,
        jobs: Iterable[JobSpec | Mapping[str, Any] | tuple[Any, ...]],
        *,
        full_timeout: float | str | None = None,
    ) -> list[Job[Any]]:
        """Store many jobs in few transactions, in async code. See `enqueue_many`."""
        full_timeout_ms = None if full_timeout is None else duration_ms(full_timeout, "full_timeout")
        return await self.aenqueue_specs(self.specs(jobs), full_timeout_ms)

    def specs(self, jobs: Iterable[JobSpec | Mapping[str, Any] | tuple[Any, ...]]) -> list[JobSpec]:
        """Make jobs of the items of `enqueue_many`. Raises InvalidOption and what `spec` raises."""
        specs = []
        for job in jobs:
            if isinstance(job, JobSpec):
                specs.append(job)
            elif isinstance(job, tuple) and 1 <= len(job) <= 2:
                specs.append(self.spec(*job))
            elif isinstance(job, Mapping) and "type" in job:
                options = {name: value for name, value in job.items() if name not in {"type", "payload"}}
                specs.append(self.spec(job["type"], job.get("payload"), options))
            else:
                raise InvalidOption(
                    "an item of enqueue_many is task.job(...), (task, payload) or {'type': ..., 'payload': ...}"
                )
        return specs

    # ---- looking and steering --------------------------------------------------------------------------

    def job(self, job_id: str) -> Job[Any]:
        """Answer the handle of a job by id; nothing is looked up yet."""
        return Job(self, job_id)

    def cancel(self, job_id: str) -> Steered:
        """Stop a job by id. See `Job.cancel`."""
        return self.job(job_id).cancel()

    async def acounts(self) -> dict[str, QueueCounts]:
        """Count jobs by queue and state."""
        return await (await self.backend()).counts()

    def counts(self) -> dict[str, QueueCounts]:
        """Count jobs by queue and state."""
        return self.portal.call(self.acounts())

    # ---- workers -------------------------------------------------------------------------------

    def worker(self, **options: Any) -> LocalWorker:
        """Make a worker that runs in this process and event loop: `async with app.worker(): ...`.

        For tests and small programs; `packhorse worker` starts the one with processes of its own. Options:
        queues, concurrency, lease, shutdown_timeout, burst.
        """
        from .worker.local import LocalWorker

        return LocalWorker(self, **options)


class _Registrar:
    """The type of `@app.task(...)`: turns a function into a Task of the same parameters and result."""

    @overload
    def __call__(self, handler: Callable[Concatenate[Context, Results, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[Concatenate[Context, Results, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[Concatenate[Given, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[Concatenate[Given, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[P, Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, handler: Callable[P, R], /) -> Task[P, R]: ...
    def __call__(self, handler: Any, /) -> Any:
        raise AssertionError("only a type")
