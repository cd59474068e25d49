"""The contract in plain Python: the executable specification, and the backend of tests.

Jobs live in this process and die with it. Where another backend and this one differ, this one is right
or the contract is unclear. One lock per verb makes each verb atomic between threads and event loops.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

import msgspec

from ..clock import SYSTEM_CLOCK, Clock
from ..errors import UniqueConflict
from ..job import LIVE, TERMINAL, Claimed, JobRecord, JobSpec, State
from .base import (
    DUE_TOPIC,
    Backend,
    Capabilities,
    Enqueued,
    Keep,
    Note,
    Page,
    Pulse,
    Query,
    QueueChange,
    QueueCounts,
    Rerun,
    Settlement,
    Steered,
    Ticked,
    Verdict,
    WorkerInfo,
    add_error,
    check_batch,
    check_changes,
    check_limit,
    check_settlements,
    check_specs,
    job_topic,
    landing,
    page_limit,
    parse_cursor,
    queue_topic,
    worker_topic,
)
from .bells import Bell
from .memory_store import MemoryStore, StoredJob, copied

__all__ = ["MemoryBackend", "MemoryStore"]


class MemoryBackend(Backend):
    """Jobs in this process. See `MemoryStore`."""

    capabilities = Capabilities(durable=False, shared=False)

    def __init__(self, store: MemoryStore | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.store = store if store is not None else MemoryStore(clock)

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
            self._refuse_conflicts(specs)
            answers = [store.add(spec, now_ms) for spec in specs]
        topics = {queue_topic(spec.queue) for spec in specs}
        if any(spec.delay_ms > 0 for spec in specs):
            topics.add(DUE_TOPIC)
        store.bells.ring(topics)
        return answers

    def _refuse_conflicts(self, specs: Sequence[JobSpec]) -> None:
        """Raise for `on_conflict='refuse'` before anything of the call is stored."""
        taken: dict[tuple[str, str], str] = {}
        seen: set[str] = set()
        for spec in specs:
            repeated = spec.id in self.store.jobs or spec.id in seen
            seen.add(spec.id)
            if spec.unique is None or repeated:
                continue
            slot = (spec.queue, spec.unique.key)
            holder = self.store.unique.get(slot) or taken.get(slot)
            if holder is not None and spec.unique.on_conflict == "refuse":
                raise UniqueConflict(spec.unique.key, holder)
            taken.setdefault(slot, spec.id)

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
                ready = store.ready.get(queue)
                if ready is None or (queue in store.settings and store.settings[queue].paused):
                    continue
                while len(claimed) < limit and (entry := ready.pop()) is not None:
                    _, _, push, job = entry
                    if job.state is not State.PENDING or job.place[2] != push:
                        continue  # cancelled, deleted or moved since it was put there
                    job.state = State.RUNNING
                    job.attempt += 1
                    job.token = token
                    job.worker = worker
                    job.started_at_ms = now_ms
                    held.add(job.id)
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
        for spec in settlement.follow_ups:
            store.add(spec, now_ms)
            topics.add(queue_topic(spec.queue) if spec.delay_ms <= 0 else DUE_TOPIC)

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
            held = [store.jobs[job_id] for job_id in store.held.get(worker.id, ())]
            return Pulse(
                held={job.id: job.token or "" for job in held},
                cancel=frozenset(job.id for job in held if job.cancel_requested),
            )

    async def retire(self, worker: str, reason: str) -> int:
        store = self.store
        with store.lock:
            store.workers.pop(worker, None)
            lost = [store.jobs[job_id] for job_id in sorted(store.held.pop(worker, ()))]
            now_ms = store.clock.now_ms()
            for job in lost:
                store.lapse(job, reason, now_ms)
        self._ring_moved(lost)
        return len(lost)

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
            for worker in [w for w in store.held if w not in store.workers or store.workers[w][1] <= now_ms]:
                for job_id in sorted(store.held[worker])[: limit - (len(moved) - promoted)]:
                    job = store.jobs[job_id]
                    store.lapse(job, "the lease of the worker ran out", now_ms)
                    moved.append(job)
                if not store.held[worker]:
                    del store.held[worker]
            for worker in [w for w, (_, end) in store.workers.items() if end <= now_ms and not store.held.get(w)]:
                del store.workers[worker]
            dropped = self._drop_old(limit, keep, now_ms)
            while store.due and store.due[0][3].place != store.due[0][:3]:
                heapq.heappop(store.due)
            next_due_ms = max(0, store.due[0][0] - now_ms) if store.due else None
        self._ring_moved(moved)
        return Ticked(promoted=promoted, lapsed=len(moved) - promoted, dropped=dropped, next_due_ms=next_due_ms)

    def _drop_old(self, limit: int, keep: Keep, now_ms: int) -> int:
        store = self.store
        dropped = 0
        for state, keep_ms in (
            (State.SUCCEEDED, keep.succeeded_ms),
            (State.FAILED, keep.failed_ms),
            (State.CANCELLED, keep.cancelled_ms),
        ):
            ended = store.ended[state]
            while ended and ended[0][0] + keep_ms <= now_ms and dropped < limit:
                at_ms, job_id = ended.popleft()
                job = store.jobs.get(job_id)
                if job is not None and job.state is state and job.finished_at_ms == at_ms:
                    del store.jobs[job_id]
                    dropped += 1
        return dropped

    def _ring_moved(self, moved: Sequence[StoredJob]) -> None:
        self.store.bells.ring({job_topic(job.id) if job.state in TERMINAL else queue_topic(job.queue) for job in moved})

    def watch(self, topics: Sequence[str]) -> Bell:
        return self.store.bells.watch(topics)

    # ---- look ------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        check_batch(ids)
        with self.store.lock:
            return [_record(job) if (job := self.store.jobs.get(job_id)) is not None else None for job_id in ids]

    async def find(self, query: Query) -> Page:
        limit = page_limit(query)
        before = parse_cursor(query.cursor)
        with self.store.lock:
            matching = [job for job in self.store.jobs.values() if _matches(job, query)]
            matching.sort(key=lambda job: job.seq, reverse=not query.oldest_first)
            if before is not None:
                matching = [job for job in matching if (job.seq > before if query.oldest_first else job.seq < before)]
            page = [_record(job) for job in matching[:limit]]
        more = len(matching) > limit
        return Page(page, str(matching[limit - 1].seq) if more else None)

    async def counts(self) -> dict[str, QueueCounts]:
        store = self.store
        with store.lock:
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

    async def workers(self) -> list[WorkerInfo]:
        store = self.store
        with store.lock:
            now_ms = store.clock.now_ms()
            return [
                msgspec.structs.replace(info, lease_left_ms=end - now_ms, running=len(store.held.get(worker, ())))
                for worker, (info, end) in sorted(store.workers.items())
                if end > now_ms
            ]

    # ---- steer -----------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        check_batch(ids)
        store = self.store
        topics: set[str] = set()
        answers = []
        with store.lock:
            now_ms = store.clock.now_ms()
            for job_id in ids:
                job = store.jobs.get(job_id)
                if job is None:
                    answers.append(Steered.MISSING)
                elif job.state in TERMINAL:
                    answers.append(Steered.ENDED)
                elif job.state is State.RUNNING:
                    job.cancel_requested = True
                    topics.add(worker_topic(job.worker or ""))
                    answers.append(Steered.REQUESTED)
                else:
                    job.cancel_requested = True
                    store.end(job, State.CANCELLED, now_ms)
                    topics.add(job_topic(job_id))
                    answers.append(Steered.DONE)
        store.bells.ring(topics)
        return answers

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        check_batch(reruns)
        store = self.store
        topics: set[str] = set()
        with store.lock:
            now_ms = store.clock.now_ms()
            answers = [self._rerun_one(request, now_ms, topics) for request in reruns]
        store.bells.ring(topics)
        return answers

    def _rerun_one(self, request: Rerun, now_ms: int, topics: set[str]) -> Steered:
        store = self.store
        job = store.jobs.get(request.id)
        if job is None:
            return Steered.MISSING
        if job.state in LIVE:
            return Steered.LIVE
        queue = request.queue if request.queue is not None else job.queue
        if job.unique is not None:
            if store.unique.get((queue, job.unique)) is not None:
                return Steered.CONFLICT
            store.unique[queue, job.unique] = job.id
        job.queue = queue
        job.payload = request.payload if request.payload is not None else job.payload
        job.priority = request.priority if request.priority is not None else job.priority
        job.max_attempts = request.max_attempts if request.max_attempts is not None else job.max_attempts
        job.attempt = 0
        job.result = job.finished_at_ms = job.started_at_ms = job.parked_at_ms = None
        job.progress = job.progress_note = None
        job.cancel_requested = False
        store.start_over(job, request.delay_ms, now_ms)
        topics.add(queue_topic(queue) if request.delay_ms <= 0 else DUE_TOPIC)
        return Steered.DONE

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        check_batch(ids)
        store = self.store
        answers = []
        topics = set()
        with store.lock:
            for job_id in ids:
                job = store.jobs.get(job_id)
                if job is None:
                    answers.append(Steered.MISSING)
                elif job.state is State.RUNNING:
                    answers.append(Steered.LIVE)
                else:
                    if job.unique is not None:
                        store.free_unique(job)
                    job.place = (0, 0, 0)  # voids its entries in the heaps
                    del store.jobs[job_id]
                    topics.add(job_topic(job_id))
                    answers.append(Steered.DONE)
        store.bells.ring(topics)
        return answers

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        check_changes(changes, self.capabilities)
        store = self.store
        with store.lock:
            for change in changes:
                old = store.settings.get(change.queue, QueueChange(queue=change.queue, paused=False))
                paused = change.paused if change.paused is not None else old.paused
                store.settings[change.queue] = QueueChange(queue=change.queue, paused=paused)
            answer = dict(sorted(store.settings.items()))
        store.bells.ring([queue_topic(change.queue) for change in changes])
        return answer


def _matches(job: StoredJob, query: Query) -> bool:
    return (
        (not query.states or job.state in query.states)
        and (query.queue is None or job.queue == query.queue)
        and (query.type is None or job.type == query.type)
        and (query.tag is None or query.tag in job.tags)
        and (query.key is None or job.key == query.key)
        and (query.created_from_ms is None or job.created_at_ms >= query.created_from_ms)
        and (query.created_before_ms is None or job.created_at_ms < query.created_before_ms)
    )


_RECORD_FIELDS = JobRecord.__struct_fields__


def _record(job: StoredJob) -> JobRecord:
    record = JobRecord(**{name: getattr(job, name) for name in _RECORD_FIELDS})
    record.meta = copied(job.meta)
    return record
