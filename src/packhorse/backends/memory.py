"""The contract in plain Python: the executable specification, and the backend of tests.

Jobs live in this process and die with it. Where another backend and this one differ, this one is right
or the contract is unclear. One lock per verb makes each verb atomic between threads and event loops.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import msgspec

from ..clock import SYSTEM_CLOCK, Clock
from ..job import TERMINAL, Claimed, JobRecord, JobSpec, State
from ..limits import check_limit_change
from . import memory_looking as looking
from . import memory_settings as settings
from .base import (
    DUE_TOPIC,
    SCHEDULES_A_TICK,
    Capabilities,
    Enqueued,
    Firing,
    Keep,
    Lapse,
    Limit,
    Note,
    Page,
    Pulse,
    Query,
    QueueChange,
    QueueCounts,
    Schedule,
    ScheduleChange,
    Settlement,
    Ticked,
    Verdict,
    WorkerInfo,
    WorkflowCounts,
    add_error,
    check_batch,
    check_changes,
    check_limit,
    check_settlements,
    check_specs,
    job_topic,
    landing,
    may_fire,
    page_limit,
    parse_cursor,
    queue_topic,
    wants_planning,
)
from .bells import Bell
from .memory_changes import ChangesVerb
from .memory_lanes import StoredJob
from .memory_steering import SteeringVerbs
from .memory_store import MemoryStore, copied
from .memory_transfer import TransferVerbs
from .rate_limited import RateLimited

__all__ = ["MemoryBackend", "MemoryStore"]


class MemoryBackend(SteeringVerbs, TransferVerbs, ChangesVerb):
    """Jobs in this process. See `MemoryStore`."""

    capabilities = Capabilities(
        durable=False,
        shared=False,
        unique_windows=True,
        dependencies=True,
        limits=True,
        fair=True,
        schedules=True,
        capacity=True,
        steps=True,
        transfer=True,
        changes=True,
    )

    def __init__(self, store: MemoryStore | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.store = store if store is not None else MemoryStore(clock)
        self._rate_limited = RateLimited()
        self.rate_limited = self._rate_limited.counts

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to disconnect from."""

    # ---- the way of a job ------------------------------------------------------------------------------

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        check_specs(specs, self.capabilities)
        store = self.store
        with store.lock:
            now_ms = store.clock.now_ms()
            answers = store.enqueue(specs, now_ms)
            store.serve(now_ms)
            topics = store.take_rung({queue_topic(spec.queue) for spec in specs})
        if any(spec.delay_ms > 0 for spec in specs):
            topics.add(DUE_TOPIC)
        store.bells.ring(topics)
        return answers

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        check_limit(limit)
        store = self.store
        claimed: list[Claimed] = []
        with store.lock:
            now_ms = store.clock.now_ms()
            info = store.workers[worker][0] if worker in store.workers else WorkerInfo(id=worker, queues=tuple(queues))
            store.workers[worker] = (info, now_ms + lease_ms)
            held = store.held.setdefault(worker, set())
            token = str(next(store.tokens))
            for queue in queues:
                for job in store.take(queue, limit - len(claimed), now_ms, self._rate_limited):
                    job.state = State.RUNNING
                    job.attempt += 1
                    job.token = token
                    job.worker = worker
                    job.started_at_ms = now_ms
                    held.add(job.id)
                    store.log.tell(job.id, State.RUNNING)
                    claimed.append(
                        Claimed(
                            job.id,
                            token,
                            job.type,
                            job.payload,
                            job.attempt,
                            job.max_attempts,
                            job.timeout_ms,
                            queue,
                            job.priority,
                            job.created_at_ms,
                            job.due_at_ms,
                            job.parked_at_ms,
                            job.key,
                            job.tags,
                            copied(job.meta),
                            job.workflow,
                        )
                    )
            topics = store.take_rung(set())
        store.bells.ring(topics)
        return claimed

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        check_settlements(settlements, self.capabilities)
        store = self.store
        topics: set[str] = set()
        verdicts = []
        with store.lock:
            now_ms = store.clock.now_ms()
            for settlement in settlements:
                job = store.jobs.get(settlement.id)
                if job is None or job.state is not State.RUNNING or job.token != settlement.token:
                    verdicts.append(Verdict.STALE)
                    continue
                self._apply(job, settlement, now_ms, topics)
                verdicts.append(Verdict.APPLIED)
            store.serve(now_ms)
            topics = store.take_rung(topics)
        store.bells.ring(topics)
        return verdicts

    def _apply(self, job: StoredJob, settlement: Settlement, now_ms: int, topics: set[str]) -> None:
        store = self.store
        store.let_go(job)
        if settlement.error is not None:
            job.errors = add_error(job.errors, settlement.error)
        if settlement.refund:
            job.attempt -= 1
        if settlement.park:
            job.parked_at_ms = job.parked_at_ms if job.parked_at_ms is not None else now_ms
        else:
            job.parked_at_ms = None
        state = landing(settlement, job.cancel_requested)
        if state in TERMINAL:
            job.result = settlement.result
            store.end(job, state, now_ms)
            topics.add(job_topic(job.id))
        else:
            store.start_over(job, settlement.delay_ms, now_ms)
            topics.add(queue_topic(job.queue) if settlement.delay_ms <= 0 else DUE_TOPIC)
        if settlement.follow_ups:
            self._add_rest(settlement.follow_ups, now_ms, topics)

    def _add_rest(self, specs: Sequence[JobSpec], now_ms: int, topics: set[str]) -> None:
        """Store what follows from a move: no capacity holds, and a held key leaves a job out."""
        self.store.add(specs, now_ms)
        topics.update(queue_topic(spec.queue) if spec.delay_ms <= 0 else DUE_TOPIC for spec in specs)

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        check_batch(notes)
        store = self.store
        with store.lock:
            store.workers[worker.id] = (worker, store.clock.now_ms() + lease_ms)
            for note in notes:
                job = store.jobs.get(note.id)
                if job is not None and job.state is State.RUNNING and job.token == note.token:
                    job.progress = note.progress if note.progress is not None else job.progress
                    job.progress_note = note.text if note.text is not None else job.progress_note
                    if note.step is not None:
                        job.steps = {**(job.steps or {}), note.step: note.result}
            held = [store.jobs[job_id] for job_id in store.held.get(worker.id, ())]
            return Pulse(
                held={job.id: job.token or "" for job in held},
                cancel=frozenset(job.id for job in held if job.cancel_requested),
            )

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        store = self.store
        with store.lock:
            store.workers.pop(worker, None)
            lost = [store.jobs[job_id] for job_id in sorted(store.held.pop(worker, ()))]
            now_ms = store.clock.now_ms()
            lapses = [store.lapse(job, reason, now_ms) for job in lost]
            store.serve(now_ms)
            topics = store.take_rung(_moved_topics(lost))
        store.bells.ring(topics)
        return lapses

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        check_limit(limit)
        store = self.store
        moved: list[StoredJob] = []
        with store.lock:
            now_ms = store.clock.now_ms()
            while store.due and store.due[0][0] <= now_ms and len(moved) < limit:
                due_at_ms, _, push, job = heapq.heappop(store.due)
                if job.state is State.SCHEDULED and job.place[2] == push:
                    store.make_ready(job, due_at_ms)
                    moved.append(job)
            promoted = len(moved)
            lapses: list[Lapse] = []
            for worker in [w for w in store.held if w not in store.workers or store.workers[w][1] <= now_ms]:
                for job_id in sorted(store.held[worker])[: limit - len(lapses)]:
                    job = store.jobs[job_id]
                    lapses.append(store.lapse(job, "the lease of the worker ran out", now_ms))
                    moved.append(job)
                if not store.held[worker]:
                    del store.held[worker]
            for worker in [w for w, (_, end) in store.workers.items() if end <= now_ms and not store.held.get(w)]:
                del store.workers[worker]
            dropped = self._drop_old(limit, keep, now_ms)
            store.forget_absent(now_ms)
            freed = store.serve(now_ms, limit)
            opened = [queue for queue, at_ms in store.openings.items() if at_ms <= now_ms]
            for queue in opened:
                del store.openings[queue]
            store.limits.forget_full(now_ms)
            topics = store.take_rung(_moved_topics(moved) | {queue_topic(queue) for queue in opened})
            ticked = Ticked(
                promoted=promoted,
                lapses=tuple(lapses),
                dropped=dropped,
                freed=freed,
                next_due_ms=self._next_due_ms(now_ms),
                now_ms=now_ms,
                schedules=tuple(one for _, one in sorted(store.schedules.items()) if wants_planning(one, now_ms))[
                    :SCHEDULES_A_TICK
                ],
            )
        store.bells.ring(topics - {DUE_TOPIC})
        return ticked

    def _next_due_ms(self, now_ms: int) -> int | None:
        """Answer in how many ms time has to be moved on again; 0: at once."""
        store = self.store
        while store.due and store.due[0][3].place != store.due[0][:3]:
            heapq.heappop(store.due)
        if store.unserved:
            return 0
        instants = [store.due[0][0]] if store.due else []
        instants += store.openings.values()
        instants += [
            now_ms if one.next_ms is None else one.next_ms for one in store.schedules.values() if not one.paused
        ]
        return max(0, min(instants) - now_ms) if instants else None

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        for firing in firings:
            check_specs(firing.specs, self.capabilities)
        check_batch(firings)
        store = self.store
        topics: set[str] = set()
        verdicts = []
        with store.lock:
            now_ms = store.clock.now_ms()
            for firing in firings:
                schedule = store.schedules.get(firing.name)
                if schedule is None or not may_fire(schedule, firing):
                    verdicts.append(Verdict.STALE)
                    continue
                self._add_rest(firing.specs, now_ms, topics)
                store.schedules[firing.name] = msgspec.structs.replace(
                    schedule, done_ms=firing.new_done_ms, next_ms=firing.next_ms
                )
                verdicts.append(Verdict.APPLIED)
            store.serve(now_ms)
            topics = store.take_rung(topics)
        store.bells.ring(topics)
        return verdicts

    def _drop_old(self, limit: int, keep: Keep, now_ms: int) -> int:
        store = self.store
        dropped = 0
        for state, keep_ms in (
            (State.SUCCEEDED, keep.succeeded_ms),
            (State.FAILED, keep.failed_ms),
            (State.CANCELLED, keep.cancelled_ms),
        ):
            ended = store.ended[state]
            kept: list[tuple[int, str]] = []
            while ended and ended[0][0] + keep_ms <= now_ms and dropped < limit:
                at_ms, job_id = ended.popleft()
                job = store.jobs.get(job_id)
                if job is None or job.state is not state or job.finished_at_ms != at_ms:
                    continue
                if store.has_live_child(job):
                    kept.append((at_ms, job_id))
                    continue
                store.forget(job, now_ms)
                dropped += 1
            ended.extendleft(reversed(kept))
        return dropped

    def watch(self, topics: Sequence[str]) -> Bell:
        return self.store.bells.watch(topics)

    # ---- look ------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        check_batch(ids)
        with self.store.lock:
            return looking.get(self.store, ids)

    async def find(self, query: Query) -> Page:
        page_limit(query)
        parse_cursor(query.cursor)
        with self.store.lock:
            return looking.find(self.store, query)

    async def counts(self) -> dict[str, QueueCounts]:
        with self.store.lock:
            return looking.counts(self.store)

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        check_limit(limit)
        with self.store.lock:
            return looking.workflows(self.store, limit, before)

    async def workers(self) -> list[WorkerInfo]:
        with self.store.lock:
            return looking.workers(self.store)

    # ---- steer -----------------------------------------------------------------------------------------

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        check_changes(changes, self.capabilities)
        with self.store.lock:
            answer = settings.change_queues(self.store, changes)
        self.store.bells.ring([queue_topic(change.queue) for change in changes])
        return answer

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        check_batch(changes)
        for change in changes:
            check_limit_change(change)
        topics: list[str] = []
        with self.store.lock:
            if changes:
                settings.change_limits(self.store, changes)
                topics = [queue_topic(queue) for queue in self.store.lanes]
            answer = settings.limits(self.store, about)
        self.store.bells.ring(topics)
        return answer

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        check_batch(changes)
        with self.store.lock:
            answer = settings.change_schedules(self.store, changes)
        if changes:
            self.store.bells.ring([DUE_TOPIC])
        return answer


def _moved_topics(moved: Sequence[StoredJob]) -> set[str]:
    return {job_topic(job.id) if job.state in TERMINAL else queue_topic(job.queue) for job in moved}
