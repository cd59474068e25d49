"""The contract once more, as plain dicts and no backend: the oracle of the state machine.

Written from `backends/base.py`, not from `memory.py`, and with none of its indexes: each question walks over
all jobs, so that a mistake in an index cannot be made twice. Time is a number that the caller passes.
What a job does by itself is in `model_jobs`, what an operator sets in `model_settings`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from ..backends.base import (
    Firing,
    Keep,
    Lapse,
    Note,
    Query,
    QueueCounts,
    Rerun,
    Settlement,
    Steered,
    Ticked,
    Verdict,
    WorkflowCounts,
)
from ..job import LIVE, TERMINAL, Claimed, JobRecord, State
from .model_jobs import LAPSED, ModelJob, ModelJobs, Refusal, difference, trouble
from .model_settings import LimitBook, ScheduleBook

__all__ = ["Model", "ModelJob", "Refusal", "trouble"]


class Model(ModelJobs):
    """What a store must answer, given everything that was done to it."""

    def __init__(self, fair: bool = True) -> None:
        super().__init__(fair)
        self.leases: dict[str, int] = {}  # worker → end of its lease
        self.paused: dict[str, bool] = {}
        self.tokens: set[str] = set()
        self.schedules = ScheduleBook()
        self._limits = LimitBook(self.jobs)

    @property
    def limits(self) -> LimitBook:
        """The limits, counting the jobs there are now: a refused call brings others back."""
        self._limits.jobs = self.jobs
        return self._limits

    def running(self, worker: str) -> list[ModelJob]:
        """List what a worker holds."""
        return [job for job in self.jobs.values() if job.state is State.RUNNING and job.worker == worker]

    # ---- the way of a job --------------------------------------------------------------------------------

    def claimable(self, queues: Sequence[str], limit: int, now_ms: int) -> list[str]:
        """Say which jobs a claim must answer, in order."""
        open_ = [queue for queue in queues if not self.paused.get(queue, False)]
        ready = [job for queue in open_ for job in self.pending(queue)]
        return [job.spec.id for job in self.limits.startable(ready, limit, now_ms)]

    def claim(self, claimed: Sequence[Claimed], worker: str, lease_ms: int, now_ms: int) -> None:
        """Take what a claim answered."""
        if claimed:  # an empty claim may leave the lease as it was; see `learn_lease`
            self.leases[worker] = now_ms + lease_ms
        for each in claimed:
            job = self.jobs[each.id]
            assert job.state is State.PENDING, f"claimed while {job.state}"
            assert not self.paused.get(job.queue, False), "claimed from a paused queue"
            assert each.token not in self.tokens, "a token was used again"
            self.took(job)
            self.limits.use(job, now_ms)
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

    def settle(self, settlements: Sequence[Settlement], now_ms: int) -> list[Verdict]:
        """End attempts."""
        verdicts = [self._settle(settlement, now_ms) for settlement in settlements]
        self.serve(now_ms)
        return verdicts

    def _settle(self, settlement: Settlement, now_ms: int) -> Verdict:
        job = self.jobs.get(settlement.id)
        if job is None or job.state is not State.RUNNING or job.token != settlement.token:
            return Verdict.STALE
        if settlement.error is not None:
            self.add_error(job, settlement.error.attempt, settlement.error.kind)
        job.attempt -= settlement.refund
        job.parked_at_ms = (job.parked_at_ms or now_ms) if settlement.park else None
        state = settlement.state
        if job.cancel_requested and state not in TERMINAL:
            state = State.CANCELLED
        if state in TERMINAL:
            job.result = settlement.result
            self.end(job, state, now_ms)
        else:
            self.start_over(job, settlement.delay_ms, now_ms)
        self.add_rest(settlement.follow_ups, now_ms)
        return Verdict.APPLIED

    def _lapse(self, job: ModelJob, now_ms: int) -> Lapse:
        self.add_error(job, job.attempt, LAPSED)
        if job.cancel_requested:
            self.end(job, State.CANCELLED, now_ms)
        elif job.attempt >= job.max_attempts:
            self.end(job, State.FAILED, now_ms)
        else:
            self.start_over(job, 0, now_ms)
        return Lapse(
            id=job.spec.id,
            queue=job.queue,
            type=job.spec.type,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            state=job.state,
        )

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
                if note.step is not None:
                    job.steps[note.step] = note.result
        held = self.running(worker)
        cancel = frozenset(job.spec.id for job in held if job.cancel_requested)
        return {job.spec.id: job.token or "" for job in held}, cancel

    def retire(self, worker: str, now_ms: int) -> list[Lapse]:
        """End a lease; answers the jobs that lapsed, by id."""
        self.leases.pop(worker, None)
        lapses = [self._lapse(job, now_ms) for job in self.running(worker)]
        self.serve(now_ms)
        return by_id(lapses)

    # ---- time --------------------------------------------------------------------------------------------

    def lapsing(self, now_ms: int) -> list[ModelJob]:
        """List the running jobs whose lease ran out."""
        running = [job for job in self.jobs.values() if job.state is State.RUNNING]
        return [job for job in running if self.leases.get(job.worker or "", 0) <= now_ms]

    def tick(self, keep: Keep, now_ms: int) -> tuple[Ticked, list[str]]:
        """Move time on, without a limit; nothing may be kept for less than 1 ms.

        `next_due_ms` (see `next_due`) and `freed` are left out. Answers also the jobs that this tick
        or the next may drop: a child of theirs ended in this one. The caller looks, and tells by `forget`.
        """
        due = [job for job in self.jobs.values() if job.state is State.SCHEDULED and job.due_at_ms <= now_ms]
        for job in sorted(due, key=lambda job: (job.due_at_ms, job.seq)):
            self.make_pending(job, job.due_at_ms)
        lapses = [self._lapse(job, now_ms) for job in sorted(self.lapsing(now_ms), key=lambda job: job.seq)]
        self.leases = {worker: end_ms for worker, end_ms in self.leases.items() if end_ms > now_ms}
        keep_ms = {
            State.SUCCEEDED: keep.succeeded_ms,
            State.FAILED: keep.failed_ms,
            State.CANCELLED: keep.cancelled_ms,
        }
        ended = [job for job in self.jobs.values() if job.state in TERMINAL]
        old = [job.spec.id for job in ended if (job.finished_at_ms or 0) + keep_ms[job.state] <= now_ms]
        dropped = [job_id for job_id in old if not self.has_live_child(job_id)]
        self.forget(dropped)
        self.serve(now_ms)
        perhaps = [job_id for job_id in old if job_id in self.jobs and not self.has_live_child(job_id)]
        ticked = Ticked(
            promoted=len(due),
            lapses=tuple(lapses),
            dropped=len(dropped),
            now_ms=now_ms,
            schedules=tuple(self.schedules.due(now_ms)),
        )
        return ticked, perhaps

    def next_due(self, now_ms: int) -> tuple[int | None, int | None]:
        """Say when a tick must be called again at the latest, and from when on it may be of use; None: never."""
        firm = [job.due_at_ms - now_ms for job in self.jobs.values() if job.state is State.SCHEDULED]
        schedules = [each for each in self.schedules.all() if not each.paused]
        firm += [max(0, each.next_ms - now_ms) for each in schedules if each.next_ms is not None]
        pending = [job for job in self.jobs.values() if job.state is State.PENDING]
        serving = [job for job in pending if not self.paused.get(job.queue, False)]
        latest = firm + self.limits.openings(serving, now_ms)
        buckets = [full_at_ns // 1_000_000 + 1 - now_ms for full_at_ns in self.limits.buckets.values()]
        closed = any(wait > 0 for wait in buckets) or any(each.next_ms is None for each in schedules)
        earliest = [*firm, 0] if closed else firm
        return min(latest, default=None), min(earliest, default=None)

    def fire(self, firing: Firing, now_ms: int) -> Verdict:
        """Turn slots of a schedule into jobs."""
        if not self.schedules.fire(firing):
            return Verdict.STALE
        self.add_rest(firing.specs, now_ms)
        self.serve(now_ms)
        return Verdict.APPLIED

    # ---- steering ----------------------------------------------------------------------------------------

    def cancel(self, ids: Sequence[str], now_ms: int) -> list[Steered]:
        """Stop jobs."""
        answers = [self._cancel(job_id, now_ms) for job_id in ids]
        self.serve(now_ms)
        return answers

    def _cancel(self, job_id: str, now_ms: int) -> Steered:
        job = self.jobs.get(job_id)
        if job is None:
            return Steered.MISSING
        if job.state in TERMINAL:
            return Steered.ENDED
        job.cancel_requested = True
        if job.state is State.RUNNING:
            return Steered.REQUESTED
        self.end(job, State.CANCELLED, now_ms)
        return Steered.DONE

    def rerun(self, request: Rerun, now_ms: int) -> Steered:
        """Start an ended job over."""
        job = self.jobs.get(request.id)
        if job is None:
            return Steered.MISSING
        if job.state in LIVE:
            return Steered.LIVE
        queue = job.queue if request.queue is None else request.queue
        if any(holder is not job for holder in self.holders(queue, job.unique, now_ms)):
            return Steered.CONFLICT
        self.start_anew(job, request, queue, now_ms)
        return Steered.DONE

    def delete(self, ids: Sequence[str], now_ms: int) -> list[Steered]:
        """Remove jobs."""
        answers = [self._delete(job_id, now_ms) for job_id in ids]
        self.serve(now_ms)
        return answers

    def _delete(self, job_id: str, now_ms: int) -> Steered:
        job = self.jobs.get(job_id)
        if job is None:
            return Steered.MISSING
        if job.state is State.RUNNING:
            return Steered.LIVE
        if job.state in LIVE:
            self.end(job, State.CANCELLED, now_ms)
        self.forget([job_id])
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
            and query.workflow in {None, job.spec.workflow}
            and query.schedule in {None, job.spec.schedule}
            and (query.tag is None or query.tag in job.spec.tags)
            and (query.created_from_ms is None or job.created_at_ms >= query.created_from_ms)
            and (query.created_before_ms is None or job.created_at_ms < query.created_before_ms)
        ]

    def counts(self, now_ms: int) -> dict[str, QueueCounts]:
        """Count jobs by queue and state."""
        found = Counter((job.queue, job.state) for job in self.jobs.values())
        counts = {}
        for name in {queue for queue, _ in found} | set(self.paused):
            pending = [job.due_at_ms for job in self.pending(name)]
            counts[name] = QueueCounts(
                states={state: found[name, state] for state in State if found[name, state]},
                oldest_pending_ms=now_ms - min(pending) if pending else None,
                paused=self.paused.get(name, False),
            )
        return counts

    def workflows(self) -> list[WorkflowCounts]:
        """Count the jobs of workflows, newest id first."""
        names = {job.spec.workflow for job in self.jobs.values()} - {None}
        counts = []
        for name in sorted((name for name in names if name is not None), reverse=True):
            jobs = [job for job in self.jobs.values() if job.spec.workflow == name]
            created_at_ms = min(job.created_at_ms for job in jobs)
            states = dict(Counter(job.state for job in jobs))
            counts.append(WorkflowCounts(id=name, states=states, created_at_ms=created_at_ms))
        return counts

    def difference(self, record: JobRecord) -> str:
        """Say in what a record differs from what it must be; empty if in nothing."""
        return difference(self.jobs[record.id], record)


def without_waits(ticked: Ticked) -> Ticked:
    """Answer a tick less what is judged by itself: when it is due again, the children it told, what it handed out.

    The lapses are in order of id: a store may name them as it likes.
    """
    lapses = tuple(by_id(ticked.lapses))
    return msgspec.structs.replace(ticked, lapses=lapses, next_due_ms=None, freed=0, schedules=())


def by_id(lapses: Iterable[Lapse]) -> list[Lapse]:
    """Answer lapses in order of id."""
    return sorted(lapses, key=lambda lapse: lapse.id)
