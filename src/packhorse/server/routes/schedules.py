"""`/api/v1/schedules`: recurring jobs, and `/api/v1/slots`: when an expression comes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ...admin_schedules import schedule_json
from ...backends.base import Schedule
from ...clock import to_datetime
from ...cron import read_zone
from ...job import META_MAX, JobSpec, State
from ...options import read_instant_ms
from ...schedule import make_schedule, next_slots
from ...shapes import instant_json, list_json
from ..access import Permission
from ..enqueueing import make_definition, refusing
from ..fields import (
    CronText,
    Duration,
    DurationText,
    Instant,
    Jitter,
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
from ..operation import Call, Reply, Routes
from ..shapes_operator import (
    DefinedSchedule,
    RunBody,
    ScheduleBody,
    SchedulesBody,
    SlotsBody,
    SteeredSchedule,
)

routes = Routes("schedules")

Zone = Annotated[str, Meta(description="The time zone of `cron`, as Europe/Paris; UTC unless given.")]


class Definition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schedule: when, by `cron` or `every`, and the jobs of its slots."""

    payload_depth: ClassVar[int] = 1
    openapi: ClassVar[dict[str, Any]] = {"allOf": [{"oneOf": [{"required": ["cron"]}, {"required": ["every"]}]}]}

    type: Name
    payload: Annotated[
        Any, Meta(description="Any JSON, at most 1 MiB; checked where a task of the type is known.")
    ] = {}
    cron: CronText | UnsetType = UNSET
    every: Annotated[Duration, Meta(description="Instead of `cron`: 1s to 366d.")] | UnsetType = UNSET
    tz: Zone | UnsetType = UNSET
    missed: Missed | UnsetType = UNSET
    overlap: Overlap | UnsetType = UNSET
    jitter: Jitter | UnsetType = UNSET
    paused: Annotated[bool, Meta(description="Begin paused, if it is a new one.")] = False
    queue: Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    max_attempts: MaxAttempts | UnsetType = UNSET
    timeout: Timeout | UnsetType | None = UNSET
    unique: UniqueBy | UnsetType = UNSET
    unique_for: Duration | UnsetType = UNSET
    unique_states: Annotated[list[State], Meta(min_length=1)] | UnsetType = UNSET
    on_conflict: OnConflict | UnsetType = UNSET
    key: Key | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    meta: Annotated[dict[Name, MetaText], Meta(max_length=META_MAX)] | UnsetType = UNSET


_TIMES = ("cron", "every", "tz", "missed", "overlap", "jitter", "paused")
_OPTIONS = tuple(name for name in Definition.__struct_fields__ if name not in {"type", "payload", *_TIMES})


class Slots(msgspec.Struct, frozen=True, kw_only=True):
    """How many slots, and from when."""

    count: Annotated[int, Meta(ge=1, le=1_000)] = 5
    start: Annotated[Instant, Meta(description="Later than this instant, not than now.")] | UnsetType = msgspec.field(
        default=UNSET, name="from"
    )

    @property
    def start_ms(self) -> int | None:
        """The instant to begin after, None for now. Raises InvalidOption."""
        return None if self.start is UNSET else read_instant_ms(self.start, "from")


class Expression(Slots, frozen=True, kw_only=True):
    """When: by `cron` or `every`."""

    cron: CronText | UnsetType = UNSET
    every: Annotated[DurationText, Meta(description="Instead of `cron`: 30s, 5m; 1s to 366d.")] | UnsetType = UNSET
    tz: Zone | UnsetType = UNSET


def _given(struct: msgspec.Struct, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(struct, name)) is not UNSET}


# ---- look ------------------------------------------------------------------------------------------------


@routes.get("/api/v1/schedules", may=Permission.LOOK, answer=SchedulesBody, polled=True)
async def list_schedules(call: Call) -> Reply:
    """List the schedules of the store, whoever defined them."""
    return Reply(list_json(map(schedule_json, await (await call.admin()).schedules.list())))


