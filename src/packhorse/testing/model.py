"""The contract once more, as plain dicts and no backend: the oracle of the state machine.

Written from `backends/base.py`, not from `memory.py`, and with none of its indexes: each question walks over
all jobs, so that a mistake in an index cannot be made twice. Time is a number that the caller passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from ..backends.base import (
    ERRORS_KEPT_MAX,
    Enqueued,
    Keep,
    Note,
    Query,
    QueueCounts,
    Rerun,
    Settlement,
    Steered,
    Ticked,
    Verdict,
)
from ..job import AGEING_MS, LIVE, TERMINAL, Claimed, JobError, JobRecord, JobSpec, State

LAPSED = "LeaseLapsed"


class ModelJob(msgspec.Struct):
    """What is known of a job. `seq` is its number in the order of arrival."""

    spec: JobSpec
    seq: int
    created_at_ms: int
    due_at_ms: int
    state: State
    queue: str
    payload: bytes
    priority: int
    max_attempts: int
    attempt: int = 0
    token: str | None = None
    worker: str | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    parked_at_ms: int | None = None
    result: bytes | None = None
    progress: float | None = None
    note: str | None = None
    cancel_requested: bool = False
    errors: list[tuple[int, str]] = msgspec.field(default_factory=list)  # attempt, kind

    @property
    def unique(self) -> str | None:
        """The unique key, while the job lives."""
        return self.spec.unique.key if self.spec.unique is not None else None

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in its queue; the smallest is claimed first."""
        return (self.due_at_ms + self.priority * AGEING_MS, self.seq)


class Conflict(Exception):
    """The call must be refused: the key `unique` is held by `holder`."""

    def __init__(self, unique: str, holder: str) -> None:
        super().__init__(unique, holder)
        self.unique = unique
        self.holder = holder


