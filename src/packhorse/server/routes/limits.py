"""`/api/v1/rate-limits`, `/concurrency-limits` and `/limits`: how fast jobs of a type start, over all workers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ...admin_limits import LimitSet, limit_json
from ...backends.base import EACH_KEY
from ...backends.base import Limit as StoredLimit
from ...errors import NotFound
from ...limits import CONCURRENCY_MAX, PERIOD_MS_MAX, RATE_MAX
from ...rates import make_limit, rate_text
from ...settings import duration_ms
from ...shapes import list_json
from ..access import Permission
from ..fields import Duration, Key
from ..operation import Call, Reply, Routes
from ..shapes_operator import LimitBody, LimitsBody, LiveLimitsBody, SetLimitBody

routes = Routes("limits")


class OfKey(msgspec.Struct, frozen=True, kw_only=True):
    """Which limit of a type."""

    key: (
        Annotated[
            Key,
            Meta(description=f"The limit of this key of the type; {EACH_KEY} for that of every key, each for itself."),
        ]
        | UnsetType
    ) = UNSET

    @property
    def given(self) -> str | None:
        """The key, None for the type as a whole."""
        return None if self.key is UNSET else self.key


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate: `limit` starts in a `period`, and `burst` of them at once after a pause."""

    limit: Annotated[int, Meta(ge=1, le=RATE_MAX, description="Starts in a period.")]
    burst: (
        Annotated[
            int, Meta(ge=1, le=RATE_MAX, description="Starts at once after a pause; unless given, those of 100 ms.")
        ]
        | UnsetType
    ) = UNSET
    period: Annotated[Duration, Meta(description='A second unless given; "1m", "10s", at least a ms.')] = "1s"


class Concurrency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many jobs may run at the same time."""

    limit: Annotated[int, Meta(ge=1, le=CONCURRENCY_MAX)]


@routes.get("/api/v1/limits", may=Permission.LOOK, answer=LimitsBody, problems=(501,), polled=True)
async def list_limits(call: Call) -> Reply:
    """List all limits, those of operators and those of the apps' code."""
    return Reply(list_json(map(limit_json, await (await call.admin()).limits.list())))


@routes.get("/api/v1/limits/{type}", may=Permission.LOOK, answer=LiveLimitsBody, problems=(501,))
async def show_limits(call: Call, query: OfKey) -> Reply:
    """List the limits that a job of a type, and of a key, must pass, with what runs now and when they open."""
    found = await (await call.admin()).limits.show(call.path["type"], query.given)
    return Reply(list_json(limit_json(limit, live=True) for limit in found))


@routes.delete("/api/v1/limits/{type}", may=Permission.STEER, answer=LimitBody, problems=(404, 501))
async def clear_limit(call: Call, query: OfKey) -> Reply:
    """Remove the limit of a type, or of a key of it: rate and concurrency. Answers with what it was.

    One of an app's code comes back when a worker starts.
    """
    limits = (await call.admin()).limits
    held = await limits.named(call.path["type"], query.given)
    if held is None or not await limits.clear(held.type, held.key):
        raise _missing(call.path["type"], query.given)
    return Reply(limit_json(held))


# ---- rates -----------------------------------------------------------------------------------------------


@routes.get("/api/v1/rate-limits/{type}", may=Permission.LOOK, answer=LimitBody, problems=(404, 501))
async def show_rate_limit(call: Call, query: OfKey) -> Reply:
    """Show the rate of a type, or of a key of it."""
    return Reply(limit_json(await _held(call, query, "rate")))


@routes.post(
    "/api/v1/rate-limits/{type}",
    may=Permission.STEER,
    answer=SetLimitBody,
    problems=(501,),
    example={"limit": 100, "burst": 10, "period": "1s"},
)
async def set_rate_limit(call: Call, query: OfKey, body: Rate) -> Reply:
    """Limit how fast jobs of a type start, over all workers and queues, from the next claim on.

    An operator's limit: no app's code changes it. A limit on concurrency stays as it is.
    """
    period_ms = duration_ms(body.period, "period", PERIOD_MS_MAX)
    burst = None if body.burst is UNSET else body.burst
    change = make_limit(call.path["type"], query.given, rate=rate_text(body.limit, period_ms), burst=burst)
    return _set(await (await call.admin()).limits.set(change))


@routes.delete("/api/v1/rate-limits/{type}", may=Permission.STEER, answer=LimitBody, problems=(404, 501))
async def lift_rate_limit(call: Call, query: OfKey) -> Reply:
    """Lift the rate of a type, or of a key of it; a limit on concurrency stays. Answers with what it was."""
    held = await _held(call, query, "rate")
    await (await call.admin()).limits.lift(held.type, held.key, "rate")
    return Reply(limit_json(held))


# ---- concurrency -----------------------------------------------------------------------------------------


@routes.get("/api/v1/concurrency-limits/{type}", may=Permission.LOOK, answer=LimitBody, problems=(404, 501))
async def show_concurrency_limit(call: Call, query: OfKey) -> Reply:
    """Show the limit on how many jobs of a type, or of a key of it, run at the same time."""
    return Reply(limit_json(await _held(call, query, "concurrency")))


@routes.post(
    "/api/v1/concurrency-limits/{type}",
    may=Permission.STEER,
    answer=SetLimitBody,
    problems=(501,),
    example={"limit": 3},
)
async def set_concurrency_limit(call: Call, query: OfKey, body: Concurrency) -> Reply:
    """Limit how many jobs of a type run at the same time, over all workers and queues, from the next claim on.

    An operator's limit: no app's code changes it. A rate stays as it is.
    """
    change = make_limit(call.path["type"], query.given, concurrency=body.limit)
    return _set(await (await call.admin()).limits.set(change))


@routes.delete("/api/v1/concurrency-limits/{type}", may=Permission.STEER, answer=LimitBody, problems=(404, 501))
async def lift_concurrency_limit(call: Call, query: OfKey) -> Reply:
    """Lift the limit on concurrency of a type, or of a key of it; a rate stays. Answers with what it was."""
    held = await _held(call, query, "concurrency")
    await (await call.admin()).limits.lift(held.type, held.key, "concurrency")
    return Reply(limit_json(held))


def _set(done: LimitSet) -> Reply:
    return Reply({**limit_json(done.limit), "known": done.known})


async def _held(call: Call, query: OfKey, part: Literal["rate", "concurrency"]) -> StoredLimit:
    """Answer the limit that is asked about. Raises NotFound where it has no such part."""
    held = await (await call.admin()).limits.named(call.path["type"], query.given)
    if held is None or getattr(held, part) is None:
        raise _missing(call.path["type"], query.given, part)
    return held


def _missing(job_type: str, key: str | None, part: str = "") -> NotFound:
    whose = (
        job_type if key is None else f"each key of {job_type}" if key == EACH_KEY else f"the key {key} of {job_type}"
    )
    return NotFound(f"there is no {part + ' ' if part else ''}limit of {whose}; GET /api/v1/limits lists all")
