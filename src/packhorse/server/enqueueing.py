"""Jobs at the door: read, checked against the task that is registered for them, stored."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ..backends.base import BATCH_MAX, Enqueued
from ..chance import named_id
from ..enqueueing import Store
from ..errors import InvalidName, InvalidOption, InvalidPayload, PayloadTooLarge
from ..job import AFTER_MAX, KEY_CHARS_MAX, MAX_ATTEMPTS_MAX, META_MAX, JobSpec, State, check_name
from ..options import over_defaults, read_options
from ..schedule import check_job_options, make_schedule
from .fields import (
    AfterFailed,
    CronText,
    Duration,
    Instant,
    Jitter,
    JobId,
    Key,
    MaxAttempts,
    MetaText,
    Missed,
    Name,
    OnConflict,
    Overlap,
    Priority,
    Tags,
    Timeout,
    UniqueBy,
)
from .placing import option_of
from .problems import Fault, Problem
from .tracing import within_request
from .words import status_word

if TYPE_CHECKING:
    from ..app import Packhorse
    from ..backends.base import Schedule
    from .operation import Call


class Recurring(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When a job is to come again, by `cron_expression` (or `cron`) or `every`: makes a schedule."""

    cron_expression: CronText | UnsetType = UNSET
    cron: Annotated[CronText, Meta(description="Another name for `cron_expression`.")] | UnsetType = UNSET
    every: Duration | UnsetType = UNSET
    tz: Annotated[str, Meta(description="The time zone, as Europe/Paris; UTC unless given.")] | UnsetType = UNSET
    timezone: Annotated[str, Meta(description="Another name for `tz`.")] | UnsetType = UNSET
    missed: Missed | UnsetType = UNSET
    overlap: Overlap | UnsetType = UNSET
    jitter: Jitter | UnsetType = UNSET
    name: Annotated[Name, Meta(description="The name of the schedule; the job's type unless given.")] | UnsetType = (
        UNSET
    )


class NewJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A job to be stored. Only `type` is needed."""

    openapi: ClassVar[dict[str, Any]] = {
        "allOf": [{"not": {"required": ["delay", name]}} for name in ("at", "execute_at")]
    }
    payload_depth: ClassVar[int] = 1

    type: Name
    payload: Annotated[
        Any, Meta(description="Any JSON, at most 1 MiB; checked where a task of the type is known.")
    ] = {}
    queue: Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    max_attempts: MaxAttempts | UnsetType = UNSET
    max_retries: Annotated[int, Meta(ge=0, le=MAX_ATTEMPTS_MAX - 1, description="max_attempts - 1.")] | UnsetType = (
        UNSET
    )
    timeout: Timeout | UnsetType | None = UNSET
    delay: Duration | UnsetType = UNSET
    at: Instant | UnsetType = UNSET
    execute_at: Annotated[Instant, Meta(description="Another name for `at`.")] | UnsetType = UNSET
    unique: UniqueBy | UnsetType = UNSET
    unique_for: Duration | UnsetType = UNSET
    unique_states: Annotated[list[State], Meta(min_length=1)] | UnsetType = UNSET
    on_conflict: OnConflict | UnsetType = UNSET
    idempotency_key: Key | UnsetType = UNSET
    after: Annotated[list[JobId], Meta(max_length=AFTER_MAX)] | UnsetType = UNSET
    after_failed: AfterFailed | UnsetType = UNSET
    key: Annotated[Key, Meta(description="The tenant or resource it belongs to.")] | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    meta: Annotated[dict[Name, MetaText], Meta(max_length=META_MAX)] | UnsetType = UNSET
    recurring: Recurring | UnsetType = UNSET


#: Jobs that are looked up at a time: each may have 1 MiB.
_JOBS_A_LOOK = 16
#: Jobs of one request that are made before others have their turn: some milliseconds.
_MADE_AT_ONCE = 50

_NOT_OPTIONS = frozenset({"type", "payload", "recurring"})
_OPTIONS = tuple(name for name in NewJob.__struct_fields__ if name not in _NOT_OPTIONS)
_values_of_options = attrgetter(*_OPTIONS)


def make_spec(call: Call, new: NewJob, place: str = "", idempotency_key: str | None = None) -> JobSpec:
    """Make the job that a body describes; `place` is where in the whole body that is. Raises Problem with the place."""
    options = options_of(new, place)
    if idempotency_key is not None and options.setdefault("idempotency_key", idempotency_key) != idempotency_key:
        raise _wrong(f"{place}/idempotency_key", "differs from the header Idempotency-Key; send one of them")
    if call.caller.queues is not None and "idempotency_key" in options:
        options["idempotency_key"] = _own_key(call.caller.queues, options["idempotency_key"])
    with refusing(place, options, said=said_as(new)):
        return _spec(call.service.app, new.type, new.payload, options)


def _spec(app: Packhorse, job_type: str, payload: Any, options: dict[str, Any]) -> JobSpec:
    """Make a job as the app does; but null is a payload, where in Python None says that there is none."""
    if payload is not None:
        return app.spec(job_type, payload, options, checked=True)
    task = app.tasks.get(check_name(job_type, "job type"))
    fields = read_options(options)
    if task is None:
        return app.make_spec(job_type, b"null", fields)
    data = task.arguments.write(None, checked=True)
    return app.make_spec(job_type, data, over_defaults(task.defaults, fields))


def make_definition(
    app: Packhorse, job_type: str, payload: Any, name: str, times: dict[str, Any], options: dict[str, Any]
) -> Schedule:
    """Make a schedule of such jobs, checked as the app does. Raises InvalidOption, InvalidName, InvalidPayload."""
    task = app.tasks.get(job_type)
    check_job_options(options)
    check_job_options({} if task is None else task.defaults)
    return make_schedule(name, _spec(app, job_type, payload, options), **times)


async def make_room(made: int) -> None:
    """Let other requests have their turn, now and then, while the jobs of a large one are made."""
    if made % _MADE_AT_ONCE == 0:
        await asyncio.sleep(0)


def options_of(new: NewJob, place: str = "") -> dict[str, Any]:
    """Answer the options that were given, by the names of `packhorse.options`. Raises Problem with the place."""
    options = {name: value for name, value in zip(_OPTIONS, _values_of_options(new), strict=True) if value is not UNSET}
    if "execute_at" in options and options.setdefault("at", options["execute_at"]) != options.pop("execute_at"):
        raise _wrong(f"{place}/execute_at", "contradicts at; send one of them")
    return options


def said_as(new: NewJob) -> dict[str, str]:
    """Answer by what other name an option was given."""
    return {} if new.execute_at is UNSET else {"at": "execute_at"}


class refusing:  # noqa: N801  # a context manager, read as a verb
    """Raise what is wrong with a job as a Problem with the place: of an option that cannot be read, or `otherwise`.

    `named` are other members of the same object, whose errors begin with their names; `said` are options that the body
    has under another name.
    """

    __slots__ = ("_named", "_options", "_otherwise", "_place", "_said")

    def __init__(
        self,
        place: str,
        options: dict[str, Any],
        otherwise: str = "",
        named: Collection[str] = (),
        said: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._place = place
        self._options = options
        self._otherwise = otherwise
        self._named = named
        self._said = said

    def __enter__(self) -> None:
        return

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            problem = self._problem(error)
            if problem is not None:
                raise problem from None

    def _problem(self, error: BaseException) -> Problem | None:
        if isinstance(error, PayloadTooLarge):
            fault = Fault(str(error), pointer=f"{self._place}/payload")
            return Problem(413, "too-large", "The payload is too large", str(error), faults=(fault,))
        if isinstance(error, InvalidPayload):
            return _wrong(f"{self._place}/payload{error.pointer}", str(error), "invalid-payload")
        if isinstance(error, InvalidName):
            return _wrong(f"{self._place}/{_unreadable(self._options) or 'type'}", str(error), "invalid-name")
        if isinstance(error, InvalidOption):
            return _wrong(self._place + self._place_of_option(error), str(error), "invalid-option")
        return None

    def _place_of_option(self, error: InvalidOption) -> str:
        """Answer which option is wrong: one that cannot be read, or else the one that the error begins with."""
        word = _unreadable(self._options) or option_of(error)
        if word in self._options:
            return f"/{self._said.get(word, word)}"
        return f"{self._otherwise}/{word}" if word in self._named else self._otherwise


def idempotency_key(call: Call) -> str | None:
    """Answer the header `Idempotency-Key`; None where there is none. Raises Problem (400)."""
    header = call.header("idempotency-key")
    if header is not None and (not 1 <= len(header) <= KEY_CHARS_MAX or not header.isprintable()):
        detail = f"must be 1 to {KEY_CHARS_MAX} printable characters"
        raise Problem(
            400,
            "invalid-option",
            "A header is wrong",
            f"Idempotency-Key: {detail}",
            faults=(Fault(detail, parameter="Idempotency-Key"),),
        )
    return header


def batch_key(header: str | None, name: str, new: NewJob) -> str | None:
    """Answer the idempotency key of one job of many, made from theirs; None where it has its own, or there is none."""
    if header is None or new.idempotency_key is not UNSET:
        return None
    return named_id("batch", header, name)


def _own_key(queues: frozenset[str], key: str) -> str:
    """Answer what an idempotency key stands for, apart from the keys of callers of other queues."""
    return key if len(key) > KEY_CHARS_MAX else named_id("scope", " ".join(sorted(queues)), key)


def _wrong(pointer: str, detail: str, kind: str = "invalid-option") -> Problem:
    return Problem(422, kind, "The job is not accepted", detail, faults=(Fault(detail, pointer=pointer),))


def _unreadable(options: dict[str, Any]) -> str:
    """Answer which option cannot be read; empty where they only do not go together."""
    for name, value in options.items():
        try:
            read_options({name: value})
        except (InvalidOption, InvalidName):
            return name
    return ""


async def store(call: Call, specs: Sequence[JobSpec]) -> list[Enqueued]:
    """Store jobs, all of them or none. Raises QueueFull at once: the one who asked knows best how long to wait."""
    app = call.service.app
    tracing = app.tracing()
    keep = Store(await call.backend(), app.chance, 0, together=True, tracing=tracing)
    return await keep(specs if tracing is not None else within_request(app, call.request, specs))


async def stored_json(call: Call, specs: Sequence[JobSpec], answers: Sequence[Enqueued]) -> list[dict[str, Any]]:
    """Answer the JSON of jobs that were just stored, or of those that were there."""
    children = [answer.id for spec, answer in zip(specs, answers, strict=True) if answer.created and spec.after]
    states: dict[str, State] = {}  # of children: their parents may have ended, well or badly, before they came
    for start in range(0, len(children), _JOBS_A_LOOK):
        for record in await (await call.backend()).get(children[start : start + _JOBS_A_LOOK]):
            if record is not None:
                states[record.id] = record.state
    return [_stored_json(spec, answer, states) for spec, answer in zip(specs, answers, strict=True)]


def _stored_json(spec: JobSpec, answer: Enqueued, states: Mapping[str, State]) -> dict[str, Any]:
    usual = State.WAITING if spec.after else State.SCHEDULED if spec.delay_ms > 0 else State.PENDING
    state = states.get(answer.id, usual)
    shown: dict[str, Any] = {
        "id": answer.id,
        "job_id": answer.id,
        "type": spec.type,
        "queue": spec.queue,
        "created": answer.created,
    }
    if answer.created:
        shown |= {"state": state, "status": status_word(state, 0)}
    return shown


class NewJobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Jobs to be stored together: all of them or none. Jobs that wait for one another are a workflow."""

    openapi: ClassVar[dict[str, Any]] = {
        "allOf": [{"properties": {"jobs": {"items": {"not": {"required": ["recurring"]}}}}}]
    }
    payload_depth: ClassVar[int] = 3

    jobs: Annotated[list[NewJob], Meta(min_length=1, max_length=BATCH_MAX)]
