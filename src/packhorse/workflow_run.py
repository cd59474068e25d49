"""The handle of a workflow that was stored."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from . import workflow_jobs
from .backends.base import BATCH_MAX, Query, Steered, job_topic
from .client import Job
from .errors import JobEndedBadly, NotFound, ResultTimeout, WorkflowFailed
from .job import LIVE, TERMINAL, JobRecord, State
from .settings import duration_ms
from .wording import quantity

if TYPE_CHECKING:
    from .app import Packhorse

T = TypeVar("T")

#: Jobs that a waiting `result` listens for at once; the others are looked at when these have ended.
_WATCHED_MAX = 100
_RESULT_POLL_MS = 500
#: Failed nodes that the error of a `result` names.
_FAILED_SHOWN_MAX = 100


class WorkflowRun:
    """A workflow by its id. Blocking methods for blocking code; the same with an `a` before it for async code."""

    def __init__(
        self,
        app: Packhorse,
        workflow_id: str,
        *,
        name: str | None = None,
        jobs: dict[str, Job[Any]] | None = None,
        sinks: tuple[str, ...] = (),
    ) -> None:
        self.app = app
        self.id = workflow_id
        self.name = name
        self._jobs = jobs
        self._sinks = sinks

    def __repr__(self) -> str:
        return f"<WorkflowRun {self.name or self.id}>"

    def _blocking(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.app.portal.call(coroutine)

    async def ajobs(self) -> dict[str, Job[Any]]:
        """Answer the jobs by node name. Raises NotFound."""
        if self._jobs is None:
            await self._load()
        assert self._jobs is not None
        return dict(self._jobs)

    @property
    def jobs(self) -> dict[str, Job[Any]]:
        """The jobs by node name; looked up if this handle was made from an id. Raises NotFound."""
        return dict(self._jobs) if self._jobs is not None else self._blocking(self.ajobs())

    def __getitem__(self, node: str) -> Job[Any]:
        return self.jobs[node]

    async def _load(self) -> None:
        backend = await self.app.backend()
        jobs: dict[str, Job[Any]] = {}
        parents: set[str] = set()
        async for page in workflow_jobs.walk(backend, self.id):
            for record in page:
                parents.update(record.after)
                if record.node is not None:
                    task = self.app.tasks.get(record.type)
                    result_type = task.arguments.result_type if task is not None else Any
                    jobs[record.node] = Job(self.app, record.id, result_type=result_type)
        if not jobs:
            raise NotFound(f"no workflow {self.id[:128]!r}: never enqueued here, or all of it was dropped")
        self._jobs, self._sinks = jobs, tuple(node for node, job in jobs.items() if job.id not in parents)

    async def astate(self) -> dict[State, int]:
        """Count the jobs by state, those that its jobs added with `ctx.then` too. Raises NotFound."""
        return dict((await workflow_jobs.count(await self.app.backend(), self.id)).states)

    @property
    def state(self) -> dict[State, int]:
        """How many of the jobs are in each state. Raises NotFound."""
        return self._blocking(self.astate())

    async def aended(self) -> bool:
        """Answer whether nothing of it waits or runs any more."""
        return not any(state in LIVE for state in await self.astate())

    @property
    def ended(self) -> bool:
        """Whether nothing of it waits or runs any more."""
        return self._blocking(self.aended())

    async def acancel(self) -> dict[Steered, int]:
        """Stop all of it: answers how many jobs will never start (DONE) and how many run and are told (REQUESTED)."""
        return _tally(await workflow_jobs.cancel(await self.app.backend(), self.id))

    def cancel(self) -> dict[Steered, int]:
        """Stop all of it; see `acancel`."""
        return self._blocking(self.acancel())

    async def arerun_failed(self, *, cancelled: bool = False) -> int:
        """Start the failed jobs over, and what was cancelled because of them; answers how many were started over.

        With `cancelled`, also those that somebody cancelled. What has succeeded stays, with its result.
        """
        answers = await workflow_jobs.rerun(await self.app.backend(), self.id, cancelled=cancelled)
        return _tally(answers).get(Steered.DONE, 0)

    def rerun_failed(self, *, cancelled: bool = False) -> int:
        """Start the failed jobs over; see `arerun_failed`."""
        return self._blocking(self.arerun_failed(cancelled=cancelled))

    async def aresult(
        self, timeout: float | str | None = None, *, nodes: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Wait for the last nodes (those nothing comes after), or for `nodes`; answer their results by name.

            rows = run.result(timeout="5m")["load"]

        Raises WorkflowFailed (it names the nodes that failed), ResultTimeout, NotFound.
        """
        jobs = await self.ajobs()
        wanted = tuple(dict.fromkeys(self._sinks if nodes is None else nodes))
        missing = [name for name in wanted if name not in jobs]
        if missing:
            raise NotFound(f"workflow {self.id}: no node {missing[0][:128]!r}; there are {', '.join(list(jobs)[:20])}")
        records = await self._wait([jobs[name].id for name in wanted], timeout)
        results: dict[str, Any] = {}
        bad: dict[str, str] = {}
        for name in wanted:
            try:
                results[name] = jobs[name].read_result(records[jobs[name].id])
            except JobEndedBadly as error:
                bad[name] = error.reason
        if bad:
            raise WorkflowFailed(self.id, {**await self._failed(), **bad})
        return results

    def result(self, timeout: float | str | None = None, *, nodes: Iterable[str] | None = None) -> dict[str, Any]:
        """Wait for the last nodes, or for `nodes`, and answer their results by name; see `aresult`."""
        return self._blocking(self.aresult(timeout, nodes=nodes))

    async def _wait(self, ids: Sequence[str], timeout: float | str | None) -> dict[str, JobRecord]:
        """Wait for jobs to end, however many; answers their records."""
        backend = await self.app.backend()
        loop = asyncio.get_running_loop()
        end_s = None if timeout is None else loop.time() + duration_ms(timeout, "timeout") / 1000
        found: dict[str, JobRecord] = {}
        while left := [job_id for job_id in ids if job_id not in found][:BATCH_MAX]:
            with backend.watch([job_topic(job_id) for job_id in left[:_WATCHED_MAX]]) as bell:
                met = len(found)
                for job_id, record in zip(left, await backend.get(left), strict=True):
                    if record is None:
                        raise NotFound(f"no job {job_id}: it was deleted, or kept long enough and dropped")
                    if record.state in TERMINAL:
                        found[job_id] = record
                if len(found) > met:
                    continue
                left_ms = _RESULT_POLL_MS if end_s is None else (end_s - loop.time()) * 1000
                if left_ms <= 0:
                    live = quantity(len(ids) - len(found), "job")
                    raise ResultTimeout(f"workflow {self.id}: {live} still live after {timeout}")
                await bell.wait(min(left_ms, _RESULT_POLL_MS))
        return found

    async def _failed(self) -> dict[str, str]:
        """Answer why nodes failed, by name: the reason that the cancelled ones behind them do not know."""
        backend = await self.app.backend()
        query = Query(workflow=self.id, states=(State.FAILED,), brief=True, oldest_first=True, limit=_FAILED_SHOWN_MAX)
        return {
            job.node or job.id: f"{job.errors[-1].kind}: {job.errors[-1].message}" if job.errors else "failed"
            for job in (await backend.find(query)).jobs
        }


def _tally(answers: dict[str, Steered]) -> dict[Steered, int]:
    tally: dict[Steered, int] = {}
    for answer in answers.values():
        tally[answer] = tally.get(answer, 0) + 1
    return tally
