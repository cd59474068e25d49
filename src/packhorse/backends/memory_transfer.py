"""Moves to and from other stores, of the memory backend (decision 18)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..errors import ConfigurationError
from ..job import TERMINAL, JobRecord, State
from .base import (
    DUE_TOPIC,
    TRANSFER_BYTES_MAX,
    Arrival,
    Backend,
    MovedJob,
    Tie,
    Transfer,
    Verdict,
    check_batch,
    check_limit,
    holds_key,
    job_topic,
    merge_schedule,
    queue_topic,
    read_transfer,
    write_transfer,
)
from .memory_elsewhere import Absent
from .memory_lanes import NOBODY, NOTHING, StoredJob
from .memory_looking import as_record
from .memory_store import MemoryStore


class TransferVerbs(Backend):
    """The two verbs of a move."""

    store: MemoryStore

    async def hand_over(self, to: str, limit: int, stored: int | None = None) -> Transfer:
        check_limit(limit)
        store = self.store
        with store.lock:
            transfer = _hand_over(store, to, limit, stored, store.clock.now_ms())
            topics = store.rung | {job_topic(moved.record.id) for moved in transfer.jobs}
            store.rung.clear()
        store.bells.ring(topics)
        return transfer

    async def take_over(self, transfer: Transfer | None = None) -> Arrival:
        store = self.store
        with store.lock:
            now_ms = store.clock.now_ms()
            if transfer is None:
                return Arrival(store=store.transfers.identity(now_ms))
            check_batch(transfer.jobs)
            arrival = _take_over(store, transfer, now_ms)
            topics = set(store.rung)
            store.rung.clear()
        store.bells.ring(topics)
        return arrival


# ---- to another store --------------------------------------------------------------------------------------


def _hand_over(store: MemoryStore, to: str, limit: int, stored: int | None, now_ms: int) -> Transfer:
    transfers = store.transfers
    if transfers.departing is not None:
        goes_to, batch = transfers.departing
        if goes_to != to:
            raise ConfigurationError("jobs of this store are on their way to another one; finish that move first")
        transfer = read_transfer(batch)
        if transfer.number != stored:
            return transfer
        transfers.departing = None
    source = transfers.identity(now_ms)
    next_number = transfers.numbers.get(to, 0) + 1
    store.serve(now_ms)
    if store.unserved:  # children that are to be told yet would wait for a parent that nobody knows any more
        return Transfer(source=source, number=next_number)
    chosen = _choose(store, limit)
    schedules = tuple(store.schedules[name] for name in sorted(store.schedules)[:limit])
    if not chosen and not schedules:
        expects = any(absent.source is not None for absent in store.absent.values())
        return Transfer(source=source, number=next_number, last=not (store.jobs or store.schedules or expects))
    transfer = Transfer(
        source=source,
        number=max(next_number, now_ms),  # a store set back to an earlier copy of itself repeats none
        jobs=tuple(_depart(store, job) for job in chosen),
        schedules=schedules,
    )
    for job in chosen:
        _forget(store, job, now_ms)
    for schedule in schedules:
        del store.schedules[schedule.name]
    transfers.numbers[to] = transfer.number
    transfers.departing = (to, write_transfer(transfer))
    return transfer


def _choose(store: MemoryStore, limit: int) -> list[StoredJob]:
    """Answer the jobs of the next batch: those that wait, then the others in their order of arrival."""
    still = [job for job in store.jobs.values() if job.state is not State.RUNNING]
    still.sort(key=lambda job: (job.state is not State.WAITING, job.seq))
    chosen: list[StoredJob] = []
    size = 0
    for job in still[:limit]:
        size += len(job.payload) + len(job.result or b"") + sum(map(len, (job.steps or {}).values()))
        if chosen and size > TRANSFER_BYTES_MAX:
            break
        chosen.append(job)
    return chosen


def _depart(store: MemoryStore, job: StoredJob) -> MovedJob:
    parents = {
        parent: _tie_of(store, job, parent)
        for parent in job.after
        if parent in job.waiting_on or parent in store.jobs or parent in store.absent
    }
    return MovedJob(record=as_record(job, steps=True), unique=job.unique_spec, parents=parents)


def _tie_of(store: MemoryStore, job: StoredJob, name: str) -> Tie:
    if name in job.waiting_on:
        return Tie.WAITS
    parent = store.jobs.get(name)
    is_bad = parent is not None and parent.state in {State.FAILED, State.CANCELLED}
    return Tie.HELD if job.held_by is not None and (name == job.held_by or is_bad) else Tie.TOLD


def _forget(store: MemoryStore, job: StoredJob, now_ms: int) -> None:
    store.leave_place(job)
    store.absent[job.id] = Absent(now_ms, job.children or {})
    del store.jobs[job.id]


# ---- from another store ------------------------------------------------------------------------------------


def _take_over(store: MemoryStore, transfer: Transfer, now_ms: int) -> Arrival:
    transfers = store.transfers
    source = transfer.source
    mark = transfers.arrived.get(source, 0)
    is_empty = not transfer.jobs and not transfer.schedules
    if not is_empty and transfer.number < mark:
        return Arrival(store=transfers.identity(now_ms), verdict=Verdict.STALE)
    jobs = 0
    known: list[str] = []
    if mark < transfer.number and source in transfers.held:
        held = read_transfer(transfers.held.pop(source))
        known = _arrive(store, held, now_ms)
        jobs = len(held.jobs) - len(known)
    if not is_empty and transfer.number > mark:
        transfers.held[source] = write_transfer(transfer)
        transfers.arrived[source] = transfer.number
    if transfer.last:
        _give_up(store, source)
    store.serve(now_ms)
    return Arrival(store=transfers.identity(now_ms), jobs=jobs, known=tuple(known))


def _arrive(store: MemoryStore, transfer: Transfer, now_ms: int) -> list[str]:
    """Make a batch live; answers the ids that were here before."""
    known = [moved.record.id for moved in transfer.jobs if moved.record.id in store.jobs]
    arrived = [(_create(store, moved), moved) for moved in transfer.jobs if moved.record.id not in store.jobs]
    store.log.arriving = {job.id for job, _ in arrived}
    for job, moved in arrived:
        _tie(store, job, moved, transfer.source, now_ms)
    for job, _ in arrived:
        _place(store, job, now_ms)
    for state in TERMINAL:
        store.ended[state] = deque(sorted(store.ended[state]))
    _revive(store, [moved for _, moved in arrived], now_ms)
    store.log.arriving = ()
    for schedule in transfer.schedules:
        store.schedules[schedule.name] = merge_schedule(store.schedules.get(schedule.name), schedule)
        store.rung.add(DUE_TOPIC)
    return known


def _revive(store: MemoryStore, arrived: Sequence[MovedJob], now_ms: int) -> None:
    """Revive children whose parents were rerun while one of the two was here and the other was not."""
    parents = {moved.record.id for moved in arrived}
    parents |= {parent for moved in arrived for parent, tie in moved.parents.items() if tie is Tie.HELD}
    for job_id in sorted(parents):
        job = store.jobs.get(job_id)
        if job is not None and job.children and job.state not in {State.FAILED, State.CANCELLED}:
            store.revive_children(job, now_ms)


def _create(store: MemoryStore, moved: MovedJob) -> StoredJob:
    record = moved.record
    fields = {name: getattr(record, name) for name in JobRecord.__struct_fields__}
    absent = store.absent.pop(record.id, None)
    job = StoredJob(
        **fields,
        seq=next(store.seq),
        unique_spec=moved.unique,
        children=absent.children if absent is not None and absent.children else NOBODY,
        waiting_on=NOTHING,
    )
    store.jobs[job.id] = job
    return job


def _tie(store: MemoryStore, job: StoredJob, moved: MovedJob, source: str, now_ms: int) -> None:
    """Tie a job to the parents that its store knew; those that are not here are waited for."""
    waits = set()
    for parent, tie in moved.parents.items():
        if parent not in store.jobs and parent not in store.absent:
            store.absent[parent] = Absent(now_ms, {}, source)
        store.adopt(parent, job.id)
        if tie is Tie.HELD:
            job.held_by = job.held_by or parent
        elif tie is Tie.WAITS and job.state is State.WAITING:
            waits.add(parent)
            if parent in store.jobs and store.jobs[parent].state in TERMINAL:
                store.unserved.append((parent, store.jobs[parent].state, iter([job.id])))
    job.waiting_on = waits or NOTHING
    job.waiting_for = len(waits)


def _place(store: MemoryStore, job: StoredJob, now_ms: int) -> None:
    if job.unique_spec is not None and holds_key(job.unique_spec, job.state, job.created_at_ms, now_ms):
        store.take_key((job.queue, job.unique_spec.key), job.id)
    if job.state is State.PENDING:
        job.state = State.SCHEDULED  # until it has its place
        store.make_ready(job, job.due_at_ms)
        store.rung.add(queue_topic(job.queue))
    elif job.state is State.SCHEDULED:
        store.make_due(job, job.due_at_ms)
        store.rung.add(DUE_TOPIC)
    elif job.state in TERMINAL:
        assert job.finished_at_ms is not None
        store.ended[job.state].append((job.finished_at_ms, job.id))
        store.rung.add(job_topic(job.id))
        if job.children:
            store.unserved.append((job.id, job.state, iter(list(job.children))))


def _give_up(store: MemoryStore, source: str) -> None:
    """Count the parents as cancelled that were to come from a source where nothing is left."""
    for job_id in [job_id for job_id, absent in store.absent.items() if absent.source == source]:
        absent = store.absent.pop(job_id)
        store.unserved.append((job_id, State.CANCELLED, iter(list(absent.children))))
