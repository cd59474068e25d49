"""The one JSON shape of each thing an operator is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .admin_values import Answer, Health, Purged, QueueView, Stats, Sweep
from .backends.base import Page, QueueCounts, Steered, WorkerInfo
from .job import JobError, JobRecord, State
from .shapes import instant_json, list_json, value_json
from .story import Story, StoryLine
from .why_facts import Explained


def job_json(record: JobRecord) -> dict[str, Any]:
    """Answer the one JSON of a job (DESIGN section 9). `error` is the last one, null once the job has succeeded."""
    last = record.errors[-1] if record.errors and record.state is not State.SUCCEEDED else None
    return {
        "id": record.id,
        "type": record.type,
        "queue": record.queue,
        "state": str(record.state),
        "priority": record.priority,
        "attempt": record.attempt,
        "max_attempts": record.max_attempts,
        "key": record.key,
        "tags": list(record.tags),
        "meta": dict(record.meta or {}),
        "payload": value_json(record.payload),
        "result": None if record.result is None else value_json(record.result),
        "error": None if last is None else error_text(last),
        "errors": [_error_json(error) for error in record.errors],
        "progress": record.progress,
        "progress_note": record.progress_note,
        "cancel_requested": record.cancel_requested,
        "unique": record.unique,
        "after": list(record.after),
        "after_failed": record.after_failed,
        "waiting_for": record.waiting_for,
        "workflow": record.workflow,
        "node": record.node,
        "schedule": record.schedule,
        "slot": instant_json(record.slot_at_ms),
        "worker": record.worker,
        "timeout_ms": record.timeout_ms,
        "created_at": instant_json(record.created_at_ms),
        "due_at": instant_json(record.due_at_ms),
        "started_at": instant_json(record.started_at_ms),
        "finished_at": instant_json(record.finished_at_ms),
    }


def error_text(error: JobError) -> str:
    """Answer an error as one text, `ValueError: no such address`."""
    return f"{error.kind}: {error.message}"


def _error_json(error: JobError) -> dict[str, Any]:
    return {
        "attempt": error.attempt,
        "at": instant_json(error.at_ms),
        "kind": error.kind,
        "message": error.message,
        "traceback": error.traceback,
    }


def story_line_json(line: StoryLine) -> dict[str, Any]:
    """Answer the JSON of one thing that happened to a job."""
    return {
        "at": instant_json(line.at_ms),
        "level": line.level,
        "logger": line.logger,
        "attempt": line.attempt,
        "message": line.message,
    }


def story_json(story: Story, lines: Iterable[StoryLine]) -> dict[str, Any]:
    """Answer the JSON of a job's story, of which `lines` are shown."""
    job = story.job
    return {
        "id": job.id,
        "type": job.type,
        "queue": job.queue,
        "state": str(job.state),
        "attempt": job.attempt,
        "left_out": story.left_out,
        "items": [story_line_json(line) for line in lines],
    }


def page_json(page: Page) -> dict[str, Any]:
    """Answer the JSON of a page of jobs."""
    return list_json(map(job_json, page.jobs), page.next)


def _counts_json(counts: QueueCounts) -> dict[str, Any]:
    return {
        "states": {str(state): counts.states.get(state, 0) for state in State},
        "oldest_pending_ms": counts.oldest_pending_ms,
        "paused": counts.paused,
    }


def stats_json(stats: Stats) -> dict[str, Any]:
    """Answer `{"states": {state: jobs}, "queues": {queue: {"states", "oldest_pending_ms", "paused"}}}`."""
    return {
        "states": {str(state): count for state, count in stats.states.items()},
        "queues": {name: _counts_json(counts) for name, counts in stats.queues.items()},
    }


def health_json(health: Health) -> dict[str, Any]:
    """Answer the JSON of a health check; `status` is OK or UNAVAILABLE."""
    from . import __version__

    return {
        "status": health.status,
        "service": "packhorse",
        "version": __version__,
        "latency_ms": health.latency_ms,
        "workers": health.workers,
        "pending": health.pending,
        "problems": list(health.problems),
    }


def queue_json(view: QueueView) -> dict[str, Any]:
    """Answer the JSON of a queue."""
    return {"queue": view.queue, **_counts_json(view.counts), "capacity": view.capacity}


def worker_json(worker: WorkerInfo) -> dict[str, Any]:
    """Answer the JSON of a live worker."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "queues": list(worker.queues),
        "types": list(worker.types),
        "concurrency": worker.concurrency,
        "busy": worker.busy,
        "running": worker.running,
        "started_at": instant_json(worker.started_at_ms),
        "lease_left_ms": worker.lease_left_ms,
        "version": worker.version,
        "trouble": worker.trouble or None,
    }


def why_json(found: Explained) -> dict[str, Any]:
    """Answer why a job is where it is: `id type queue state` and its `causes`, the most decisive first."""
    job = found.job
    causes = [
        {
            "code": cause.code,
            "text": cause.text,
            "remedy": cause.remedy or None,
            "until": instant_json(cause.until_ms),
            "jobs": list(cause.jobs),
        }
        for cause in found.causes
    ]
    return {"id": job.id, "type": job.type, "queue": job.queue, "state": str(job.state), "causes": causes}


def answers_json(answers: Iterable[Answer]) -> dict[str, Any]:
    """Answer what became of each id: `{"id", "answer"}`; the answers are the words of `Steered`."""
    return list_json({"id": answer.id, "answer": str(answer.answer)} for answer in answers)


def sweep_json(sweep: Sweep) -> dict[str, Any]:
    """Answer how many jobs matched and what became of them."""
    return {
        "matched": sweep.matched,
        "dry_run": sweep.dry_run,
        **{str(answer): sweep.answers[answer] for answer in Steered},
    }


def purged_json(queue: str, purged: Purged) -> dict[str, Any]:
    """Answer what a purge did to `queue`."""
    return {"queue": queue, "deleted": purged.deleted, "running": purged.running, "added": purged.added}
