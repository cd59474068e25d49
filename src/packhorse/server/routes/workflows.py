"""`/api/v1/workflows`: jobs that start when others have ended."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ...admin import answers_json
from ...admin_workflows import PAGE_MAX, workflow_json
from ...backends.base import BATCH_MAX
from ...errors import InvalidName, InvalidOption, Unsupported
from ...shapes import list_json
from ..access import Permission
from ..enqueueing import NewJob, batch_key, idempotency_key, make_room, make_spec, store
from ..fields import AfterFailed, Cursor, Name
from ..operation import Call, Reply, Routes, location
from ..problems import Fault, Problem
from ..shapes import AnswersBody
from ..shapes_operator import StoredWorkflow, WorkflowsBody, WorkflowWithNodes
from ..waiting import take_long
from .jobs import BATCH_BYTES_MAX

routes = Routes("workflows")


class WorkflowsPage(msgspec.Struct, frozen=True, kw_only=True):
    """How many workflows."""

    limit: Annotated[int, Meta(ge=1, le=PAGE_MAX, description="Workflows on a page.")] = 20
    cursor: Cursor | UnsetType = UNSET


class NewNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job of a workflow, to start when all nodes in `after` have succeeded."""

    name: Name
    job: Annotated[NewJob, Meta(description="Its own `after` may name jobs outside of the workflow, by id.")]
    after: Annotated[list[Name], Meta(max_length=BATCH_MAX, description="Names of nodes, in any order.")] = []
    after_failed: AfterFailed | UnsetType = UNSET


class NewWorkflow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A workflow: any graph of jobs without a cycle."""

    openapi: ClassVar[dict[str, Any]] = {
        "allOf": [{"properties": {"nodes": {"items": {"properties": {"job": {"not": {"required": ["recurring"]}}}}}}}]
    }
    payload_depth: ClassVar[int] = 4

    nodes: Annotated[list[NewNode], Meta(min_length=1, max_length=BATCH_MAX)]
    name: Annotated[Name, Meta(description="A name for people; several may have the same.")] | UnsetType = UNSET


class RerunWorkflow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be started over."""

    cancelled: Annotated[bool, Meta(description="Also what somebody cancelled, not only what failed.")] = False


@routes.post(
    "/api/v1/workflows",
    may=Permission.SUBMIT,
    answer=StoredWorkflow,
    status=201,
    answers={200: StoredWorkflow},
    problems=(409, 413, 429, 501),
    headers={"Idempotency-Key": "Send the same key with the same workflow again and there is one."},
    body_bytes_max=BATCH_BYTES_MAX,
    example={
        "name": "nightly",
        "nodes": [
            {"name": "extract", "job": {"type": "extract_rows", "payload": {"day": "2030-01-31"}}},
            {"name": "load", "after": ["extract"], "job": {"type": "load_rows"}},
        ],
    },
)
async def create_workflow(call: Call, body: NewWorkflow) -> Reply:
    """Store a workflow of up to 1,000 jobs: all of it or nothing.

    201 with a new one; 200 where it was stored before under the same idempotency key.
    """
    header = idempotency_key(call)
    workflow = call.service.app.workflow(name=None if body.name is UNSET else body.name)
    for index, node in enumerate(body.nodes):
        place = f"/nodes/{index}"
        await make_room(index)
        if node.job.recurring is not UNSET:
            raise _refused(
                InvalidOption("a workflow holds no schedules; leave recurring out"), f"{place}/job/recurring"
            )
        spec = make_spec(call, node.job, f"{place}/job", batch_key(header, f"workflow {node.name}", node.job))
        after_failed = None if node.after_failed is UNSET else node.after_failed
        try:
            workflow.add(node.name, spec, after=node.after, after_failed=after_failed)
        except (InvalidOption, InvalidName) as error:
            raise _refused(error, place) from None
    try:
        specs = workflow.specs()
    except InvalidOption as error:
        raise _refused(error, "/nodes") from None
    backend = await call.backend()
    if any(spec.after for spec in specs) and not backend.capabilities.dependencies:
        raise Unsupported("dependencies")
    answers = await store(call, specs)
    created = any(answer.created for answer in answers)
    workflow_id = workflow.id
    if not created:  # stored before, all in one move: by what its jobs say it is
        (record,) = await backend.get([answers[0].id])
        workflow_id = (record.workflow if record is not None else None) or workflow_id
    stored = {
        "id": workflow_id,
        "name": workflow.name,
        "created": created,
        "jobs": {str(spec.node): answer.id for spec, answer in zip(specs, answers, strict=True)},
    }
    return Reply(stored, 201 if created else 200, location("/api/v1/workflows/", workflow_id))


def _refused(error: Exception, pointer: str) -> Problem:
    return Problem(
        422,
        "invalid-option",
        "The workflow is not accepted",
        str(error),
        faults=(Fault(str(error), pointer=pointer),),
    )


@routes.get("/api/v1/workflows", may=Permission.LOOK, answer=WorkflowsBody, polled=True)
async def list_workflows(call: Call, query: WorkflowsPage) -> Reply:
    """List workflows with how many of their jobs are in each state, newest first."""
    cursor = None if query.cursor is UNSET else query.cursor
    found, more = await (await call.admin()).workflows.list(query.limit, cursor)
    return Reply(list_json(map(workflow_json, found), more))


@routes.get("/api/v1/workflows/{id}", may=Permission.LOOK, answer=WorkflowWithNodes, problems=(404,))
async def show_workflow(call: Call) -> Reply:
    """Show the jobs of a workflow, parents before children: what each waits for, its state, how long it took."""
    view = await (await call.admin()).workflows.show(call.path["id"])
    return Reply(workflow_json(view, call.service.app.clock.now_ms()))


@routes.post("/api/v1/workflows/{id}/cancel", may=Permission.STEER, answer=AnswersBody, problems=(404,))
async def cancel_workflow(call: Call) -> Reply:
    """Stop all jobs of a workflow: those that run are stopped by their workers, the others will never start."""
    take_long(call)
    return Reply(answers_json(await (await call.admin()).workflows.cancel(call.path["id"])))


@routes.post(
    "/api/v1/workflows/{id}/rerun",
    may=Permission.STEER,
    answer=AnswersBody,
    problems=(404,),
    body_needed=False,
    example={"cancelled": True},
)
async def rerun_workflow(call: Call, body: RerunWorkflow) -> Reply:
    """Start the failed jobs of a workflow over. What was cancelled because of them waits for them again."""
    take_long(call)
    admin = await call.admin()
    return Reply(answers_json(await admin.workflows.rerun(call.path["id"], cancelled=body.cancelled)))
