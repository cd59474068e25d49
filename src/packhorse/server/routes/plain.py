"""`/jobs` and `/logs` at the root: the routes and words of a simpler job engine (REQUIREMENTS section B).

For programs that speak them already. Newer ones take `/api/v1`, which shows more and has pages.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ...admin import Admin
from ...backends.base import Query
from ...job import JobRecord, State
from ...shapes import instant_json, value_json
from ..access import Permission
from ..enqueueing import NewJob, idempotency_key, make_spec, store
from ..fields import Name, Priority
from ..history import JOBS_MAX, Event, history_lines, history_of
from ..operation import Call, Reply, Routes, location
from ..words import plain_status_word
from .jobs import IDEMPOTENCY_KEY, looks

routes = Routes("plain")

Status = Literal["PENDING", "PROCESSING", "RETRY", "DONE", "FAILED"]

#: Jobs that are looked at for one answer, where most are not of the status that was asked for.
_LOOKED_AT_MAX = 5_000
#: Bytes that are looked at for one answer, likewise.
_LOOKED_AT_BYTES_MAX = 64 << 20
#: Bytes of payloads after which a list ends, about.
_LIST_BYTES_MAX = 8 << 20

_STATES: dict[Status, tuple[State, ...]] = {
    "PENDING": (State.WAITING, State.PENDING, State.SCHEDULED),
    "PROCESSING": (State.RUNNING,),
    "RETRY": (State.SCHEDULED,),
    "DONE": (State.SUCCEEDED,),
    "FAILED": (State.FAILED, State.CANCELLED),
}
_AGAIN = frozenset({State.WAITING, State.PENDING, State.SCHEDULED})


class PlainJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job to be stored. `/api/v1/jobs` takes more options."""

    payload_depth: ClassVar[int] = 1

    type: Name
    payload: Annotated[str | dict[str, Any], Meta(description="Text or an object, as the job's handler wants it.")] = {}
    max_retries: Annotated[int, Meta(ge=0, le=999, description="Runs after the first; 3 by default.")] | UnsetType = (
        UNSET
    )
    priority: Priority | UnsetType = UNSET


class PlainStored(msgspec.Struct, frozen=True, kw_only=True):
    """A job that was stored, or that was there under the same idempotency key."""

    job_id: str
    status: Status
    message: str


class PlainJobBody(msgspec.Struct, frozen=True, kw_only=True):
    """A job. `retry_count` says how often it was tried again, `updated_at` when it last changed."""

    id: str
    type: str
    payload: Any
    status: Status
    retry_count: int
    max_retries: int
    created_at: str
    updated_at: str


class PlainFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list."""

    limit: Annotated[int, Meta(ge=1, le=1_000, description="How many at most.")] = 100
    status: Status | UnsetType = UNSET


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines to answer."""

    limit: Annotated[int, Meta(ge=1, le=10_000, description="How many at most: the latest.")] = 1_000


@routes.post(
    "/jobs",
    may=Permission.SUBMIT,
    answer=PlainStored,
    status=201,
    answers={200: PlainStored},
    problems=(409, 413, 429),
    headers=IDEMPOTENCY_KEY,
    example={"type": "email", "payload": "send welcome email to user@example.com"},
)
async def create_plain_job(call: Call, body: PlainJob) -> Reply:
    """Store a job whose payload is text or an object.

    201 with a new one; 200 with the one that was stored under the same idempotency key.
    """
    given = {name: value for name in body.__struct_fields__ if (value := getattr(body, name)) is not UNSET}
    spec = make_spec(call, NewJob(**given), idempotency_key=idempotency_key(call))
    answer = (await store(call, [spec]))[0]
    where = location("/jobs/", answer.id)
    if answer.created:
        state = State.SCHEDULED if spec.delay_ms > 0 else State.PENDING
        return Reply(_stored(answer.id, plain_status_word(state, 0), "the job is stored"), 201, where)
    (record,) = await (await call.backend()).get([answer.id])
    status = "PENDING" if record is None else plain_status_word(record.state, record.attempt)
    return Reply(_stored(answer.id, status, "the job was there already"), 200, where)


def _stored(job_id: str, status: str, message: str) -> dict[str, Any]:
    return {"job_id": job_id, "status": status, "message": message}


@routes.get("/jobs", may=Permission.LOOK, answer=list[PlainJobBody])
async def list_plain_jobs(call: Call, query: PlainFilter) -> Reply:
    """List jobs as a bare array, newest first.

    It ends after `limit` jobs, about 8 MiB of payloads, or 5,000 jobs or 64 MiB looked at; `/api/v1/jobs` has pages.
    """
    states = () if query.status is UNSET else _STATES[query.status]
    found: list[dict[str, Any]] = []
    payload_bytes = 0
    async with aclosing(_newest(await call.admin(), Query(states=states), _LOOKED_AT_MAX)) as newest:
        async for record in newest:
            if query.status is not UNSET and plain_status_word(record.state, record.attempt) != query.status:
                continue
            found.append(plain_job_json(record))
            payload_bytes += len(record.payload)
            if len(found) >= query.limit or payload_bytes >= _LIST_BYTES_MAX:
                break
    return Reply(found)


@routes.get("/jobs/{job_id}", may=Permission.LOOK, answer=PlainJobBody, problems=(404,))
async def show_plain_job(call: Call) -> Reply:
    """Show a job."""
    return Reply(plain_job_json(await (await call.admin()).show(call.path["job_id"])))


@routes.get("/logs", may=Permission.LOOK, answer=list[str])
async def list_log_lines(call: Call, query: LogFilter) -> Reply:
    """List what happened to the newest 1,000 jobs, a line each, in order of time (UTC).

    Made from what the store keeps of a job: that it was enqueued, its failed runs, its latest start and its end. No
    payloads and no texts of errors are in it.
    """
    events: list[Event] = []
    async for record in _newest(await call.admin(), Query(brief=True), JOBS_MAX):
        events += history_of(record)
    return Reply(history_lines(events, query.limit))


async def _newest(admin: Admin, query: Query, jobs_max: int) -> AsyncGenerator[JobRecord, None]:
    """Walk the jobs that match, newest first."""
    async with aclosing(looks(admin, query, jobs_max, _LOOKED_AT_BYTES_MAX)) as pages:
        async for page in pages:
            for record in page.jobs:
                yield record


def plain_job_json(record: JobRecord) -> dict[str, Any]:
    """Answer the JSON of a job as `/jobs` shows it."""
    instants = [record.created_at_ms, record.started_at_ms, record.finished_at_ms]
    instants += [error.at_ms for error in record.errors[-1:]]
    return {
        "id": record.id,
        "type": record.type,
        "payload": value_json(record.payload),
        "status": plain_status_word(record.state, record.attempt),
        "retry_count": record.attempt if record.state in _AGAIN else max(0, record.attempt - 1),
        "max_retries": max(0, record.max_attempts - 1),
        "created_at": instant_json(record.created_at_ms),
        "updated_at": instant_json(max(instant for instant in instants if instant is not None)),
    }
