"""`/api/v1/job-types`: which jobs can be enqueued, and with what payloads."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from ...shapes import list_json
from ..access import Permission
from ..operation import Call, Reply, Routes
from ..payloads import payload_schema
from ..shapes_operator import TypesBody

if TYPE_CHECKING:
    from ...task import Task

routes = Routes("job types")


@routes.get("/api/v1/job-types", may=Permission.LOOK, answer=TypesBody, polled=True)
async def list_job_types(call: Call) -> Reply:
    """List the job types that this server or a live worker knows, with the JSON Schemas of their payloads."""
    return Reply(await _types(call))


@routes.get("/api/v1/jobs/types", may=Permission.LOOK, answer=TypesBody, polled=True)
async def list_types_of_jobs(call: Call) -> Reply:
    """List the job types, under another name; see `/api/v1/job-types`."""
    return Reply(await _types(call))


async def _types(call: Call) -> dict[str, Any]:
    workers = await (await call.backend()).workers()
    serving = Counter(job_type for worker in workers for job_type in worker.types)
    tasks = call.service.app.tasks
    return list_json(_type_json(name, tasks.get(name), serving[name]) for name in sorted(tasks.keys() | serving.keys()))


def _type_json(name: str, task: Task[..., Any] | None, workers: int) -> dict[str, Any]:
    return {
        "type": name,
        "registered": task is not None,
        "description": None if task is None else task.description or None,
        "schema": None if task is None else payload_schema(task),
        "defaults": {} if task is None else msgspec.to_builtins(task.defaults, enc_hook=str),
        "workers": workers,
    }
