"""`/health`, `/livez`, `/readyz` and `/`: for load balancers, supervisors and people who look whether it is there."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from ...admin import health_json
from ..access import Permission
from ..operation import Call, Reply, Routes

routes = Routes("health")


class HealthBody(msgspec.Struct, frozen=True, kw_only=True):
    """How the server does. Who may not look around is told `status` and `service` only."""

    status: Literal["OK", "UNAVAILABLE", "STOPPING"]
    service: str
    version: str | UnsetType = UNSET
    latency_ms: int | UnsetType | None = UNSET
    workers: int | UnsetType = UNSET
    pending: int | UnsetType = UNSET
    problems: list[str] | UnsetType = UNSET


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go from here."""

    service: str
    links: dict[str, str]


LINKS = {
    "api": "/openapi.json",
    "jobs": "/api/v1/jobs",
    "queues": "/api/v1/queues",
    "health": "/health",
    "metrics": "/metrics",
}


@routes.get("/", may=None, answer=Links)
async def show_links(call: Call) -> Reply:
    """Say what this is and where to go on."""
    return Reply({"service": "packhorse", "links": LINKS})


@routes.get("/health", may=None, answer=HealthBody, answers={503: HealthBody})
async def show_health(call: Call) -> Reply:
    """Say whether the store answers and takes writes, as of at most a second ago, within a second.

    200 with status OK; 503 with status UNAVAILABLE where the store does not, or where this server could not write to it
    within the last 30 s and nothing shows that it can again: a full disk, a standby. `problems` is what an operator
    should look at: that, and queues that are paused or that no live worker takes from.
    """
    found = await call.service.look.health()
    shown = health_json(found)
    if not call.caller.may(Permission.LOOK):
        shown = _brief(found.status)
    elif call.caller.queues is not None:  # the rest speaks of queues that are none of this caller's business
        shown = {name: shown[name] for name in ("status", "service", "version", "latency_ms")}
    return _answer(found.status, shown)


@routes.get("/livez", may=None, answer=HealthBody)
async def show_liveness(call: Call) -> Reply:
    """Say that the process runs; asks nothing of the store. A supervisor restarts a server that does not answer."""
    return _answer("OK", _brief("OK"))


@routes.get("/readyz", may=None, answer=HealthBody, answers={503: HealthBody})
async def show_readiness(call: Call) -> Reply:
    """Say whether to send requests here.

    503 while the store does not answer or take writes, and once the server begins to stop.
    """
    status = "STOPPING" if call.service.stopping.is_set() else (await call.service.look.health()).status
    return _answer(status, _brief(status))


def _brief(status: str) -> dict[str, Any]:
    return {"status": status, "service": "packhorse"}


def _answer(status: str, shown: dict[str, Any]) -> Reply:
    return Reply(shown) if status == "OK" else Reply(shown, 503, {"Retry-After": "1"})
