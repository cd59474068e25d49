"""The verbs on all jobs of a workflow, for its handle and for operators alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator

import msgspec

from .backends.base import BATCH_MAX, Backend, Query, Rerun, Steered, WorkflowCounts
from .errors import NotFound
from .job import LIVE, JobRecord, State

#: The `meta` entry of each job that carries the name of its workflow.
NAME_META = "workflow"

#: A cancel walks the workflow again until nothing new is met: jobs that run may add others meanwhile.
CANCEL_WALKS_MAX = 10

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def walk(
    backend: Backend, workflow_id: str, *, states: tuple[State, ...] = (), oldest_first: bool = True
) -> AsyncIterator[list[JobRecord]]:
    """Go through the jobs of a workflow, up to 1,000 at a time, without payloads and results."""
    query = Query(workflow=workflow_id, states=states, oldest_first=oldest_first, brief=True, limit=BATCH_MAX)
    while True:
        page = await backend.find(query)
        if page.jobs:
            yield page.jobs
        if page.next is None:
            return
        query = msgspec.structs.replace(query, cursor=page.next)


async def count(backend: Backend, workflow_id: str) -> WorkflowCounts:
    """Count the jobs of one workflow by state. Raises NotFound."""
    behind = _id_behind(workflow_id)
    if behind is not None:
        found = await backend.workflows(1, behind)
        if found and found[0].id == workflow_id:
            return found[0]
    else:
        jobs = [job async for page in walk(backend, workflow_id) for job in page]
        if jobs:
            states = Counter(job.state for job in jobs)
            return WorkflowCounts(
                id=workflow_id, states=dict(states), created_at_ms=min(job.created_at_ms for job in jobs)
            )
    raise NotFound(f"no workflow {workflow_id[:128]!r}: never enqueued here, or all of it was dropped")


def _id_behind(workflow_id: str) -> str | None:
    """Answer the UUID behind this one, so that a page before it begins with it; None for an id of another kind."""
    if not _UUID.fullmatch(workflow_id) or workflow_id.endswith("f" * 12):
        return None
    return workflow_id[:24] + f"{int(workflow_id[24:], 16) + 1:012x}"


async def cancel(backend: Backend, workflow_id: str) -> dict[str, Steered]:
    """Stop all jobs of a workflow that have not ended; answers what became of each, by id.

    Children before their parents, so that no end of a parent starts one that goes on whatever happens. Raises NotFound.
    """
    await count(backend, workflow_id)
    answers: dict[str, Steered] = {}
    for _ in range(CANCEL_WALKS_MAX):
        met = len(answers)
        async for jobs in walk(backend, workflow_id, states=tuple(LIVE), oldest_first=False):
            ids = [job.id for job in jobs if answers.get(job.id) is not Steered.REQUESTED]
            answers.update(zip(ids, await backend.cancel(ids), strict=True))
        if len(answers) == met:
            break
    return answers


async def rerun(backend: Backend, workflow_id: str, *, cancelled: bool = False) -> dict[str, Steered]:
    """Start the failed jobs of a workflow over; what was cancelled because of them waits for them again.

    With `cancelled`, also what somebody cancelled. Answers what became of each that was started over. Raises NotFound.
    """
    await count(backend, workflow_id)
    states = (State.FAILED, State.CANCELLED) if cancelled else (State.FAILED,)
    ids = [job.id async for jobs in walk(backend, workflow_id, states=states) for job in jobs]
    answers: dict[str, Steered] = {}
    for start in range(0, len(ids), BATCH_MAX):  # parents first: a child waits for those that live
        batch = ids[start : start + BATCH_MAX]
        answers.update(zip(batch, await backend.rerun([Rerun(id=job_id) for job_id in batch]), strict=True))
    # A cancelled child is revived by its parent's rerun, and lives when its own turn comes.
    return {job_id: Steered.DONE if answer is Steered.LIVE else answer for job_id, answer in answers.items()}
