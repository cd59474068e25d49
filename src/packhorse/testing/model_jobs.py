"""The jobs of the oracle and the moves they make by themselves: places, ends, families. See `model`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import msgspec

from ..backends.base import ERRORS_KEPT_MAX, Enqueued, Rerun, parents_first
from ..job import AGEING_MS, LIVE, JobError, JobRecord, JobSpec, State, Unique, fair_turn

LAPSED = "LeaseLapsed"
PARENT_FAILED = "ParentFailed"
REPLACED = "Replaced"

_BAD = frozenset({State.FAILED, State.CANCELLED})
_NOT_STARTED = frozenset({State.WAITING, State.SCHEDULED, State.PENDING})


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
    after: tuple[str, ...] = ()
    delay_ms: int = 0  # from the end of its parents
    turn_ms: int = 0
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
    waiting_on: set[str] = msgspec.field(default_factory=set)
    cancelled_for: str | None = None  # the parent that it was cancelled because of
    replaced: bool = False  # another took its unique key
    steps: dict[str, bytes] = msgspec.field(default_factory=dict)
    errors: list[tuple[int, str]] = msgspec.field(default_factory=list)  # attempt, kind

    @property
    def unique(self) -> str | None:
        """The unique key, held or not."""
        return self.spec.unique.key if self.spec.unique is not None else None

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in its queue; the smallest is claimed first."""
        return (self.turn_ms + self.priority * AGEING_MS, self.seq)

    @property
    def waiting_for(self) -> int:
        """How many parents it waits for."""
        return len(self.waiting_on)