class Model:
    """What a store must answer, given everything that was done to it."""

    def __init__(self) -> None:
        self.jobs: dict[str, ModelJob] = {}
        self.gone: set[str] = set()  # ids of jobs that were deleted or dropped
        self.leases: dict[str, int] = {}  # worker → end of its lease
        self.paused: dict[str, bool] = {}
        self.tokens: set[str] = set()
        self.count = 0

    def holder(self, queue: str, unique: str) -> ModelJob | None:
        """Find the live job that holds a key."""
        holders = [job for job in self.jobs.values() if job.queue == queue and job.unique == unique]
        live = [job for job in holders if job.state in LIVE]
        assert len(live) <= 1, "the model itself let two jobs hold one key"
        return live[0] if live else None

    def running(self, worker: str) -> list[ModelJob]:
        """List what a worker holds."""
        return [job for job in self.jobs.values() if job.state is State.RUNNING and job.worker == worker]

    # ---- moves -------------------------------------------------------------------------------------------

    def enqueue(self, specs: Sequence[JobSpec], now_ms: int) -> list[Enqueued]:
        """Store jobs. Raises Conflict and stores nothing."""
        before, count = dict(self.jobs), self.count
        try:
            return [self._add(spec, now_ms, refuse=True) for spec in specs]
        except Conflict:
            self.jobs, self.count = before, count
            raise

    def _add(self, spec: JobSpec, now_ms: int, *, refuse: bool) -> Enqueued:
        if spec.id in self.jobs:
            return Enqueued(spec.id, False)
        if spec.unique is not None:
            holder = self.holder(spec.queue, spec.unique.key)
            if holder is not None and refuse and spec.unique.on_conflict == "refuse":
                raise Conflict(spec.unique.key, holder.spec.id)
            if holder is not None:
                return Enqueued(holder.spec.id, False)
        self.count += 1
        self.gone.discard(spec.id)
        self.jobs[spec.id] = ModelJob(
            spec=spec,
            seq=self.count,
            created_at_ms=now_ms,
            due_at_ms=now_ms + spec.delay_ms,
            state=State.SCHEDULED if spec.delay_ms else State.PENDING,
            queue=spec.queue,
            payload=spec.payload,
            priority=spec.priority,
            max_attempts=spec.max_attempts,
        )
        return Enqueued(spec.id, True)

    def claimable(self, queues: Sequence[str], limit: int) -> list[str]:
        """Say which jobs a claim must answer, in order."""
        ids: list[str] = []
        for queue in queues:
            if not self.paused.get(queue, False):
                jobs = [job for job in self.jobs.values() if job.queue == queue and job.state is State.PENDING]
                ids += [job.spec.id for job in sorted(jobs, key=lambda job: job.place)]
        return ids[:limit]

    def claim(self, claimed: Sequence[Claimed], worker: str, lease_ms: int, now_ms: int) -> None:
        """Take what a claim answered."""
        if claimed:  # an empty claim may leave the lease as it was; see `learn_lease`
            self.leases[worker] = now_ms + lease_ms
        for each in claimed:
            job = self.jobs[each.id]
            assert job.state is State.PENDING, f"claimed while {job.state}"
            assert not self.paused.get(job.queue, False), "claimed from a paused queue"
            assert each.token not in self.tokens, "a token was used again"
            job.state, job.worker, job.token = State.RUNNING, worker, each.token
            job.attempt += 1
            job.started_at_ms = now_ms
        self.tokens |= {each.token for each in claimed}

    def learn_lease(self, worker: str, left_ms: int | None, lease_ms: int, now_ms: int) -> None:
        """Take over what an empty claim made of a lease: what it was, or the whole lease from now."""
        old_ms = max(0, self.leases.get(worker, 0) - now_ms)
        assert (left_ms or 0) in {old_ms, lease_ms}, f"{left_ms} ms are left after an empty claim, not {old_ms}"
        if left_ms == lease_ms:
            self.leases[worker] = now_ms + lease_ms

    def settle(self, settlement: Settlement, now_ms: int) -> Verdict:
        """End an attempt."""
        job = self.jobs.get(settlement.id)
        if job is None or job.state is not State.RUNNING or job.token != settlement.token:
            return Verdict.STALE
        if settlement.error is not None:
            self._add_error(job, settlement.error.attempt, settlement.error.kind)
        job.attempt -= settlement.refund
        job.parked_at_ms = (job.parked_at_ms or now_ms) if settlement.park else None
        state = settlement.state
        if job.cancel_requested and state not in TERMINAL:
            state = State.CANCELLED
        if state in TERMINAL:
            job.result = settlement.result
        self._leave(job, state, now_ms, settlement.delay_ms)
        for spec in settlement.follow_ups:
            self._add(spec, now_ms, refuse=False)
        return Verdict.APPLIED

    def _leave(self, job: ModelJob, state: State, now_ms: int, delay_ms: int = 0) -> None:
        """Take a job out of its state, be it running or not."""
        job.token = job.worker = None
        job.state = state
        if state in TERMINAL:
            job.finished_at_ms = now_ms
        else:
            job.due_at_ms = now_ms + delay_ms

    def _add_error(self, job: ModelJob, attempt: int, kind: str) -> None:
        job.errors.append((attempt, kind))
        if len(job.errors) > ERRORS_KEPT_MAX:
            del job.errors[1]

    def _lapse(self, job: ModelJob, now_ms: int) -> None:
        self._add_error(job, job.attempt, LAPSED)
        if job.cancel_requested:
            self._leave(job, State.CANCELLED, now_ms)
        elif job.attempt >= job.max_attempts:
            self._leave(job, State.FAILED, now_ms)
        else:
            self._leave(job, State.PENDING, now_ms)

    def heartbeat(
        self, worker: str, lease_ms: int, notes: Iterable[Note], now_ms: int
    ) -> tuple[dict[str, str], frozenset[str]]:
        """Keep a lease; answers what the worker holds, and what of it shall stop."""
        self.leases[worker] = now_ms + lease_ms
        for note in notes:
            job = self.jobs.get(note.id)
            if job is not None and job.state is State.RUNNING and job.token == note.token:
                job.progress = note.progress if note.progress is not None else job.progress
                job.note = note.text if note.text is not None else job.note
        held = self.running(worker)
        cancel = frozenset(job.spec.id for job in held if job.cancel_requested)
        return {job.spec.id: job.token or "" for job in held}, cancel

    def retire(self, worker: str, now_ms: int) -> int:
        """End a lease; answers how many jobs lapsed."""
        self.leases.pop(worker, None)
        held = self.running(worker)
        for job in held:
            self._lapse(job, now_ms)
        return len(held)

    def tick(self, keep: Keep, now_ms: int) -> Ticked:
        """Move time on, without a limit. Nothing may be kept for less than 1 ms."""
        due = [job for job in self.jobs.values() if job.state is State.SCHEDULED and job.due_at_ms <= now_ms]
        for job in due:
            job.state = State.PENDING
        running = [job for job in self.jobs.values() if job.state is State.RUNNING]
        lapsed = [job for job in running if self.leases.get(job.worker or "", 0) <= now_ms]
        for job in lapsed:
            self._lapse(job, now_ms)
        self.leases = {worker: end_ms for worker, end_ms in self.leases.items() if end_ms > now_ms}
        keep_ms = {
            State.SUCCEEDED: keep.succeeded_ms,
            State.FAILED: keep.failed_ms,
            State.CANCELLED: keep.cancelled_ms,
        }
        ended = [job for job in self.jobs.values() if job.state in TERMINAL]
        old = [job.spec.id for job in ended if (job.finished_at_ms or 0) + keep_ms[job.state] <= now_ms]
        self._forget(old)
        waiting = [job.due_at_ms - now_ms for job in self.jobs.values() if job.state is State.SCHEDULED]
        next_due_ms = min(waiting) if waiting else None
        return Ticked(promoted=len(due), lapsed=len(lapsed), dropped=len(old), next_due_ms=next_due_ms)

    def _forget(self, ids: Iterable[str]) -> None:
        for job_id in ids:
            del self.jobs[job_id]
            self.gone.add(job_id)

    # ---- steering ----------------------------------------------------------------------------------------

    def cancel(self, job_id: str, now_ms: int) -> Steered:
        """Stop a job."""
        job = self.jobs.get(job_id)
        if job is None:
            return Steered.MISSING
        if job.state in TERMINAL:
            return Steered.ENDED
        job.cancel_requested = True
        if job.state is State.RUNNING:
            return Steered.REQUESTED
        self._leave(job, State.CANCELLED, now_ms)
        return Steered.DONE

    def rerun(self, request: Rerun, now_ms: int) -> Steered:
        """Start an ended job over."""
        job = self.jobs.get(request.id)
        if job is None:
            return Steered.MISSING
        if job.state in LIVE:
            return Steered.LIVE
        queue = job.queue if request.queue is None else request.queue
        if job.unique is not None and self.holder(queue, job.unique) is not None:
            return Steered.CONFLICT
        job.queue = queue
        job.payload = job.payload if request.payload is None else request.payload
        job.priority = job.priority if request.priority is None else request.priority
        job.max_attempts = job.max_attempts if request.max_attempts is None else request.max_attempts
        job.attempt, job.cancel_requested = 0, False
        job.result = job.progress = job.note = None
        job.started_at_ms = job.finished_at_ms = job.parked_at_ms = None
        self._leave(job, State.SCHEDULED if request.delay_ms else State.PENDING, now_ms, request.delay_ms)
        return Steered.DONE

    def delete(self, job_id: str) -> Steered:
        """Remove a job."""
        job = self.jobs.get(job_id)
        if job is None:
            return Steered.MISSING
        if job.state is State.RUNNING:
            return Steered.LIVE
        self._forget([job_id])
        return Steered.DONE

    # ---- looking -----------------------------------------------------------------------------------------

    def find(self, query: Query) -> list[str]:
        """Say which jobs a walk must see, in order, whatever the size of its pages."""
        jobs = sorted(self.jobs.values(), key=lambda job: job.seq, reverse=not query.oldest_first)
        return [
            job.spec.id
            for job in jobs
            if (not query.states or job.state in query.states)
            and query.queue in {None, job.queue}
            and query.type in {None, job.spec.type}
            and query.key in {None, job.spec.key}
            and (query.tag is None or query.tag in job.spec.tags)
            and (query.created_from_ms is None or job.created_at_ms >= query.created_from_ms)
            and (query.created_before_ms is None or job.created_at_ms < query.created_before_ms)
        ]

    def counts(self, now_ms: int) -> dict[str, QueueCounts]:
        """Count jobs by queue and state."""
        found = Counter((job.queue, job.state) for job in self.jobs.values())
        counts = {}
        for name in {queue for queue, _ in found} | set(self.paused):
            pending = [job.due_at_ms for job in self.jobs.values() if job.queue == name and job.state is State.PENDING]
            counts[name] = QueueCounts(
                states={state: found[name, state] for state in State if found[name, state]},
                oldest_pending_ms=now_ms - min(pending) if pending else None,
                paused=self.paused.get(name, False),
            )
        return counts

    def difference(self, record: JobRecord) -> str:
        """Say in what a record differs from what it must be; empty if in nothing."""
        job = self.jobs[record.id]
        unlike = []
        for name in ("type", "timeout_ms", "key", "tags", "meta"):
            unlike += _unlike(name, getattr(record, name), getattr(job.spec, name))
        for name in (
            "state",
            "queue",
            "payload",
            "priority",
            "attempt",
            "max_attempts",
            "created_at_ms",
            "due_at_ms",
            "started_at_ms",
            "finished_at_ms",
            "worker",
            "unique",
            "result",
            "progress",
            "cancel_requested",
        ):
            if name != "due_at_ms" or job.state in LIVE:  # when an ended job was due is nobody's promise
                unlike += _unlike(name, getattr(record, name), getattr(job, name))
        unlike += _unlike("progress_note", record.progress_note, job.note)
        unlike += _unlike("errors", [(error.attempt, error.kind) for error in record.errors], job.errors)
        return "; ".join(unlike)


def _unlike(name: str, actual: object, expected: object) -> list[str]:
    return [] if actual == expected else [f"{name} is {actual!r}, not {expected!r}"]


def trouble(attempt: int) -> JobError:
    """Make an error record for an attempt."""
    return JobError(attempt=attempt, at_ms=0, kind="Trouble", message="it broke")
