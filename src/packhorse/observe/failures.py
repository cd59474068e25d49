"""What a failure hook is told, and how hooks are registered. Values only; `worker.telling` calls the hooks."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ..errors import ConfigurationError
from ..job import LAPSED, Claimed, JobError, JobRecord, State, check_name
from ..redaction import redacted
from ..shapes import value_json
from .trace_context import context_of

if TYPE_CHECKING:
    from ..backends.base import Settlement


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt of a job that failed, as the store has it.

    `final`: the job went to the dead letter queue; else it runs again in `retry_in_ms`. `error_kind`, `message` and
    `traceback` are what the job keeps of its error; `error` is the exception itself, where it was raised in this
    process. The payload is not shown; `payload()` answers it. `duration_ms` is None where nobody knows it.
    """

    id: str
    type: str
    queue: str
    attempt: int
    max_attempts: int
    final: bool
    error_kind: str
    message: str = ""
    traceback: str = ""
    retry_in_ms: int | None = None
    key: str | None = None
    tags: tuple[str, ...] = ()
    workflow: str | None = None
    worker: str | None = None
    duration_ms: float | None = None
    at_ms: int = 0  # by the clock of who wrote the error down
    trace_id: str | None = None
    error: BaseException | None = None
    _payload: bytes = b""
    _secret_words: tuple[str, ...] = ()

    def __repr__(self) -> str:
        end = "final" if self.final else f"again in {self.retry_in_ms} ms"
        return f"<Failure of {self.type} {self.id}: {self.error_kind}, attempt {self.attempt}, {end}>"

    @property
    def lapsed(self) -> bool:
        """Whether no handler lived to tell: the process died, was killed, or its lease ran out."""
        return self.error_kind == LAPSED

    def payload(self) -> Any:
        """Answer the job's payload, with what looks secret by its key hidden (the setting `redact`)."""
        return redacted(value_json(self._payload), self._secret_words)


Hook = Callable[[Failure], Any]


class FailureHook:
    """A hook as it was registered."""

    __slots__ = ("_final", "_is_async", "_types", "function", "name")

    def __init__(self, function: Hook, *, final: bool = False, types: Iterable[object] = ()) -> None:
        """Check what is registered. Raises ConfigurationError, InvalidName."""
        if not callable(function):
            raise ConfigurationError(f"on_failure: {function!r} is not a function that takes the failure")
        self.name = str(getattr(function, "__qualname__", type(function).__qualname__))[:128]
        _check_signature(function, self.name)
        if isinstance(types, str):
            raise ConfigurationError(f"on_failure: types must be a list of job types, as types=[{types!r}]")
        self.function = function
        self._final = final
        self._types = frozenset(check_name(getattr(one, "type", one), "job type") for one in types)
        call = getattr(function, "__call__", None)  # noqa: B004  # of an object whose __call__ is async
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)

    def wants(self, failure: Failure) -> bool:
        """Answer whether this hook is to hear of it."""
        return (failure.final or not self._final) and (not self._types or failure.type in self._types)

    async def call(self, failure: Failure, in_thread: Callable[..., Awaitable[Any]]) -> None:
        """Run it; what is not async, in a thread."""
        if self._is_async:
            await self.function(failure)
            return
        answer = await in_thread(self.function, failure)
        if inspect.isawaitable(answer):
            await answer

    @property
    def close(self) -> Callable[[], Awaitable[None]] | None:
        """What sends off the rest when a worker stops, if the hook is an object that has an async `close()`."""
        found = getattr(self.function, "close", None)
        return cast("Callable[[], Awaitable[None]]", found) if inspect.iscoroutinefunction(found) else None


def _check_signature(function: Hook, name: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of something built in
        return
    try:
        signature.bind(None)
    except TypeError:
        raise ConfigurationError(
            f"on_failure: {name}{signature} must take one argument, the failure: def {name}(failure): ..."
        ) from None


def ended_failure(
    job: Claimed,
    settlement: Settlement,
    worker: str,
    duration_ms: float,
    error: BaseException | None,
    words: tuple[str, ...],
) -> Failure:
    """Make the failure of a run that ended here. `settlement` has an error and took effect."""
    said = settlement.error
    assert said is not None
    final = settlement.state is State.FAILED
    return Failure(
        id=job.id,
        type=job.type,
        queue=job.queue,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        final=final,
        error_kind=said.kind,
        message=said.message,
        traceback=said.traceback,
        retry_in_ms=None if final else settlement.delay_ms,
        key=job.key,
        tags=job.tags,
        workflow=job.workflow,
        worker=worker,
        duration_ms=duration_ms,
        at_ms=said.at_ms,
        trace_id=_trace_id(job.meta),
        # Not what only carried the outcome here: of a time-out the cancellation, of a child process its answer.
        error=error if error is not None and type(error).__name__[:128] == said.kind else None,
        _payload=job.payload,
        _secret_words=words,
    )


def stored_failure(record: JobRecord, said: JobError, worker: str | None, words: tuple[str, ...]) -> Failure:
    """Make the failure of an attempt that only the store knows the end of."""
    final = record.state is State.FAILED and said == record.errors[-1]
    is_last = record.attempt == said.attempt and record.started_at_ms is not None
    return Failure(
        id=record.id,
        type=record.type,
        queue=record.queue,
        attempt=said.attempt,
        max_attempts=record.max_attempts,
        final=final,
        error_kind=said.kind,
        message=said.message,
        traceback=said.traceback,
        retry_in_ms=None if final else max(0, record.due_at_ms - said.at_ms) if record.state is State.SCHEDULED else 0,
        key=record.key,
        tags=record.tags,
        workflow=record.workflow,
        worker=worker,
        duration_ms=float(max(0, said.at_ms - (record.started_at_ms or 0))) if is_last else None,
        at_ms=said.at_ms,
        trace_id=_trace_id(record.meta),
        _payload=record.payload,
        _secret_words=words,
    )


def _trace_id(meta: dict[str, str] | None) -> str | None:
    context = context_of(meta)
    return None if context is None else context.trace_id
