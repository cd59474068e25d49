"""`/api/v1/jobs`: jobs in, and what became of them. What stops, reruns and removes them is in `steering`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ...admin import Admin, error_text, job_json, why_json
from ...admin_schedules import schedule_json
from ...backends.base import BATCH_MAX, Page, Query, job_topic
from ...backends.http import wire
from ...job import TERMINAL, JobRecord, State
from ...schedule import from_recurring
from ...settings import duration_ms
from ...shapes import list_json, value_json
from ..access import Permission, lacks
from ..enqueueing import (
    NewJob,
    NewJobs,
    batch_key,
    idempotency_key,
    make_definition,
    make_room,
    make_spec,
    options_of,
    refusing,
    said_as,
    store,
    stored_json,
)
from ..fields import WAIT_PATTERN
from ..operation import Call, Reply, Routes, location
from ..problems import Fault, Problem
from ..selecting import JobsPage
from ..shapes import JobBody, JobsBody, ResultBody, StateBody, StoredJob, StoredJobs, WhyBody
from ..shapes_operator import DefinedSchedule
from ..waiting import wait_until
from ..words import status_word

routes = Routes("jobs")

IDEMPOTENCY_KEY = {
    "Idempotency-Key": "Send the same key again and there is one job, whatever became of the first answer."
}

#: Bytes of the body of a batch: 1,000 jobs, not each of the largest size.
BATCH_BYTES_MAX = 8 << 20
#: Bytes of payloads, results and errors after which a page ends, about, and of one look into the store (FAILURES C16).
PAGE_BYTES_MAX = 8 << 20
_LOOK_BYTES = 1 << 20
_LOOK_JOBS_MIN, _LOOK_JOBS_MAX = 8, 200
#: The same where only errors are large: 50 of them are up to 1 MiB.
_BRIEF_JOBS_MIN = 32
#: How long a client may wait for a result.
WAIT_MS_MAX = 60_000


def shown(record: JobRecord, *, brief: bool = False) -> dict[str, Any]:
    """Answer the JSON of a job, with its `status` in the words of REQUIREMENTS section B."""
    found = job_json(record) | {"status": status_word(record.state, record.attempt)}
    return found | {"payload": None, "result": None} if brief else found


# ---- jobs in ---------------------------------------------------------------------------------------------


@routes.post(
    "/api/v1/jobs",
    may=Permission.SUBMIT,
    answer=(StoredJob, DefinedSchedule),
    status=201,
    answers={200: (StoredJob, DefinedSchedule)},
    problems=(409, 413, 429, 501),
    headers=IDEMPOTENCY_KEY,
    example={"type": "email", "payload": {"to": "a@example.com"}, "delay": "5m", "priority": "high"},
)
async def create_job(call: Call, body: NewJob) -> Reply:
    """Store a job.

    201 with a new one; 200 with the one that holds its unique key or idempotency key already. With `recurring` it
    defines a schedule of such jobs instead, named as their type unless `recurring` has a `name`, and answers with the
    schedule: 201 if it is new, else 200. That asks for the right to steer.
    """
    if body.recurring is not UNSET:
        return await _define(call, body)
    spec = make_spec(call, body, idempotency_key=idempotency_key(call))
    answers = await store(call, [spec])
    (found,) = await stored_json(call, [spec], answers)
    return Reply(found, 201 if answers[0].created else 200, location("/api/v1/jobs/", answers[0].id))


async def _define(call: Call, body: NewJob) -> Reply:
    """Define a schedule of such jobs. The header `Idempotency-Key` says nothing new: a schedule is one by its name."""
    if not call.caller.may(Permission.STEER):
        raise lacks(call.caller, Permission.STEER, "a schedule")
    options = options_of(body)
    recurring = msgspec.to_builtins(body.recurring)
    with refusing("", options, "/recurring", recurring, said_as(body)):
        times = {"name": body.type, **from_recurring(recurring)}
        definition = make_definition(call.service.app, body.type, body.payload, times.pop("name"), times, options)
    admin = await call.admin()
    answer = await admin.schedules.define(definition)
    found = schedule_json(await admin.schedules.show(definition.name)) | {"answer": answer}
    return Reply(found, 201 if answer == "added" else 200, {"Location": f"/api/v1/schedules/{definition.name}"})


@routes.post(
    "/api/v1/jobs/batch",
    may=Permission.SUBMIT,
    answer=StoredJobs,
    status=201,
    answers={200: StoredJobs},
    problems=(409, 413, 429, 501),
    headers={"Idempotency-Key": "Send the same key with the same jobs again and there is one of each."},
    body_bytes_max=BATCH_BYTES_MAX,
    example={"jobs": [{"type": "email", "payload": {"to": "a@example.com"}}, {"type": "report"}]},
)
async def create_jobs(call: Call, body: NewJobs) -> Reply:
    """Store up to 1,000 jobs: all of them or none.

    201 if any of them is new, else 200. The idempotency key of each is made from the header and its place in the list,
    unless it has one of its own.
    """
    header = idempotency_key(call)
    specs = []
    for index, new in enumerate(body.jobs):
        await make_room(index)
        place = f"/jobs/{index}"
        if new.recurring is not UNSET:
            detail = "a batch holds no schedules; define it with PUT /api/v1/schedules/{name}"
            raise Problem(
                422,
                "invalid-option",
                "The job is not accepted",
                detail,
                faults=(Fault(detail, pointer=f"{place}/recurring"),),
            )
        specs.append(make_spec(call, new, place, batch_key(header, str(index), new)))
    answers = await store(call, specs)
    items = await stored_json(call, specs, answers)
    return Reply(list_json(items), 201 if any(answer.created for answer in answers) else 200)


# ---- look ------------------------------------------------------------------------------------------------


@routes.get("/api/v1/jobs", may=Permission.LOOK, answer=JobsBody, polled=True)
async def list_jobs(call: Call, query: JobsPage) -> Reply:
    """List jobs, newest first, a page at a time.

    A page ends after `limit` jobs or about 8 MiB of payloads, results and errors, whichever comes first; `brief` leaves
    payloads and results out.
    """
    return Reply(await listed(await call.admin(), query.query()))


async def listed(admin: Admin, query: Query) -> dict[str, Any]:
    """Answer a page of jobs, gathered from looks."""
    items: list[dict[str, Any]] = []
    after: str | None = None
    async for page in looks(admin, query, query.limit, PAGE_BYTES_MAX):
        items += [shown(job, brief=query.brief) for job in page.jobs]
        after = page.next
    return list_json(items, after)


async def looks(admin: Admin, query: Query, jobs_max: int, bytes_max: int) -> AsyncGenerator[Page, None]:
    """Walk the jobs that match, in looks that are as large as their jobs allow: each may have 3 MiB (FAILURES C16).

    Ends after `jobs_max` jobs, or with the look in which payloads, results and errors come to `bytes_max`.
    """
    least, most = (_BRIEF_JOBS_MIN, BATCH_MAX) if query.brief else (_LOOK_JOBS_MIN, _LOOK_JOBS_MAX)
    size = least
    while True:
        page: Page = await admin.find(msgspec.structs.replace(query, limit=min(size, jobs_max)))
        look_bytes = sum(map(wire.bytes_of_record, page.jobs))
        jobs_max -= len(page.jobs)
        bytes_max -= look_bytes
        yield page
        if page.next is None or jobs_max <= 0 or bytes_max <= 0:
            return
        query = msgspec.structs.replace(query, cursor=page.next)
        size = min(size * 2, most) if look_bytes < _LOOK_BYTES else least


@routes.get("/api/v1/jobs/{id}", may=Permission.LOOK, answer=JobBody, problems=(404,))
async def show_job(call: Call) -> Reply:
    """Show all that is kept of a job."""
    admin = await call.admin()
    return Reply(shown(await admin.show(call.path["id"])))


@routes.get("/api/v1/jobs/{id}/why", may=Permission.LOOK, answer=WhyBody, problems=(404,))
async def explain_job(call: Call) -> Reply:
    """Tell what holds a job now, the most decisive first, and what would free it; or how it ended."""
    admin = await call.admin()
    return Reply(why_json(await admin.why(call.path["id"], park_ms=call.service.settings.park_ms)))


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait for the end of a job."""

    wait: (
        Annotated[
            str,
            Meta(
                description='How long to wait for its end, "30s" or seconds, at most 60s; not at all unless given.',
                examples=["30s"],
                extra_json_schema={"pattern": WAIT_PATTERN},
            ),
        ]
        | UnsetType
    ) = UNSET


@routes.get(
    "/api/v1/jobs/{id}/result",
    may=Permission.LOOK,
    answer=ResultBody,
    answers={202: StateBody},
    problems=(404,),
)
async def show_result(call: Call, query: Wait) -> Reply:
    """Answer how a job ended, or wait for it.

    200 once it has ended, with its result or its error; 202 with its state while it has not. A wait ends early when
    the server stops: ask again.
    """
    wait_ms = 0 if query.wait is UNSET else duration_ms(query.wait, "wait", WAIT_MS_MAX)
    job_id = call.path["id"]
    admin = await call.admin()

    async def look() -> tuple[JobRecord, bool]:
        record = await admin.show(job_id)
        return record, record.state in TERMINAL

    record, ended = await look()
    if not ended and wait_ms:
        record = await wait_until(call, [job_topic(job_id)], wait_ms, look)
    if record.state not in TERMINAL:
        return Reply({"id": record.id, "state": record.state}, 202)
    failed = record.errors and record.state is not State.SUCCEEDED
    return Reply(
        {
            "id": record.id,
            "state": record.state,
            "result": None if record.result is None else value_json(record.result),
            "error": error_text(record.errors[-1]) if failed else None,
        }
    )
