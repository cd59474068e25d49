"""`/api/v1/jobs`: jobs stopped, started over and removed, one or many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ... import codec
from ...admin import Answer, answers_json, sweep_json
from ...backends.base import Query, Rerun, Steered
from ...errors import NotFound
from ...options import read_options
from ...settings import duration_ms
from ..access import Permission
from ..enqueueing import refusing
from ..fields import Duration, MaxAttempts, Name, Priority
from ..operation import Call, Reply, Routes
from ..problems import Problem
from ..selecting import DeleteSelection, RerunSelection, Selection, check_selection
from ..shapes import AnswerBody, AnswersBody, SweepBody
from ..waiting import take_long

routes = Routes("jobs")

#: What `Steered` means where nothing was done, by verb.
_REFUSALS: dict[tuple[str, Steered], str] = {
    ("cancel", Steered.ENDED): "it had ended already; rerun or delete it",
    ("rerun", Steered.LIVE): "it has not ended; cancel it first",
    ("rerun", Steered.CONFLICT): "another live job holds its unique key; wait for that one to end, or cancel it",
    ("delete", Steered.LIVE): "it is running; cancel it first",
}


class Edits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different about a job that is started over; what is left out stays as it is."""

    payload_depth: ClassVar[int] = 1

    payload: Annotated[Any, Meta(description="Any JSON; checked where a task of the type is known.")] = UNSET
    queue: Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    max_attempts: MaxAttempts | UnsetType = UNSET
    delay: Annotated[Duration, Meta(description="Start it after this time.")] | UnsetType = UNSET


# ---- one job ---------------------------------------------------------------------------------------------


@routes.post("/api/v1/jobs/{id}/cancel", may=Permission.STEER, answer=AnswerBody, problems=(404, 409))
async def cancel_job(call: Call) -> Reply:
    """Stop a job.

    `done`: it will never start (again). `requested`: it runs, and its worker will be told to stop it.
    """
    return _one("cancel", await (await call.admin()).cancel([call.path["id"]]))


@routes.post(
    "/api/v1/jobs/{id}/rerun",
    may=Permission.STEER,
    answer=AnswerBody,
    problems=(404, 409),
    body_needed=False,
    example={"payload": {"to": "b@example.com"}, "max_attempts": 3},
)
async def rerun_job(call: Call, body: Edits) -> Reply:
    """Start an ended job over with all its attempts, as it was or with something about it changed."""
    admin = await call.admin()
    job_id = call.path["id"]
    options = {
        name: value
        for name in ("queue", "priority", "max_attempts", "delay")
        if (value := getattr(body, name)) is not UNSET
    }
    with refusing("", options):
        fields = read_options(options)
        if body.payload is not UNSET:
            task = call.service.app.tasks.get((await admin.show(job_id)).type)
            write = codec.encode if task is None else task.arguments.write
            fields["payload"] = write(body.payload, checked=True)
        change = Rerun(id=job_id, **fields)
        answer = await admin.edit(change)
    return _one("rerun", [answer])


@routes.delete("/api/v1/jobs/{id}", may=Permission.STEER, answer=AnswerBody, problems=(404, 409))
async def delete_job(call: Call) -> Reply:
    """Remove a job and all that is kept of it. One that runs stays."""
    return _one("delete", await (await call.admin()).delete([call.path["id"]]))


def _one(verb: str, answers: Iterable[Answer]) -> Reply:
    """Answer what is true of one job, as a problem where nothing was done."""
    (answer,) = answers
    if answer.answer is Steered.MISSING:
        raise NotFound(f"no job {answer.id[:128]!r}: never enqueued here, deleted, or kept long enough and dropped")
    refusal = _REFUSALS.get((verb, answer.answer))
    if refusal is not None:
        raise Problem(409, f"job-{answer.answer}", "The job stays as it is", refusal, fields={"job_id": answer.id})
    return Reply({"id": answer.id, "answer": answer.answer})


# ---- many jobs -------------------------------------------------------------------------------------------


@routes.post(
    "/api/v1/jobs/cancel",
    may=Permission.STEER,
    answer=(AnswersBody, SweepBody),
    example={"filter": {"queue": "mail", "states": ["pending"]}, "dry_run": True},
)
async def cancel_jobs(call: Call, body: Selection) -> Reply:
    """Stop jobs by id or by filter.

    A filter takes the jobs that have not ended. By ids the answer is one for each; by filter it is how many, and the
    call lasts until all are done: repeating it goes on where it was.
    """
    check_selection(body.ids, filtered=body.filter is not UNSET, dry_run=body.dry_run)
    take_long(call)
    admin = await call.admin()
    if body.filter is UNSET:
        return Reply(answers_json(await admin.cancel(_ids(body))))
    return Reply(sweep_json(await admin.cancel_matching(body.filter.query(), dry_run=body.dry_run)))


@routes.post(
    "/api/v1/jobs/rerun",
    may=Permission.STEER,
    answer=(AnswersBody, SweepBody),
    example={"filter": {"type": "email", "states": ["failed", "cancelled"]}, "dry_run": True},
)
async def rerun_jobs(call: Call, body: RerunSelection) -> Reply:
    """Start ended jobs over by id or by filter.

    A filter takes failed jobs only, unless it names other states. See `/api/v1/dead-letter/rerun` for groups and rates.
    """
    check_selection(body.ids, filtered=body.filter is not UNSET, dry_run=body.dry_run)
    delay_ms = 0 if body.delay is UNSET else duration_ms(body.delay, "delay")
    take_long(call)
    admin = await call.admin()
    if body.filter is UNSET:
        return Reply(answers_json(await admin.rerun(_ids(body), delay_ms=delay_ms)))
    sweep = await admin.rerun_matching(body.filter.query(), delay_ms=delay_ms, dry_run=body.dry_run)
    return Reply(sweep_json(sweep))


@routes.post(
    "/api/v1/jobs/delete",
    may=Permission.STEER,
    answer=(AnswersBody, SweepBody),
    example={"filter": {"states": ["cancelled"]}, "dry_run": True},
)
async def delete_jobs(call: Call, body: DeleteSelection) -> Reply:
    """Remove jobs by id or by filter, or a group of failed ones. Jobs that run stay."""
    filtered = body.filter is not UNSET or body.group is not UNSET
    check_selection(body.ids, filtered=filtered, dry_run=body.dry_run)
    take_long(call)
    admin = await call.admin()
    if not filtered:
        return Reply(answers_json(await admin.delete(_ids(body))))
    query = Query() if body.filter is UNSET else body.filter.query()
    group = None if body.group is UNSET else body.group
    return Reply(sweep_json(await admin.delete_matching(query, group=group, dry_run=body.dry_run)))


def _ids(body: Selection) -> list[str]:
    assert body.ids is not UNSET
    return body.ids
