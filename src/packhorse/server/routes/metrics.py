"""`/metrics`: what this server counts and what the store says, for Prometheus."""

from __future__ import annotations

from starlette.responses import Response

from ..access import Permission, refuse_scoped
from ..operation import Call, Routes

routes = Routes("health")


@routes.get(
    "/metrics",
    may=Permission.LOOK,
    media_type="text/plain",
    headers={"Accept": "application/openmetrics-text answers OpenMetrics 1.0, with exemplars"},
)
async def show_metrics(call: Call) -> Response:
    """Answer all metrics as text for Prometheus: of this server and the worker beside it, and of the store.

    A store that does not answer within 2 s is `packhorse_store_up 0`, and the rest is there all the same.
    """
    refuse_scoped(call.caller)
    found = await call.service.scrapes.answer(call.header("accept") or "")
    return Response(found.content, headers={"Content-Type": found.media_type})