@routes.get("/api/v1/schedules/{name}", may=Permission.LOOK, answer=ScheduleBody, problems=(404,))
async def show_schedule(call: Call) -> Reply:
    """Show a schedule."""
    return Reply(schedule_json(await (await call.admin()).schedules.show(call.path["name"])))


@routes.get("/api/v1/schedules/{name}/next", may=Permission.LOOK, answer=SlotsBody, problems=(404,))
async def list_schedule_slots(call: Call, query: Slots) -> Reply:
    """Show when a schedule comes next, whether or not it is paused."""
    definition = await (await call.admin()).schedules.show(call.path["name"])
    return Reply(_slots_json(call, definition, query))


@routes.get("/api/v1/slots", may=Permission.LOOK, answer=SlotsBody)
async def list_slots(call: Call, query: Expression) -> Reply:
    """Show when an expression comes next: what a schedule with it would do."""
    times = _given(query, ("cron", "every", "tz"))
    return Reply(_slots_json(call, make_schedule("expression", JobSpec(id="", type="none"), **times), query))


def _slots_json(call: Call, definition: Schedule, query: Slots) -> dict[str, Any]:
    after_ms = call.service.app.clock.now_ms() if query.start_ms is None else query.start_ms
    zone = read_zone(definition.tz)
    return list_json(
        {"at": instant_json(slot_ms), "local": to_datetime(slot_ms).astimezone(zone).isoformat()}
        for slot_ms in next_slots(definition, after_ms, query.count)
    )


# ---- steer -----------------------------------------------------------------------------------------------


@routes.put(
    "/api/v1/schedules/{name}",
    may=Permission.STEER,
    answer=DefinedSchedule,
    answers={201: DefinedSchedule},
    problems=(409, 501),
    example={"type": "report", "cron": "0 9 * * mon-fri", "tz": "Europe/Paris"},
)
async def define_schedule(call: Call, body: Definition) -> Reply:
    """Make a schedule, or change the one of that name; jobs it has made stay as they are. 201 if it is new."""
    options = _given(body, _OPTIONS)
    times = _given(body, _TIMES)
    with refusing("", options, named=times):
        definition = make_definition(call.service.app, body.type, body.payload, call.path["name"], times, options)
        schedules = (await call.admin()).schedules
        answer = await schedules.define(definition)
    found = schedule_json(await schedules.show(definition.name)) | {"answer": answer}
    return Reply(found, 201 if answer == "added" else 200)


@routes.post("/api/v1/schedules/{name}/pause", may=Permission.STEER, answer=SteeredSchedule, problems=(404,))
async def pause_schedule(call: Call) -> Reply:
    """Make no more jobs of a schedule until it is resumed; jobs that are there go on."""
    await (await call.admin()).schedules.pause([call.path["name"]])
    return Reply({"name": call.path["name"], "paused": True})


@routes.post("/api/v1/schedules/{name}/resume", may=Permission.STEER, answer=SteeredSchedule, problems=(404,))
async def resume_schedule(call: Call) -> Reply:
    """Let a schedule make jobs again, from now on; slots of the pause are left out."""
    await (await call.admin()).schedules.resume([call.path["name"]])
    return Reply({"name": call.path["name"], "paused": False})


@routes.post(
    "/api/v1/schedules/{name}/run",
    may=Permission.STEER,
    answer=RunBody,
    status=201,
    answers={200: RunBody},
    problems=(404, 409, 429),
)
async def run_schedule(call: Call) -> Reply:
    """Enqueue one job of a schedule now. Its slots come as they would have.

    200 where its jobs must not overlap and one has not ended: nothing is added.
    """
    answer = await (await call.admin()).schedules.run(call.path["name"])
    return Reply({"id": answer.id, "created": answer.created}, 201 if answer.created else 200)


@routes.delete("/api/v1/schedules/{name}", may=Permission.STEER, status=204, problems=(404,))
async def remove_schedule(call: Call) -> Reply:
    """Remove a schedule; its jobs stay. One of an app's code comes back when a worker of the app starts."""
    await (await call.admin()).schedules.remove([call.path["name"]])
    return Reply(status=204)
