"""What a handler may ask for: its job, and ways to speak about it while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

import msgspec

from . import codec
from .backends.base import Note, Settlement, Verdict
from .enqueueing import follow
from .errors import InvalidOption, InvalidPayload, LeaseLost, PackhorseError
from .job import Claimed, JobSpec, State
from .outcome import Fail

if TYPE_CHECKING:
    from .app import Packhorse
    from .parents import Parent, Results
    from .reach import Reach
    from .steps import Steps

P = ParamSpec("P")
R = TypeVar("R")

#: Follow-up jobs of one run. More belong into a job that enqueues them in batches.
FOLLOW_UPS_MAX = 1_000
NOTE_CHARS_MAX = 500
_steps_guard = threading.Lock()


class _JobLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the job to the `extra=` that is given, in place of putting it there alone."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, {**kwargs, "extra": {**(kwargs.get("extra") or {}), **(self.extra or {})}}


class Mark(Protocol):
    """Where it is put down whether a job has begun: `worker.marks`."""

    def wait(self) -> None:
        """Put down that it has not."""

    def begin(self) -> None:
        """Put down that it begins. From any thread."""


class Context:
    """The running job as its handler sees it. Ask for it by annotation: `def handler(ctx: Context, ...)`."""

    def __init__(self, app: Packhorse, job: Claimed, state: Any = None) -> None:
        self.app = app
        #: What the lifespan of the worker that runs this job yielded.
        self.state = state
        self._job = job
        self._stop = threading.Event()
        self._note: Note | None = None
        self._restart: Callable[[], None] | None = None
        self._reach: Reach | None = None
        self._steps: Steps | None = None
        #: Where it is put down whether the handler has begun, if it may have to wait for a thread or a process.
        self.mark: Mark | None = None
        #: Whether the run has settled its job in a transaction of its own, which may be committed or not.
        self.settled = False
        #: Whether the run waits for a place, which its time-out does not count.
        self.timeout_held = False
        self.follow_ups: list[JobSpec] = []

    @property
    def id(self) -> str:
        """The job's id: with `attempt`, the key for effects that must happen once."""
        return self._job.id

    @property
    def type(self) -> str:
        """The job's type."""
        return self._job.type

    @property
    def queue(self) -> str:
        """The queue the job came from."""
        return self._job.queue

    @property
    def attempt(self) -> int:
        """Which run this is; 1 is the first."""
        return self._job.attempt

    @property
    def max_attempts(self) -> int:
        """How many runs there may be."""
        return self._job.max_attempts

    @property
    def key(self) -> str | None:
        """The tenant or resource the job was enqueued for."""
        return self._job.key

    @property
    def tags(self) -> tuple[str, ...]:
        """The job's tags."""
        return self._job.tags

    @property
    def meta(self) -> dict[str, str]:
        """The job's meta entries (a copy)."""
        return dict(self._job.meta or {})

    @property
    def workflow(self) -> str | None:
        """The id of the workflow the job belongs to."""
        return self._job.workflow

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry the job, in threads of the handler's own too. Lines of any other do as well."""
        job = self._job
        about = {"job_id": job.id, "job_type": job.type, "queue": job.queue, "attempt": job.attempt}
        return _JobLogger(logging.getLogger("packhorse.job"), about)

    @property
    def cancelled(self) -> bool:
        """Whether the run was asked to stop: a handler in a thread must look, nobody can stop it from outside."""
        return self._stop.is_set()

    def wait_cancelled(self, timeout: float) -> bool:
        """Sleep up to `timeout` seconds in a thread, or until the run is asked to stop; answers whether it was."""
        return self._stop.wait(timeout)

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Record how far the run is (0.0 to 1.0); stored with the next heartbeat, about once a second."""
        if not 0.0 <= fraction <= 1.0:
            raise InvalidOption(f"progress: {fraction} must be from 0.0 to 1.0")
        if self.settled:  # it would wait for the run's own transaction
            return
        text = None if note is None else codec.clean_text(note, NOTE_CHARS_MAX)
        self.keep_note(Note(id=self._job.id, token=self._job.token, progress=float(fraction), text=text))

    def then(self, task: Any, payload: object = None, /, **options: Any) -> str:
        """Enqueue a follow-up if and only if this run's outcome is stored; answers its id.

        `task` is a task or the name of a type, `payload` its arguments as a mapping, `options` as in `using`; `after`
        may name follow-ups of this run by the ids that `then` answered. A follow-up belongs to the workflow of its job.
        """
        self._refuse_settled("then")
        if len(self.follow_ups) >= FOLLOW_UPS_MAX:
            raise InvalidOption(f"at most {FOLLOW_UPS_MAX} follow-ups; enqueue one job that enqueues them")
        spec = self.app.spec(task, payload, options)
        if self._job.workflow is not None and spec.workflow is None:
            spec = msgspec.structs.replace(spec, workflow=self._job.workflow)
        tracing = self.app.tracing()
        spec = follow(self._job, [spec])[0] if tracing is None else tracing.created(spec)
        self.follow_ups.append(spec)
        return spec.id

    # ---- a transaction of the handler's own ------------------------------------------------------------

    async def settle_in(self, connection: object, result: object = None) -> None:
        """End the job as succeeded, with `result` and what `then` was told, in the transaction open on `connection`.

            async with await psycopg.AsyncConnection.connect(url) as connection:  # commits at the end of the block
                await connection.execute("UPDATE accounts ...")
                await ctx.settle_in(connection)

        So the effect and the end of the job are committed together, or neither is. Call it last, commit, and return;
        what the handler returns is ignored. If the transaction is not committed by then, the attempt has failed. In a
        `def` handler use `ctx.blocking.settle_in`. On connections see `Packhorse.transaction`.

        Raises LeaseLost if another run has the job by now: let it roll back. Also InvalidOption, Unsupported, Fail (the
        result cannot be stored), Unavailable.
        """
        bound, settlement = self._own_reach().bind(connection), self._settlement(result)
        with self._settling():
            self._judge(await bound.settle([settlement]))

    @contextmanager
    def _settling(self) -> Iterator[None]:
        before, self.settled = self.settled, True
        self.take_note()  # told now, it would wait for the transaction
        try:
            yield
        except PackhorseError:  # it was not done; of any other end nobody knows
            self.settled = before
            raise

    def _settlement(self, result: object) -> Settlement:
        try:
            data = None if result is None else codec.encode(codec.to_plain(result), codec.RESULT_BYTES_MAX)
        except InvalidPayload as error:
            raise Fail(f"settle_in: the result cannot be stored: {error}") from None
        return Settlement(
            id=self._job.id,
            token=self._job.token,
            state=State.SUCCEEDED,
            result=data,
            follow_ups=tuple(self.follow_ups),
        )

    def _judge(self, verdicts: Sequence[Verdict]) -> None:
        if verdicts != [Verdict.APPLIED]:
            raise LeaseLost(
                f"job {self._job.id} has ended or belongs to another run by now; roll the transaction back, "
                "its effects are not wanted"
            )

    def _refuse_settled(self, what: str) -> None:
        if self.settled:
            raise RuntimeError(f"{what}: the job is settled already; call ctx.settle_in last, after ctx.{what}")

    # ---- steps, and parents ----------------------------------------------------------------------------

    @overload
    async def step(self, name: str, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `function` unless this job has done the step of this name before; answer what it came to.

            paid = await ctx.step("pay", pay, order=7)
            await ctx.step("mail", mail, paid)   # fails: the next attempt does not pay again

        The result is durable before this returns, so a step that is kept is never done again: not by a retry, not after
        a crash, not by a rerun with the same payload. The one under way in a crash may be. Steps of different names may
        run at once (`asyncio.gather`); the same name twice is one step. A function that is not async runs right here.
        The result must be JSON of at most 1 MiB, 4 MiB for all of a job's steps, of which there are at most 1,000;
        else the job fails for good. It is read as the function's return annotation says, the first time too.

        Raises InvalidName, LeaseLost (another run has the job: stop), Unsupported, and what `function` raises.
        """
        return await self._own_steps().run(name, function, args, kwargs)

    async def results(self) -> Results:
        """Answer the results of the job's parents by node name, or by id where a parent has none.

            total = sum((await ctx.results()).values())

        A parameter annotated `packhorse.Results` gets the same. Raises ResultsTooLarge beyond 16 MiB in all.
        """
        return await self._read_parents(results=True)

    async def parents(self) -> dict[str, Parent]:
        """Answer how the job's parents ended, by the same names: `id`, `type`, `state`, `error`. For any number."""
        return (await self._read_parents(results=False)).parents

    @property
    def blocking(self) -> BlockingContext:
        """`step`, `results`, `parents` and `settle_in` for `def` handlers: `ctx.blocking.step("pay", pay, order=7)`."""
        return BlockingContext(self, self._own_reach())

    async def _read_parents(self, *, results: bool) -> Results:
        from .parents import reading_parents

        reach = self._own_reach()
        reading = reading_parents(self._job.id, results=results)
        ids = next(reading)
        while True:
            records = await reach.get(ids)
            try:
                ids = reading.send(records)
            except StopIteration as stop:
                found: Results = stop.value
                return found

    def _own_reach(self) -> Reach:
        if self._reach is None:
            raise RuntimeError("only a run of a worker has steps and parents; in tests use packhorse.testing.inline")
        return self._reach

    def _own_steps(self) -> Steps:
        from .steps import Steps

        self._refuse_settled("step")
        with _steps_guard:  # a handler may have threads of its own
            if self._steps is None:
                self._steps = Steps(self._job, self._own_reach(), self._stop)
            return self._steps

    # ---- for the worker --------------------------------------------------------------------------------

    @property
    def reach(self) -> Reach | None:
        """What the run can reach of the store."""
        return self._reach

    def give_reach(self, reach: Reach | None) -> None:
        """Let the run reach the store."""
        self._reach = reach

    @property
    def claimed(self) -> Claimed:
        """The job as it was claimed."""
        return self._job

    @property
    def has_note(self) -> bool:
        """Whether there is progress to tell."""
        return self._note is not None

    def keep_note(self, note: Note) -> None:
        """Keep progress for the next heartbeat; the latest wins."""
        self._note = note

    def take_note(self) -> Note | None:
        """Take the progress to tell."""
        note, self._note = self._note, None
        return note

    def ask_to_stop(self) -> None:
        """Raise the flag that `cancelled` shows."""
        self._stop.set()

    def on_restart(self, restart: Callable[[], None]) -> None:
        """Set what `restart_timeout` does."""
        self._restart = restart

    def hold_timeout(self) -> None:
        """Do not count the time-out until `restart_timeout`: the run only waits for a place."""
        self.timeout_held = True
        if self._restart is not None:
            self._restart()

    def restart_timeout(self) -> None:
        """Count the time-out from now."""
        self.timeout_held = False
        if self._restart is not None:
            self._restart()


