"""`/api/v1/jobs/{id}/log`: a job's story, with what its runs logged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ...admin_json import story_json
from ...job import MAX_ATTEMPTS_MAX, State
from ...story import matching
from ..access import Permission
from ..fields import Count, Moment
from ..operation import Call, Reply, Routes

routes = Routes("jobs")

Level = Literal["debug", "info", "warning", "error", "critical"]


class LogLineBody(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. Of what the store knows itself, the logger is `packhorse`."""

    at: Moment
    level: str
    logger: str
    attempt: Annotated[int, Meta(ge=0, description="0: it belongs to no attempt.")]
    message: str


class LogBody(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a job, by time."""

    id: str
    type: str
    queue: str
    state: State
    attempt: int
    left_out: Annotated[Count, Meta(description="Lines that its runs logged and that are not kept.")]
    items: list[LogLineBody]


class JobLogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines to answer."""

    attempt: Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS_MAX, description="Of this attempt only.")] | UnsetType = UNSET
    level: Annotated[Level, Meta(description="Of this level and above.")] | UnsetType = UNSET


@routes.get("/api/v1/jobs/{id}/log", may=Permission.LOOK, answer=LogBody, problems=(404,), polled=True)
async def show_job_log(call: Call, query: JobLogFilter) -> Reply:
    """Tell a job's story: what became of it, and what its latest eight attempts logged, the latest 200 lines of each.

    What a run logs is here about a second later. Texts of errors and of log lines are shown as they are, but for
    passwords in URLs: only payloads and results are known well enough to hide what is secret in them.
    """
    story = await (await call.admin()).log(call.path["id"])
    found: dict[str, Any] = story_json(
        story,
        matching(
            story.lines,
            attempt=None if query.attempt is UNSET else query.attempt,
            level=None if query.level is UNSET else query.level,
        ),
    )
    return Reply(found)
