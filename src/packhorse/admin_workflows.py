"""The operator's verbs on workflows, as `Admin.workflows`, and the one JSON shape of a workflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from . import workflow_jobs
from .admin_json import error_text
from .admin_values import Answer
from .backends.base import Backend, Query, WorkflowCounts
from .errors import InvalidOption
from .job import LIVE, JobRecord, State
from .shapes import instant_json

#: Workflows on a page: the name of each is one more look-up.
PAGE_MAX = 100


class WorkflowView(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow as an operator sees it; `jobs`, parents before children, only where it is shown alone."""

    counts: WorkflowCounts
    name: str | None = None
    jobs: tuple[JobRecord, ...] = ()

    @property
    def state(self) -> str:
        """One word for all of it: live, failed (something did), cancelled, succeeded."""
        states = {state for state, count in self.counts.states.items() if count}
        if states & LIVE:
            return "live"
        return str(next((bad for bad in (State.FAILED, State.CANCELLED) if bad in states), State.SUCCEEDED))


class AdminWorkflows:
    """What an operator can see and do about workflows."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def list(self, limit: int = 20, before: str | None = None) -> tuple[Sequence[WorkflowView], str | None]:
        """Answer workflows, newest first, and what goes on behind the last of them (None: there is no more)."""
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidOption(f"limit: {limit} must be from 1 to {PAGE_MAX}")
        found = await self._backend.workflows(limit + 1, before)
        views = []
        for counts in found[:limit]:
            page = await self._backend.find(Query(workflow=counts.id, limit=1, brief=True, oldest_first=True))
            views.append(WorkflowView(counts=counts, name=_name(page.jobs)))
        return views, found[limit - 1].id if len(found) > limit else None

    async def show(self, workflow_id: str) -> WorkflowView:
        """Answer a workflow with all its jobs, without payloads and results. Raises NotFound."""
        counts = await workflow_jobs.count(self._backend, workflow_id)
        jobs = [job async for page in workflow_jobs.walk(self._backend, workflow_id) for job in page]
        return WorkflowView(counts=counts, name=_name(jobs), jobs=tuple(jobs))

    async def cancel(self, workflow_id: str) -> Sequence[Answer]:
        """Stop all jobs of a workflow that have not ended. Raises NotFound."""
        answers = await workflow_jobs.cancel(self._backend, workflow_id)
        return [Answer(job_id, answer) for job_id, answer in answers.items()]

    async def rerun(self, workflow_id: str, *, cancelled: bool = False) -> Sequence[Answer]:
        """Start the failed jobs of a workflow over; with `cancelled`, those too that somebody cancelled."""
        answers = await workflow_jobs.rerun(self._backend, workflow_id, cancelled=cancelled)
        return [Answer(job_id, answer) for job_id, answer in answers.items()]


def _name(jobs: Sequence[JobRecord]) -> str | None:
    return (jobs[0].meta or {}).get(workflow_jobs.NAME_META) if jobs else None


def depths(jobs: tuple[JobRecord, ...]) -> dict[str, int]:
    """Answer how many levels of the workflow's own jobs are before each job, by id."""
    found: dict[str, int] = {}
    for job in jobs:  # parents are stored before their children
        found[job.id] = max((found[parent] + 1 for parent in job.after if parent in found), default=0)
    return found


def took_ms(job: JobRecord, now_ms: int) -> int | None:
    """Answer how long the last run of a job took, or takes until now; None if there is none."""
    if job.started_at_ms is None:
        return None
    end_ms = job.finished_at_ms if job.finished_at_ms is not None else now_ms if job.state is State.RUNNING else None
    return None if end_ms is None else max(0, end_ms - job.started_at_ms)


def workflow_json(view: WorkflowView, now_ms: int | None = None) -> dict[str, Any]:
    """Answer the JSON of a workflow; with `now_ms`, its `nodes` too."""
    shown: dict[str, Any] = {
        "id": view.counts.id,
        "name": view.name,
        "state": view.state,
        "states": {str(state): view.counts.states.get(state, 0) for state in State},
        "created_at": instant_json(view.counts.created_at_ms),
    }
    if now_ms is not None:
        names = {job.id: job.node or job.id for job in view.jobs}
        levels = depths(view.jobs)
        shown["nodes"] = [
            {
                "id": job.id,
                "node": job.node,
                "type": job.type,
                "queue": job.queue,
                "state": str(job.state),
                "level": levels[job.id],
                "after": [names.get(parent, parent) for parent in job.after],
                "after_failed": job.after_failed,
                "waiting_for": job.waiting_for,
                "attempt": job.attempt,
                "max_attempts": job.max_attempts,
                "error": error_text(job.errors[-1]) if job.errors and job.state is not State.SUCCEEDED else None,
                "started_at": instant_json(job.started_at_ms),
                "finished_at": instant_json(job.finished_at_ms),
                "duration_ms": took_ms(job, now_ms),
            }
            for job in view.jobs
        ]
    return shown
