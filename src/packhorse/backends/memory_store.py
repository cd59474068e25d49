"""The jobs of the memory backend, and the moves that its verbs are made of. The caller of a move holds the lock."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque

from ..clock import SYSTEM_CLOCK, Clock
from ..job import TERMINAL, JobError, JobRecord, JobSpec, State, Unique, rank
from .base import Enqueued, QueueChange, WorkerInfo, add_error, lapse_landing
from .bells import Bells


class StoredJob(JobRecord, kw_only=True):
    """A job as this store keeps it."""

    seq: int
    token: str | None = None
    parked_at_ms: int | None = None
    unique_spec: Unique | None = None
    place: tuple[int, int, int] = (0, 0, 0)  # its entry in the ready or due heap; any other entry is out of date


#: (rank or instant, seq, number of the push, job): the push makes every entry different.
Entry = tuple[int, int, int, StoredJob]


class Ready:
    """The pending jobs of one queue, best rank first.

    Jobs of one priority mostly come in order: they wait in a lane each, and a claim costs the same however many wait.
    Only what comes out of order (a retry, a clock set back) goes to a heap.
    """

    def __init__(self) -> None:
        self._lanes: dict[int, deque[Entry]] = {}
        self._late: list[Entry] = []

    def push(self, entry: Entry) -> None:
        """Add a job."""
        priority = entry[3].priority
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = deque()
        if not lane or lane[-1] < entry:
            lane.append(entry)
        else:
            heapq.heappush(self._late, entry)

    def pop(self) -> Entry | None:
        """Take the best entry; None when there is none. It may be out of date, see `StoredJob.place`."""
        best: Entry | None = self._late[0] if self._late else None
        source: deque[Entry] | None = None
        for lane in self._lanes.values():
            if lane and (best is None or lane[0] < best):
                best, source = lane[0], lane
        if source is not None:
            return source.popleft()
        return heapq.heappop(self._late) if self._late else None


class MemoryStore:
    """The jobs of one `memory://` URL, shared by all backends (one per event loop) of a process."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        self.bells = Bells()
        self.jobs: dict[str, StoredJob] = {}
        self.ready: dict[str, Ready] = {}
        self.due: list[Entry] = []  # heap by (due_at_ms, seq)
        self.ended: dict[State, deque[tuple[int, str]]] = {state: deque() for state in TERMINAL}
        self.unique: dict[tuple[str, str], str] = {}  # (queue, key) → id of the live job that holds it
        self.workers: dict[str, tuple[WorkerInfo, int]] = {}  # id → info, lease end
        self.held: dict[str, set[str]] = {}  # worker → ids of its running jobs
        self.settings: dict[str, QueueChange] = {}
        self.seq = itertools.count(1)
        self.tokens = itertools.count(1)
        self.pushes = itertools.count(1)

    # Each of these is one move; the caller holds the lock.

    def make_ready(self, job: StoredJob, at_ms: int) -> None:
        """Make a job pending since `at_ms`, in its queue's lane."""
        job.state = State.PENDING
        job.due_at_ms = at_ms
        place = job.place = (rank(at_ms, job.priority), job.seq, next(self.pushes))
        ready = self.ready.get(job.queue)
        if ready is None:
            ready = self.ready[job.queue] = Ready()
        ready.push((*place, job))

    def make_due(self, job: StoredJob, due_at_ms: int) -> None:
        """Make a job scheduled for `due_at_ms`."""
        job.state = State.SCHEDULED
        job.due_at_ms = due_at_ms
        place = job.place = (due_at_ms, job.seq, next(self.pushes))
        heapq.heappush(self.due, (*place, job))

    def start_over(self, job: StoredJob, delay_ms: int, now_ms: int) -> None:
        """Make a job scheduled, or pending where there is no delay."""
        if delay_ms > 0:
            self.make_due(job, now_ms + delay_ms)
        else:
            self.make_ready(job, now_ms)

    def end(self, job: StoredJob, state: State, now_ms: int) -> None:
        """End a job in a terminal `state`; its unique key is free."""
        job.state = state
        job.finished_at_ms = now_ms
        job.place = (0, 0, 0)  # voids its entries in the heaps, so that `next_due_ms` forgets it
        self.ended[state].append((now_ms, job.id))
        if job.unique is not None:
            self.free_unique(job)

    def free_unique(self, job: StoredJob) -> None:
        """Let go of a job's unique key, if it still holds it."""
        assert job.unique is not None
        slot = (job.queue, job.unique)
        if self.unique.get(slot) == job.id:
            del self.unique[slot]

    def let_go(self, job: StoredJob) -> None:
        """Take a running job from its worker: the token is void from here on."""
        if job.worker is not None:
            ids = self.held.get(job.worker)
            if ids is not None:
                ids.discard(job.id)
        job.token = None
        job.worker = None

    def add(self, spec: JobSpec, now_ms: int) -> Enqueued:
        """Store a job unless its id or its unique key is there already."""
        if spec.id in self.jobs:
            return Enqueued(spec.id, False)
        if spec.unique is not None:
            slot = (spec.queue, spec.unique.key)
            holder = self.unique.get(slot)
            if holder is not None:
                return Enqueued(holder, False)
            self.unique[slot] = spec.id
        job = StoredJob(
            seq=next(self.seq),
            id=spec.id,
            type=spec.type,
            queue=spec.queue,
            state=State.PENDING,
            payload=spec.payload,
            priority=spec.priority,
            attempt=0,
            max_attempts=spec.max_attempts,
            timeout_ms=spec.timeout_ms,
            created_at_ms=now_ms,
            due_at_ms=now_ms,
            key=spec.key,
            tags=spec.tags,
            meta=copied(spec.meta),
            unique=spec.unique.key if spec.unique is not None else None,
            unique_spec=spec.unique,
            workflow=spec.workflow,
            schedule=spec.schedule,
            slot_at_ms=spec.slot_at_ms,
        )
        self.jobs[spec.id] = job
        self.start_over(job, spec.delay_ms, now_ms)
        return Enqueued(spec.id, True)

    def lapse(self, job: StoredJob, reason: str, now_ms: int) -> None:
        """Take a running job from a lost worker: it starts over, or ends with its last attempt."""
        job.errors = add_error(
            job.errors, JobError(attempt=job.attempt, at_ms=now_ms, kind="LeaseLapsed", message=reason)
        )
        self.let_go(job)
        state = lapse_landing(job.attempt, job.max_attempts, job.cancel_requested)
        if state is State.PENDING:
            self.make_ready(job, now_ms)
        else:
            self.end(job, state, now_ms)


def copied(meta: dict[str, str] | None) -> dict[str, str] | None:
    """The one value of a job that can change: who holds it must not change what is stored (FAILURES A)."""
    return None if meta is None else dict(meta)
