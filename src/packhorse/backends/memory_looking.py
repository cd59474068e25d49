"""Get, find and counts of the memory backend. The caller holds the lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from ..job import JobRecord, State
from .base import Page, Query, QueueCounts, WorkerInfo, WorkflowCounts, page_limit, parse_cursor
from .memory_lanes import StoredJob
from .memory_store import MemoryStore, copied


def get(store: MemoryStore, ids: Sequence[str]) -> list[JobRecord | None]:
    """Look jobs up by id."""
    found = [store.jobs.get(job_id) for job_id in ids]
    return [as_record(job, steps=True) if job is not None else None for job in found]


def find(store: MemoryStore, query: Query) -> Page:
    """Look jobs up by filter, a page at a time, by seq."""
    limit = page_limit(query)
    before = parse_cursor(query.cursor)
    matching = [job for job in store.jobs.values() if _matches(job, query)]
    matching.sort(key=lambda job: job.seq, reverse=not query.oldest_first)
    if before is not None:
        matching = [job for job in matching if (job.seq > before if query.oldest_first else job.seq < before)]
    page = [as_record(job) for job in matching[:limit]]
    if query.brief:
        for record in page:
            record.payload, record.result = b"", None
    more = len(matching) > limit
    return Page(page, str(matching[limit - 1].seq) if more else None)


def counts(store: MemoryStore) -> dict[str, QueueCounts]:
    """Count jobs by queue and state."""
    now_ms = store.clock.now_ms()
    found = Counter((job.queue, job.state) for job in store.jobs.values())
    oldest: dict[str, int] = {}
    for job in store.jobs.values():
        if job.state is State.PENDING:
            oldest[job.queue] = min(oldest.get(job.queue, job.due_at_ms), job.due_at_ms)
    names = {queue for queue, _ in found} | set(store.settings)
    return {
        name: QueueCounts(
            states={state: found[name, state] for state in State if found[name, state]},
            oldest_pending_ms=max(0, now_ms - oldest[name]) if name in oldest else None,
            paused=bool(name in store.settings and store.settings[name].paused),
        )
        for name in sorted(names)
    }


def workflows(store: MemoryStore, limit: int, before: str | None) -> list[WorkflowCounts]:
    """Count the jobs of workflows by state."""
    found: dict[str, Counter[State]] = {}
    created: dict[str, int] = {}
    for job in store.jobs.values():
        if job.workflow is not None and (before is None or job.workflow < before):
            found.setdefault(job.workflow, Counter())[job.state] += 1
            created[job.workflow] = min(job.created_at_ms, created.get(job.workflow, job.created_at_ms))
    return [
        WorkflowCounts(id=name, states=dict(found[name]), created_at_ms=created[name])
        for name in sorted(found, reverse=True)[:limit]
    ]


def workers(store: MemoryStore) -> list[WorkerInfo]:
    """List the workers whose lease is live."""
    now_ms = store.clock.now_ms()
    return [
        msgspec.structs.replace(info, lease_left_ms=end - now_ms, running=len(store.held.get(worker, ())))
        for worker, (info, end) in sorted(store.workers.items())
        if end > now_ms
    ]


def _matches(job: StoredJob, query: Query) -> bool:
    return (
        (not query.states or job.state in query.states)
        and (query.queue is None or job.queue == query.queue)
        and (query.type is None or job.type == query.type)
        and (query.tag is None or query.tag in job.tags)
        and (query.key is None or job.key == query.key)
        and (query.workflow is None or job.workflow == query.workflow)
        and (query.schedule is None or job.schedule == query.schedule)
        and (query.created_from_ms is None or job.created_at_ms >= query.created_from_ms)
        and (query.created_before_ms is None or job.created_at_ms < query.created_before_ms)
    )


_RECORD_FIELDS = JobRecord.__struct_fields__


def as_record(job: StoredJob, *, steps: bool = False) -> JobRecord:
    """Answer what everybody may see of a job, as a value of its own."""
    record = JobRecord(**{name: getattr(job, name) for name in _RECORD_FIELDS})
    record.meta = copied(job.meta)
    record.steps = dict(job.steps) if steps and job.steps is not None else None
    return record