class BlockingContext:
    """The parts of a context that wait, for handlers in threads and child processes. Get it as `ctx.blocking`."""

    def __init__(self, ctx: Context, reach: Reach) -> None:
        self._ctx = ctx
        self._reach = reach

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `function` in this thread unless the job has done the step before; see `Context.step`."""
        value: R = self._ctx._own_steps().run_blocking(name, function, args, kwargs)  # noqa: SLF001  # one with it
        return value

    def settle_in(self, connection: object, result: object = None) -> None:
        """End the job as succeeded in the transaction open on `connection`; see `Context.settle_in`."""
        ctx = self._ctx
        bound, settlement = self._reach.bind(connection), ctx._settlement(result)  # noqa: SLF001  # one with it
        with ctx._settling():  # noqa: SLF001
            ctx._judge(bound.run(bound.settle([settlement])))  # noqa: SLF001

    def results(self) -> Results:
        """Answer the results of the job's parents; see `Context.results`."""
        return self._read_parents(results=True)

    def parents(self) -> dict[str, Parent]:
        """Answer how the job's parents ended; see `Context.parents`."""
        return self._read_parents(results=False).parents

    def _read_parents(self, *, results: bool) -> Results:
        from .parents import reading_parents

        reading = reading_parents(self._ctx.id, results=results)
        ids = next(reading)
        while True:
            records = self._reach.get_blocking(ids, self._ctx._stop)  # noqa: SLF001  # one with it
            try:
                ids = reading.send(records)
            except StopIteration as stop:
                found: Results = stop.value
                return found
