"""`/api/v1/events`: what happens to jobs, as it happens."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.responses import Response

from ...errors import Unavailable, Unsupported
from ...job import State, check_name
from ..access import Permission
from ..feed.events import Filter
from ..feed.streaming import HEADERS, Stream, StreamResponse
from ..operation import Call, Routes

routes = Routes("events")

#: How long a client waits for the store to answer for the first time, before it is told to come again.
_BEGIN_S = 5.0

_Text = Annotated[str, Meta(min_length=1, max_length=256)]
_Texts = Annotated[list[_Text], Meta(max_length=50)]


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to hear of. A parameter may be there several times: any of its values. Several parameters: all of them."""

    queue: _Texts = []
    type: _Texts = []
    state: Annotated[list[State], Meta(max_length=7)] = []
    workflow: _Texts = []
    job: _Texts = []
    key: _Texts = []
    tag: _Texts = []
    events: Annotated[
        str,
        Meta(
            pattern="^(job|stats)(,(job|stats))?$",
            description="job: moves of jobs. stats: counts of queues, when they changed, once a second at most.",
        ),
    ] = "job"
    after: Annotated[str, Meta(max_length=4_096)] | None = msgspec.field(default=None)


@routes.get(
    "/api/v1/events",
    may=Permission.LOOK,
    media_type="text/event-stream",
    problems=(429, 501),
    headers={"Last-Event-ID": "The `id` of the last event that was received: the stream goes on behind it."},
)
async def follow_events(call: Call, query: EventQuery) -> Response:
    """Tell what happens to jobs, as server-sent events.

    `hello` comes first; `job` for each move; `stats` with counts of queues; `gap` where events were lost, so that the
    client has to look anew. The `id` of an event is the place to go on from: `Last-Event-ID`, or `after`.
    """
    wanted = _filter(query, call.caller.queues)
    backend = await call.service.app.backend()
    if not backend.capabilities.changes:
        raise Unsupported("changes", "poll /api/v1/jobs instead")
    if call.request.method == "HEAD":
        return Response(headers=HEADERS)
    kinds = query.events.split(",")
    feed = call.service.feed
    after = call.header("last-event-id") or query.after or None
    stream = Stream(feed, wanted, owner=call.caller.name, after=after, jobs="job" in kinds, counts="stats" in kinds)
    feed.add(stream)
    try:
        if not await stream.started(_BEGIN_S):
            raise Unavailable("the store does not answer; try again later")
    except BaseException:
        stream.end()
        raise
    return StreamResponse(stream)


def _filter(query: EventQuery, scope: frozenset[str] | None) -> Filter:
    """Read the filter. Raises InvalidName."""
    for names, what in ((query.queue, "queue"), (query.type, "job type"), (query.tag, "tag")):
        for name in names:
            check_name(name, what)
    return Filter(
        scope=scope,
        queues=_any(query.queue),
        types=_any(query.type),
        states=frozenset(query.state) or None,
        workflows=_any(query.workflow),
        jobs=_any(query.job),
        keys=_any(query.key),
        tags=_any(query.tag),
    )


def _any(values: list[str]) -> frozenset[str] | None:
    return frozenset(values) or None
