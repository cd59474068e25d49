"""`/api/v1/queues`: what is in the queues, and whether workers may take it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ...admin import purged_json, queue_json
from ...limiting import CAPACITY_MAX
from ...shapes import list_json
from ..access import Permission
from ..operation import Call, Reply, Routes
from ..selecting import States
from ..shapes_operator import CapacityBody, PausedBody, PurgedBody, QueueBody, QueuesBody
from ..waiting import take_long

routes = Routes("queues")

AGES = frozenset({"oldest_pending_ms"})


class Capacity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many pending jobs a queue may hold."""

    capacity: Annotated[int, Meta(ge=0, le=CAPACITY_MAX, description="0 lifts the limit.")]


class Purge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be purged: all but running jobs, unless `states` says which."""

    states: States | UnsetType = UNSET


@routes.get("/api/v1/queues", may=Permission.LOOK, answer=QueuesBody, polled=True, ages=AGES)
async def list_queues(call: Call) -> Reply:
    """List the queues that have jobs or settings."""
    return Reply(list_json(map(queue_json, await (await call.admin()).queues())))


@routes.get("/api/v1/queues/{queue}", may=Permission.LOOK, answer=QueueBody, problems=(404,), polled=True, ages=AGES)
async def show_queue(call: Call) -> Reply:
    """Show one queue."""
    return Reply(queue_json(await (await call.admin()).queue(call.path["queue"])))


@routes.post("/api/v1/queues/{queue}/pause", may=Permission.STEER, answer=PausedBody)
async def pause_queue(call: Call) -> Reply:
    """Stop workers from taking jobs of a queue; what runs goes on. Takes effect at the next claim."""
    await (await call.admin()).pause([call.path["queue"]])
    return Reply({"queue": call.path["queue"], "paused": True})


@routes.post("/api/v1/queues/{queue}/resume", may=Permission.STEER, answer=PausedBody)
async def resume_queue(call: Call) -> Reply:
    """Let workers take jobs of a queue again."""
    await (await call.admin()).resume([call.path["queue"]])
    return Reply({"queue": call.path["queue"], "paused": False})


@routes.post(
    "/api/v1/queues/{queue}/purge",
    may=Permission.STEER,
    answer=PurgedBody,
    body_needed=False,
    example={"states": ["failed"]},
)
async def purge_queue(call: Call, body: Purge) -> Reply:
    """Remove the jobs of a queue, all but those that run, or those in some states.

    To remove what matches a filter, or to count it first, see `/api/v1/jobs/delete`.
    """
    take_long(call)
    queue = call.path["queue"]
    states = None if body.states is UNSET else body.states
    return Reply(purged_json(queue, await (await call.admin()).purge(queue, states)))


@routes.put(
    "/api/v1/queues/{queue}/capacity",
    may=Permission.STEER,
    answer=CapacityBody,
    problems=(501,),
    example={"capacity": 10_000},
)
async def set_capacity(call: Call, body: Capacity) -> Reply:
    """Let a queue hold at most so many pending jobs. An enqueue into a full one is answered with 429."""
    queue = call.path["queue"]
    await (await call.admin()).set_capacity(queue, body.capacity)
    return Reply({"queue": queue, "capacity": body.capacity or None})