class Refusal(Exception):
    """The call must be refused, for one of these reasons: the name of the error and what it must say."""

    def __init__(self, reasons: list[tuple[str, ...]]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


class ModelJobs:
    """The jobs of a store and the moves that follow from others. `fair` says whether keys take turns."""

    def __init__(self, fair: bool = True) -> None:
        self.fair = fair
        self.jobs: dict[str, ModelJob] = {}
        self.gone: set[str] = set()  # ids of jobs that were deleted or dropped
        self.fronts: dict[str, int] = {}  # queue → turn of the last keyed job claimed
        self.capacity: dict[str, int] = {}
        self.count = 0
        self._ended: list[tuple[str, State]] = []  # whose children have not heard of it

    # ---- places ------------------------------------------------------------------------------------------

    def make_pending(self, job: ModelJob, at_ms: int) -> None:
        """Make a job pending since `at_ms`, in the turn of its key."""
        job.turn_ms = at_ms
        if job.spec.key is not None and self.fair:
            keyed = [each for each in self.pending(job.queue) if each.spec.key is not None]
            own = [each.turn_ms for each in keyed if (each.spec.key, each.priority) == (job.spec.key, job.priority)]
            front_ms = self.fronts[job.queue] if keyed else None
            job.turn_ms = fair_turn(at_ms, front_ms, max(own) if own else None)
            if not keyed:
                self.fronts[job.queue] = job.turn_ms
        job.state = State.PENDING
        job.due_at_ms = at_ms

    def took(self, job: ModelJob) -> None:
        """Move the front of a queue on to a job that was claimed."""
        if job.spec.key is not None and self.fair:
            self.fronts[job.queue] = max(self.fronts[job.queue], job.turn_ms)

    def pending(self, queue: str) -> list[ModelJob]:
        """List the pending jobs of a queue, best first."""
        jobs = [job for job in self.jobs.values() if job.queue == queue and job.state is State.PENDING]
        return sorted(jobs, key=lambda job: job.place)

    def start_over(self, job: ModelJob, delay_ms: int, now_ms: int) -> None:
        """Make a job pending, or scheduled if there is a delay."""
        job.token = job.worker = None
        if delay_ms > 0:
            job.state, job.due_at_ms = State.SCHEDULED, now_ms + delay_ms
        else:
            self.make_pending(job, now_ms)

    def ambiguous(self, jobs: Iterable[ModelJob]) -> bool:
        """Tell whether these, made pending in one move, line up in an order that the contract leaves open."""
        lines = [(job.queue, job.spec.key, job.priority) for job in jobs if job.spec.key is not None]
        return self.fair and len(lines) > len(set(lines))

    # ---- ends --------------------------------------------------------------------------------------------

    def end(self, job: ModelJob, state: State, now_ms: int) -> None:
        """End a job. Its children hear of it when the call is done, see `serve`."""
        job.state, job.token, job.worker = state, None, None
        job.finished_at_ms = now_ms
        job.waiting_on = set()
        self._ended.append((job.spec.id, state))

    def serve(self, now_ms: int) -> None:
        """Tell the children of ended jobs."""
        while self._ended:
            parent, state = self._ended.pop(0)
            if parent in self.jobs and self.jobs[parent].state in LIVE:
                continue  # rerun meanwhile
            for child in sorted(self.jobs.values(), key=lambda job: job.seq):
                if child.state is State.WAITING and parent in child.waiting_on:
                    child.waiting_on.discard(parent)
                    if state in _BAD and child.spec.after_failed == "cancel":
                        self._cancel_for(child, parent, now_ms)
                    elif not child.waiting_on:
                        self.start_over(child, child.delay_ms, now_ms)

    def _cancel_for(self, child: ModelJob, parent: str, now_ms: int) -> None:
        self.add_error(child, 0, PARENT_FAILED)
        child.cancelled_for = parent
        self.end(child, State.CANCELLED, now_ms)

    def add_error(self, job: ModelJob, attempt: int, kind: str) -> None:
        """Add to the history of a job."""
        job.errors.append((attempt, kind))
        if len(job.errors) > ERRORS_KEPT_MAX:
            del job.errors[1]

    def wait_for_parents(self, job: ModelJob) -> bool:
        """Make a job wait for its parents that live; answers whether there are any."""
        job.waiting_on = {name for name in job.after if name in self.jobs and self.jobs[name].state in LIVE}
        if job.waiting_on:
            job.state = State.WAITING
        return bool(job.waiting_on)

    def revive_children(self, parent: ModelJob, now_ms: int) -> None:
        """Let wait again what was cancelled because of a parent, and theirs in turn."""
        for child in sorted(self.jobs.values(), key=lambda job: job.seq):
            if parent.spec.id not in child.after or child.state is not State.CANCELLED:
                continue
            parents = [self.jobs[name] for name in child.after if name in self.jobs]
            if child.cancelled_for not in self.jobs or any(each.state in _BAD for each in parents):
                continue
            holders = self.holders(child.queue, child.unique, now_ms)
            if any(holder is not child for holder in holders):
                continue
            child.cancelled_for = child.finished_at_ms = None
            self.wait_for_parents(child)
            self.revive_children(child, now_ms)

    def has_live_child(self, job_id: str) -> bool:
        """Tell whether a job must be kept for one of its children."""
        return any(job_id in job.after and job.state in LIVE for job in self.jobs.values())

    def forget(self, ids: Iterable[str]) -> None:
        """Remove jobs."""
        for job_id in ids:
            del self.jobs[job_id]
            self.gone.add(job_id)

    # ---- unique keys -------------------------------------------------------------------------------------

    def holders(self, queue: str, key: str | None, now_ms: int) -> list[ModelJob]:
        """Find who keeps others from a key."""
        if key is None:
            return []
        jobs = [job for job in self.jobs.values() if job.queue == queue and job.unique == key and not job.replaced]
        return [job for job in jobs if job.spec.unique is not None and _holds(job, job.spec.unique, now_ms)]

    # ---- new jobs ----------------------------------------------------------------------------------------

    def enqueue(self, specs: Sequence[JobSpec], now_ms: int) -> list[Enqueued]:
        """Store jobs. Raises Refusal and stores nothing."""
        before = copy.deepcopy((self.jobs, self.fronts, self.gone, self.count))
        pending = {job_id: job.queue for job_id, job in self.jobs.items() if job.state is State.PENDING}
        known = set(self.jobs)
        ids = [spec.id for spec in specs]
        new = [spec for place, spec in enumerate(specs) if spec.id not in known and ids.index(spec.id) == place]
        there = known.union(ids)
        reasons: list[tuple[str, ...]] = [("parent", name) for spec in new for name in spec.after if name not in there]
        answers = self._add_all(specs, now_ms, reasons)
        for queue, capacity in self.capacity.items():
            jobs = [job.spec.id for job in self.pending(queue)]
            came = [job_id for job_id in jobs if job_id not in known]
            left = [job_id for job_id in jobs if pending.get(job_id) == queue]
            if came and len(came) + len(left) > capacity:
                reasons.append(("full", queue))
        if reasons:
            self.jobs, self.fronts, self.gone, self.count = before
            self._ended.clear()
            raise Refusal(reasons)
        self.serve(now_ms)
        return answers

    def add_rest(self, specs: Sequence[JobSpec], now_ms: int) -> None:
        """Store what follows from a move: whose key is held is left out, and an unknown parent has failed."""
        self._add_all(specs, now_ms, None)

    def _add_all(self, specs: Sequence[JobSpec], now_ms: int, reasons: list[tuple[str, ...]] | None) -> list[Enqueued]:
        answers: dict[int, Enqueued] = {}
        instead: dict[str, str] = {}
        for number in parents_first(specs) or range(len(specs)):
            spec = specs[number]
            answer = answers[number] = self._add(spec, now_ms, reasons)
            if answer.id != spec.id:
                instead[spec.id] = answer.id
        for number, answer in answers.items():
            spec = specs[number]
            job = self.jobs.get(spec.id)
            if answer.created and spec.after and job is not None and job.state is State.WAITING:
                job.after = tuple(dict.fromkeys(instead.get(name, name) for name in spec.after))
                self._join(job, now_ms)
        return [answers[number] for number in range(len(specs))]

    def _join(self, job: ModelJob, now_ms: int) -> None:
        for name in job.after:
            state = self.jobs[name].state if name in self.jobs else State.FAILED
            if state in _BAD and job.spec.after_failed == "cancel":
                self._cancel_for(job, name, now_ms)
                return
        if not self.wait_for_parents(job):
            self.start_over(job, job.delay_ms, now_ms)

    def _add(self, spec: JobSpec, now_ms: int, reasons: list[tuple[str, ...]] | None) -> Enqueued:
        if spec.id in self.jobs:
            return Enqueued(spec.id, False)
        if spec.unique is not None:
            for holder in self.holders(spec.queue, spec.unique.key, now_ms):
                if reasons is not None and spec.unique.on_conflict == "refuse":
                    reasons.append(("unique", spec.unique.key, holder.spec.id))
                if spec.unique.on_conflict != "replace" or holder.state not in _NOT_STARTED:
                    return Enqueued(holder.spec.id, False)
                self.add_error(holder, 0, REPLACED)
                holder.replaced = True
                self.end(holder, State.CANCELLED, now_ms)
        self.count += 1
        self.gone.discard(spec.id)
        job = self.jobs[spec.id] = ModelJob(
            spec=spec,
            seq=self.count,
            created_at_ms=now_ms,
            due_at_ms=now_ms,
            state=State.WAITING,
            queue=spec.queue,
            payload=spec.payload,
            priority=spec.priority,
            max_attempts=spec.max_attempts,
            after=spec.after,
            delay_ms=spec.delay_ms,
        )
        if not spec.after:
            self.start_over(job, spec.delay_ms, now_ms)
        return Enqueued(spec.id, True)

    def start_anew(self, job: ModelJob, request: Rerun, queue: str, now_ms: int) -> None:
        """Start an ended job over, with edits, and what was cancelled because of it."""
        job.queue = queue
        if request.payload is not None and request.payload != job.payload:
            job.payload, job.steps = request.payload, {}
        job.priority = job.priority if request.priority is None else request.priority
        job.max_attempts = job.max_attempts if request.max_attempts is None else request.max_attempts
        job.attempt, job.cancel_requested, job.cancelled_for, job.replaced = 0, False, None, False
        job.result = job.progress = job.note = None
        job.started_at_ms = job.finished_at_ms = job.parked_at_ms = None
        job.delay_ms = request.delay_ms
        if not self.wait_for_parents(job):
            self.start_over(job, request.delay_ms, now_ms)
        self.revive_children(job, now_ms)


def _holds(job: ModelJob, unique: Unique, now_ms: int) -> bool:
    return job.state in unique.states or now_ms - job.created_at_ms < unique.for_ms


_AS_ENQUEUED = (
    "type",
    "timeout_ms",
    "key",
    "tags",
    "meta",
    "after_failed",
    "workflow",
    "node",
    "schedule",
    "slot_at_ms",
)
_AS_MOVED = (
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
    "waiting_for",
)


def difference(job: ModelJob, record: JobRecord) -> str:
    """Say in what a record differs from what it must be; empty if in nothing."""
    unlike = []
    for name in _AS_ENQUEUED:
        unlike += _unlike(name, getattr(record, name), getattr(job.spec, name))
    for name in _AS_MOVED:
        # When a job that ended or waits for parents is or was due is nobody's promise.
        if name != "due_at_ms" or job.state in LIVE - {State.WAITING}:
            unlike += _unlike(name, getattr(record, name), getattr(job, name))
    unlike += _unlike("after", set(record.after), set(job.after))
    unlike += _unlike("steps", record.steps or {}, job.steps)
    unlike += _unlike("progress_note", record.progress_note, job.note)
    unlike += _unlike("errors", [(error.attempt, error.kind) for error in record.errors], job.errors)
    return "; ".join(unlike)


def _unlike(name: str, actual: object, expected: object) -> list[str]:
    return [] if actual == expected else [f"{name} is {actual!r}, not {expected!r}"]


def trouble(attempt: int) -> JobError:
    """Make an error record for an attempt."""
    return JobError(attempt=attempt, at_ms=0, kind="Trouble", message="it broke")


__all__ = ["LAPSED", "ModelJob", "ModelJobs", "Refusal", "difference", "trouble"]
