"""Gathers what `why.explain` needs. A few calls for each job, none of them without a bound."""

from __future__ import annotations

import msgspec

from .backends.base import BATCH_MAX, Backend, Query, WorkerInfo
from .job import LIVE, TERMINAL, JobRecord, State, rank
from .why import Cause, Facts, ShutLimit, explain

#: Jobs that are named in a cause.
JOBS_NAMED_MAX = 5
#: Pages of 1,000 jobs that are looked through for those before a job in line, or for the holder of its key.
LINE_PAGES_MAX = 5
HOLDER_PAGES_MAX = 10
#: Parents that are looked at, some at a time: each may carry 1 MiB.
PARENTS_MAX = 1_000
_PARENTS_A_LOOK = 16


class Explained(msgspec.Struct, frozen=True):
    """A job, and why it is where it is; the most decisive cause first."""

    job: JobRecord
    causes: list[Cause]


async def look_into(
    backend: Backend, job_id: str, now_ms: int, park_ms: int, *, follow: bool = True
) -> Explained | None:
    """Answer why a job is where it is; None where there is no such job. Follows its parents one level."""
    job = (await backend.get([job_id]))[0]
    if job is None:
        return None
    return Explained(job, explain(await _gather(backend, job, now_ms, park_ms, follow)))


async def _gather(backend: Backend, job: JobRecord, now_ms: int, park_ms: int, follow: bool) -> Facts:
    facts = Facts(job=job, now_ms=now_ms, park_ms=park_ms)
    if job.state in LIVE:
        facts = msgspec.structs.replace(facts, workers=await _workers(backend))
    if job.state in LIVE and job.state is not State.RUNNING:
        settings = (await backend.queues()).get(job.queue)
        facts = msgspec.structs.replace(facts, paused=bool(settings is not None and settings.paused))
    if job.state is State.PENDING:
        before, more = await _before(backend, job)
        shut = await _shut_limits(backend, job)
        facts = msgspec.structs.replace(facts, shut=shut, before=before, before_more=more)
    if job.state in {State.WAITING, State.CANCELLED}:
        facts = msgspec.structs.replace(facts, parents=await _parents(backend, job))
    if job.state is State.WAITING and follow:
        causes = {}
        for parent in facts.parents:
            if parent.state not in TERMINAL:
                found = await look_into(backend, parent.id, now_ms, park_ms, follow=False)
                if found is not None:
                    causes[parent.id] = found.causes[0]
        facts = msgspec.structs.replace(facts, parent_causes=causes)
    if job.state in TERMINAL and job.unique is not None:
        facts = msgspec.structs.replace(facts, holder=await _holder(backend, job))
    return facts


async def _workers(backend: Backend) -> tuple[WorkerInfo, ...]:
    return tuple(worker for worker in await backend.workers() if worker.lease_left_ms > 0)


async def _shut_limits(backend: Backend, job: JobRecord) -> tuple[ShutLimit, ...]:
    if not backend.capabilities.limits:
        return ()
    found = []
    for limit in await backend.limits(about=(job.type, job.key)):
        if limit.opens_in_ms is not None and limit.opens_in_ms <= 0:
            continue
        ids: tuple[str, ...] = ()
        if limit.opens_in_ms is None:
            key = None if limit.key is None else job.key
            query = Query(states=(State.RUNNING,), type=job.type, key=key, brief=True, limit=JOBS_NAMED_MAX)
            ids = tuple(one.id for one in (await backend.find(query)).jobs)
        found.append(ShutLimit(limit=limit, running_ids=ids))
    return tuple(found)


async def _before(backend: Backend, job: JobRecord) -> tuple[int, bool]:
    """Count the pending jobs with a better place, oldest first; True if not all could be looked at.

    By the time each became ready and its priority: the turns of jobs with a key are the store's own, so for them it
    is an estimate.
    """
    place = (rank(job.due_at_ms, job.priority), job.created_at_ms, job.id)
    query = Query(states=(State.PENDING,), queue=job.queue, brief=True, oldest_first=True, limit=BATCH_MAX)
    before = 0
    for _ in range(LINE_PAGES_MAX):
        page = await backend.find(query)
        before += sum((rank(one.due_at_ms, one.priority), one.created_at_ms, one.id) < place for one in page.jobs)
        if page.next is None:
            return before, False
        query = msgspec.structs.replace(query, cursor=page.next)
    return before, True


async def _parents(backend: Backend, job: JobRecord) -> tuple[JobRecord, ...]:
    """Answer some parents that have not ended, and those that ended badly."""
    wanted: list[JobRecord] = []
    for start in range(0, min(len(job.after), PARENTS_MAX), _PARENTS_A_LOOK):
        for parent in await backend.get(list(job.after[start : start + _PARENTS_A_LOOK])):
            if parent is not None and parent.state is not State.SUCCEEDED:
                wanted.append(msgspec.structs.replace(parent, payload=b"", result=None, steps=None))
        if len(wanted) >= JOBS_NAMED_MAX:
            break
    return tuple(wanted[:JOBS_NAMED_MAX])


async def _holder(backend: Backend, job: JobRecord) -> str | None:
    """Answer a live job that has the unique key of one that ended; looks at the newest 10,000 of the queue."""
    query = Query(states=tuple(sorted(LIVE)), queue=job.queue, brief=True, limit=BATCH_MAX)
    for _ in range(HOLDER_PAGES_MAX):
        page = await backend.find(query)
        for one in page.jobs:
            if one.unique == job.unique and one.id != job.id:
                return one.id
        if page.next is None:
            break
        query = msgspec.structs.replace(query, cursor=page.next)
    return None
