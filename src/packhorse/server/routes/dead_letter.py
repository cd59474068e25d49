"""`/api/v1/dead-letter`: the jobs that have failed for good, and what went wrong."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from ...admin import answers_json, sweep_json
from ...admin_failed import groups_json
from ...backends.base import Query
from ...errors import InvalidOption
from ...job import State
from ...rates import read_rate
from ...settings import duration_ms
from ..access import Permission
from ..operation import Call, Reply, Routes
from ..selecting import DeadRerun, DeadSelection, FailedFilter, FailedPage, check_selection
from ..shapes import AnswersBody, JobsBody, SweepBody
from ..shapes_operator import GroupsBody
from ..waiting import take_long
from .jobs import listed

routes = Routes("dead-letter")

#: Failed jobs that are grouped, the newest: one and a half seconds of a core.
GROUPED_MAX = 50_000


@routes.get("/api/v1/dead-letter", may=Permission.LOOK, answer=JobsBody, polled=True)
async def list_failed(call: Call, query: FailedPage) -> Reply:
    """List the jobs that have failed for good, newest first, with their errors."""
    failed = msgspec.structs.replace(query.query(), states=(State.FAILED,))
    return Reply(await listed(await call.admin(), failed))


@routes.get("/api/v1/dead-letter/groups", may=Permission.LOOK, answer=GroupsBody, polled=True)
async def group_failed(call: Call, query: FailedFilter) -> Reply:
    """Count the failed jobs by what went wrong, the largest group first.

    Errors are the same where their kind, their text without numbers, ids and quoted parts, and the place in the code
    are. Of more than 50,000 failed jobs the newest are counted, and `truncated` says so. Who asks again soon gets the
    same answer.
    """
    take_long(call)
    seen_by = (call.caller.queues, call.caller.may(Permission.STEER))

    async def group() -> dict[str, Any]:
        admin = await call.admin()
        return groups_json(await admin.group_failed(query.query(), jobs_max=GROUPED_MAX))

    return Reply(await call.service.groups.get((seen_by, msgspec.json.encode(query)), group))


@routes.post(
    "/api/v1/dead-letter/rerun",
    may=Permission.STEER,
    answer=(AnswersBody, SweepBody),
    example={"filter": {"type": "email"}, "rate": "10/s", "dry_run": True},
)
async def rerun_failed(call: Call, body: DeadRerun) -> Reply:
    """Start failed jobs over: by ids, a group, a filter, or all of them.

    With a `rate` the call ends at once: each job is due so much later than the one before, and the store waits.
    """
    check_selection(body.ids, filtered=_is_filtered(body), dry_run=body.dry_run)
    delay_ms = 0 if body.delay is UNSET else duration_ms(body.delay, "delay")
    rate = None if body.rate is UNSET else read_rate(body.rate)
    take_long(call)
    admin = await call.admin()
    if body.ids is not UNSET:
        if rate is not None:
            raise InvalidOption("rate: is for filters and groups; give ids a delay")
        return Reply(answers_json(await admin.rerun(body.ids, delay_ms=delay_ms)))
    query, group = _read(body)
    sweep = await admin.rerun_matching(query, delay_ms=delay_ms, rate=rate, group=group, dry_run=body.dry_run)
    return Reply(sweep_json(sweep))


@routes.post(
    "/api/v1/dead-letter/purge",
    may=Permission.STEER,
    answer=SweepBody,
    example={"filter": {"queue": "mail"}, "dry_run": True},
)
async def purge_failed(call: Call, body: DeadSelection) -> Reply:
    """Remove failed jobs: by a group, a filter, or all of them."""
    check_selection(UNSET, filtered=_is_filtered(body), dry_run=body.dry_run)
    take_long(call)
    query, group = _read(body)
    query = msgspec.structs.replace(query, states=(State.FAILED,))
    return Reply(sweep_json(await (await call.admin()).delete_matching(query, group=group, dry_run=body.dry_run)))


def _is_filtered(body: DeadSelection) -> bool:
    return body.filter is not UNSET or body.group is not UNSET


def _read(body: DeadSelection) -> tuple[Query, str | None]:
    query = Query() if body.filter is UNSET else body.filter.query()
    return query, None if body.group is UNSET else body.group
