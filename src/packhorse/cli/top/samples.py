"""What one look at a store found, as values."""

from __future__ import annotations

import msgspec

from ...admin_failed import fingerprint_of
from ...admin_json import error_text
from ...backends.base import QueueCounts, WorkerInfo
from ...job import JobError, JobRecord, State

#: Characters of an error that are kept for a line: no terminal shows more.
_ERROR_CHARS_MAX = 400


class Arrived(msgspec.Struct, frozen=True):
    """Jobs that came since the look before, by queue. `at_least`: there were more than were looked at."""

    queues: dict[str, int]
    at_least: bool = False


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A job that runs."""

    id: str
    type: str
    queue: str
    worker: str
    attempt: int
    max_attempts: int
    started_at_ms: int


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The last error of a job: `retries` where it is tried again, else it is in the dead letter queue."""

    id: str
    type: str
    queue: str
    attempt: int
    max_attempts: int
    at_ms: int
    error: str
    retries: bool


class ErrorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters of the same error; `first_at_ms` and `last_at_ms` are when the first and the last of them failed."""

    fingerprint: str
    title: str
    jobs: int
    first_at_ms: int
    last_at_ms: int
    types: tuple[str, ...]


class Failures(msgspec.Struct, frozen=True):
    """What goes wrong: the latest failures, the latest first, and the dead letters by error, the largest group first.

    `looked_at` of the dead letters were read, the newest of them.
    """

    latest: tuple[Failure, ...] = ()
    groups: tuple[ErrorGroup, ...] = ()
    looked_at: int = 0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one look found. `at_ms` is the boot clock, `now_ms` the wall clock; `answer_ms` is how long counts took."""

    at_ms: int
    now_ms: int
    answer_ms: int
    queues: dict[str, QueueCounts]
    workers: tuple[WorkerInfo, ...] = ()
    arrived: Arrived | None = None
    running: tuple[Run, ...] | None = ()  # None: too many run to be looked through
    failures: Failures = Failures()


def run_of(job: JobRecord) -> Run:
    """Answer what is shown of a job that runs."""
    return Run(
        id=job.id,
        type=job.type,
        queue=job.queue,
        worker=job.worker or "",
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        started_at_ms=job.started_at_ms or job.created_at_ms,
    )


def failure_of(job: JobRecord) -> Failure | None:
    """Answer what is shown of a job that failed; None for one that has no error."""
    if not job.errors:
        return None
    last: JobError = job.errors[-1]
    return Failure(
        id=job.id,
        type=job.type,
        queue=job.queue,
        attempt=last.attempt,
        max_attempts=job.max_attempts,
        at_ms=last.at_ms,
        error=_first_line(error_text(last)),
        retries=job.state is not State.FAILED,
    )


def group(dead: list[JobRecord], prints: dict[str, tuple[int, str, str]]) -> tuple[ErrorGroup, ...]:
    """Group dead letters by their last error. `prints` remembers what was worked out of these very jobs before."""
    found: dict[str, list[JobRecord]] = {}
    titles: dict[str, str] = {}
    fresh: dict[str, tuple[int, str, str]] = {}
    for job in dead:
        at_ms = _failed_at_ms(job)
        known = prints.get(job.id)
        if known is None or known[0] != at_ms:
            made = fingerprint_of(job)
            known = (at_ms, made.hash, made.title)
        fresh[job.id] = known
        titles[known[1]] = known[2]
        found.setdefault(known[1], []).append(job)
    prints.clear()
    prints.update(fresh)
    groups = [
        ErrorGroup(
            fingerprint=key,
            title=titles[key],
            jobs=len(jobs),
            first_at_ms=min(map(_failed_at_ms, jobs)),
            last_at_ms=max(map(_failed_at_ms, jobs)),
            types=tuple(sorted({job.type for job in jobs})),
        )
        for key, jobs in found.items()
    ]
    return tuple(sorted(groups, key=lambda each: (-each.jobs, -each.last_at_ms, each.fingerprint)))


def _failed_at_ms(job: JobRecord) -> int:
    return job.finished_at_ms if job.finished_at_ms is not None else job.created_at_ms


def _first_line(text: str) -> str:
    return text[: 4 * _ERROR_CHARS_MAX].lstrip().partition("\n")[0].rstrip()[:_ERROR_CHARS_MAX]
