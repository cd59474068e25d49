"""The jobs of the memory backend, and the moves that its verbs are made of. The caller of a move holds the lock."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from ..clock import SYSTEM_CLOCK, Clock
from ..errors import QueueFull, UniqueConflict, UnknownParent
from ..job import LAPSED, LIVE, TERMINAL, JobError, JobSpec, State, fair_turn, rank
from .base import (
    ABSENT_KEPT_MS,
    BATCH_MAX,
    DUE_TOPIC,
    REPLACEABLE,
    Enqueued,
    Lapse,
    QueueChange,
    Schedule,
    WorkerInfo,
    add_error,
    holds_key,
    lapse_landing,
    parent_failed,
    parents_first,
    queue_topic,
    replaced_by,
)
from .bells import Bells
from .memory_changes import ChangeLog
from .memory_choice import Choice
from .memory_elsewhere import Absent, Transfers
from .memory_lanes import NOBODY, NOTHING, Entry, Limits, QueueLanes, StoredJob
from .rate_limited import RateLimited
from .still import stand_still_for_forks

_BAD = frozenset({State.FAILED, State.CANCELLED})


class MemoryStore:
    """The jobs of one `memory://` URL, shared by all backends (one per event loop) of a process."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        self.bells = Bells()
        self.log = ChangeLog(clock)
        self.jobs: dict[str, StoredJob] = {}
        self.lanes: dict[str, QueueLanes] = {}  # the pending jobs of each queue
        self.limits = Limits()
        self.openings: dict[str, int] = {}  # queue → when a rate that held something back lets it start
        self.rung: set[str] = set()  # topics to ring once the move is made
        self.freed: set[str] = set()  # limited types of which a job stopped running in this move
        self.due: list[Entry] = []  # heap by (due_at_ms, seq)
        self.ended: dict[State, deque[tuple[int, str]]] = {state: deque() for state in TERMINAL}
        self.unique: dict[tuple[str, str], list[str]] = {}  # (queue, key) → jobs that took it, the last one last
        self.workers: dict[str, tuple[WorkerInfo, int]] = {}  # id → info, lease end
        self.held: dict[str, set[str]] = {}  # worker → ids of its running jobs
        self.settings: dict[str, QueueChange] = {}
        self.schedules: dict[str, Schedule] = {}
        self.unserved: deque[tuple[str, State, Iterator[str]]] = deque()  # ended parents whose children do not know yet
        self.absent: dict[str, Absent] = {}  # id → a job that is in another store; it counts as a parent that lives
        self.transfers = Transfers()
        self.seq = itertools.count(1)
        self.tokens = itertools.count(1)
        self.pushes = itertools.count(1)
        stand_still_for_forks(self)

    def locks(self) -> list[threading.Lock]:
        """Answer what a fork waits for: the copy of the child is to be whole."""
        return [self.lock]

    def before_fork(self) -> None:
        """Nothing is let go: the child has a copy of all."""

    def after_fork_in_child(self) -> None:
        """Leave the bells to the parent, whose loops they wake."""
        self.lock = threading.Lock()
        self.bells = Bells()

    # The caller of each of these holds the lock. All but the first are moves.

    def take_rung(self, topics: set[str]) -> set[str]:
        """Answer what a verb rings: `topics` and what its moves left to ring."""
        topics |= self.rung
        self.rung.clear()
        if self.freed:
            topics.update(
                queue_topic(name) for name, lanes in self.lanes.items() if not self.freed.isdisjoint(lanes.limited)
            )
            self.freed.clear()
        return topics

    # ---- places ------------------------------------------------------------------------------------------

    def make_ready(self, job: StoredJob, at_ms: int) -> None:
        """Make a job pending since `at_ms`, at its place in its queue."""
        job.due_at_ms = at_ms
        job.lane = self.limits.lane(job)
        job.lane_of = self.limits.changes
        lanes = self.lanes.get(job.queue)
        if lanes is None:
            lanes = self.lanes[job.queue] = QueueLanes()
        turn_ms = at_ms
        if job.key is not None:
            turn_ms = fair_turn(at_ms, lanes.front_ms, lanes.last_ms(job.key, job.priority))
        job.state = State.PENDING  # not before: it must not line up behind its own place of an earlier attempt
        place = job.place = (rank(turn_ms, job.priority), job.seq, next(self.pushes))
        lanes.enter((*place, job))
        self.log.tell(job.id, State.PENDING)

    def make_due(self, job: StoredJob, due_at_ms: int) -> None:
        """Make a job scheduled for `due_at_ms`."""
        job.state = State.SCHEDULED
        job.due_at_ms = due_at_ms
        place = job.place = (due_at_ms, job.seq, next(self.pushes))
        heapq.heappush(self.due, (*place, job))
        self.log.tell(job.id, State.SCHEDULED)

    def start_over(self, job: StoredJob, delay_ms: int, now_ms: int) -> None:
        """Make a job scheduled, or pending where there is no delay."""
        if delay_ms > 0:
            self.make_due(job, now_ms + delay_ms)
        else:
            self.make_ready(job, now_ms)

    def leave_place(self, job: StoredJob) -> None:
        """Void a job's place, for it is about to leave its state."""
        if job.state is State.PENDING:
            self.lanes[job.queue].leave(job)
        job.place = (0, 0, 0)  # voids its entries in the heaps, so that `next_due_ms` forgets it

    # ---- claims ------------------------------------------------------------------------------------------

    def take(self, queue: str, limit: int, now_ms: int, rate_limited: RateLimited) -> list[StoredJob]:
        """Take the best jobs of a queue that limits let start; what is taken is pending no more."""
        lanes = self.lanes.get(queue)
        if lanes is None or (queue in self.settings and self.settings[queue].paused):
            return []
        if self.limits.limited or lanes.limited:
            return Choice(self, queue, lanes, now_ms, rate_limited).make(limit)
        taken: list[StoredJob] = []
        pop = lanes.open.pop
        while len(taken) < limit and (entry := pop()) is not None:
            job = entry[3]
            if job.key is not None:
                lanes.leave_turn(job, claimed=True)
            job.state = State.RUNNING  # so that a line of its lane does not give it twice
            taken.append(job)
        lanes.count -= len(taken)
        return taken

    def let_go(self, job: StoredJob) -> None:
        """Take a running job from its worker: the token is void from here on."""
        if job.worker is not None:
            ids = self.held.get(job.worker)
            if ids is not None:
                ids.discard(job.id)
        if job.lane is not None:
            self.limits.count(job, -1)
            self.freed.add(job.type)
        job.token = None
        job.worker = None

    # ---- ends --------------------------------------------------------------------------------------------

    def end(self, job: StoredJob, state: State, now_ms: int) -> None:
        """End a job in a terminal `state`. Its children hear of it in `serve`."""
        self._end(job, state, now_ms)
        self.log.tell(job.id, state)

    def _end(self, job: StoredJob, state: State, now_ms: int) -> None:
        self.leave_place(job)
        job.state = state
        job.finished_at_ms = now_ms
        job.waiting_on = NOTHING
        job.waiting_for = 0
        self.ended[state].append((now_ms, job.id))
        if job.children:
            self.unserved.append((job.id, state, iter(list(job.children))))

    def serve(self, now_ms: int, budget: int = BATCH_MAX) -> int:
        """Tell the children of ended jobs, at most `budget` of them; answers how many were told."""
        served = 0
        while self.unserved and served < budget:
            parent, state, children = self.unserved[0]
            job = self.jobs.get(parent)
            if job is not None and job.state in LIVE:
                self.unserved.popleft()  # it was rerun meanwhile: they wait for it again
                continue
            for child_id in itertools.islice(children, budget - served):
                served += 1
                self._parent_ended(self.jobs.get(child_id), parent, state, now_ms)
            if served < budget:
                self.unserved.popleft()
        if self.unserved:
            self.rung.add(DUE_TOPIC)
        return served

    def _parent_ended(self, child: StoredJob | None, parent: str, state: State, now_ms: int) -> None:
        if child is None or child.state is not State.WAITING or parent not in child.waiting_on:
            return
        child.waiting_on.discard(parent)
        child.waiting_for = len(child.waiting_on)
        if state in _BAD and child.after_failed == "cancel":
            self._cancel_for_parent(child, parent, state, now_ms)
        elif not child.waiting_on:
            self._free(child, now_ms)

    def _free(self, child: StoredJob, now_ms: int) -> None:
        """Start a child whose parents have all ended; its delay counts from now."""
        delay_ms = child.due_at_ms - child.created_at_ms
        self.start_over(child, delay_ms, now_ms)
        self.rung.add(queue_topic(child.queue) if delay_ms <= 0 else DUE_TOPIC)

    def _cancel_for_parent(self, child: StoredJob, parent: str, state: State, now_ms: int) -> None:
        child.errors = add_error(child.errors, parent_failed(parent, state, now_ms))
        child.held_by = parent
        self.rung.add(f"job:{child.id}")
        self.end(child, State.CANCELLED, now_ms)

    def wait_for_parents(self, job: StoredJob) -> bool:
        """Make a job wait for those of its parents that have not ended; answers whether there are any."""
        job.waiting_on = {parent for parent in job.after if self._lives(parent)}
        job.waiting_for = len(job.waiting_on)
        for parent in job.waiting_on:
            self.adopt(parent, job.id)  # it may have been deleted and enqueued anew
        if job.waiting_on:
            job.state = State.WAITING
            self.log.tell(job.id, State.WAITING)
        return bool(job.waiting_on)

    def _lives(self, job_id: str) -> bool:
        return job_id in self.absent or (job_id in self.jobs and self.jobs[job_id].state in LIVE)

    def adopt(self, parent: str, child: str) -> None:
        """Note a child with its parent, if that is here or known to be in another store."""
        owner = self.jobs.get(parent) or self.absent.get(parent)
        if owner is None:
            return
        if owner.children is NOBODY:
            owner.children = {}
        owner.children[child] = None

    def revive_children(self, parent: StoredJob, now_ms: int) -> None:
        """Let the children that were cancelled because of a parent wait for it again, and theirs in turn."""
        revived = deque([parent])
        while revived:
            for child_id in revived.popleft().children:
                child = self.jobs.get(child_id)
                if child is None or child.state is not State.CANCELLED or child.held_by not in self.jobs:
                    continue
                parents = [self.jobs[name] for name in child.after if name in self.jobs]
                if any(other.state in _BAD for other in parents):
                    continue
                if child.unique is not None and self.holder((child.queue, child.unique), now_ms) not in {
                    None,
                    child.id,
                }:
                    continue
                if child.unique is not None:
                    self.take_key((child.queue, child.unique), child.id)
                child.held_by = None
                child.finished_at_ms = None
                if not self.wait_for_parents(child):  # where the parent was rerun in another store, and ended there
                    self._free(child, now_ms)
                revived.append(child)

    def forget(self, job: StoredJob, now_ms: int) -> None:
        """Remove a job that does not run. For its children it counts as cancelled if it had not ended."""
        if job.state in LIVE:
            self._end(job, State.CANCELLED, now_ms)
        job.place = (0, 0, 0)
        for parent in job.after:
            if parent in self.jobs:
                self.jobs[parent].children.pop(job.id, None)
        del self.jobs[job.id]
        self.log.tell(job.id, None)

    def has_live_child(self, job: StoredJob | Absent) -> bool:
        """Tell whether a job must be kept because a child of it has not ended."""
        return any(self._lives(child) for child in job.children)

    def forget_absent(self, now_ms: int) -> None:
        """Forget the ids of jobs that are in other stores for long, unless a child of one lives."""
        old = [job_id for job_id, one in self.absent.items() if one.at_ms + ABSENT_KEPT_MS <= now_ms]
        for job_id in old:
            if not self.has_live_child(self.absent[job_id]):
                del self.absent[job_id]

    def lapse(self, job: StoredJob, reason: str, now_ms: int) -> Lapse:
        """Take a running job from a lost worker: it starts over, or ends with its last attempt."""
        job.errors = add_error(job.errors, JobError(attempt=job.attempt, at_ms=now_ms, kind=LAPSED, message=reason))
        self.let_go(job)
        state = lapse_landing(job.attempt, job.max_attempts, job.cancel_requested)
        if state is State.PENDING:
            self.make_ready(job, now_ms)
        else:
            self.end(job, state, now_ms)
        return Lapse(
            id=job.id, queue=job.queue, type=job.type, attempt=job.attempt, max_attempts=job.max_attempts, state=state
        )

    # ---- new jobs ----------------------------------------------------------------------------------------

    def holder(self, slot: tuple[str, str], now_ms: int) -> str | None:
        """Answer which job holds a unique key: the last that took it, or an earlier one that came back to a state."""
        for job_id in reversed(self.unique.get(slot, ())):
            job = self.jobs.get(job_id)
            if job is None or job.unique_spec is None or (job.queue, job.unique) != slot:
                continue
            if holds_key(job.unique_spec, job.state, job.created_at_ms, now_ms):
                return job_id
        return None

    def take_key(self, slot: tuple[str, str], job_id: str) -> None:
        """Note who took a key. Those that ended are forgotten: they come back by a rerun only, which takes it anew."""
        others = [other for other in self.unique.get(slot, ()) if other in self.jobs and other != job_id]
        self.unique[slot] = [other for other in others if self.jobs[other].state in LIVE] + [job_id]

    def enqueue(self, specs: Sequence[JobSpec], now_ms: int) -> list[Enqueued]:
        """Store the jobs of a call, all of them or, with an error, none."""
        order = parents_first(specs)
        ordered = specs if order is None else [specs[number] for number in order]
        self.refuse(ordered, now_ms)
        answers = self._add_all(ordered, now_ms)
        if order is None:
            return answers
        found = dict(zip(order, answers, strict=True))
        return [found[number] for number in range(len(specs))]

    def refuse(self, specs: Sequence[JobSpec], now_ms: int) -> None:
        """Raise what refuses a call, before anything of it is stored."""
        is_bounded = any(change.capacity for change in self.settings.values())
        if not is_bounded and not any(spec.after or spec.unique is not None for spec in specs):
            return
        ids = {spec.id for spec in specs}
        taken: dict[tuple[str, str], JobSpec | None] = {}  # keys that jobs of this call take; None: and do not hold
        room: dict[str, int] = {}
        seen: set[str] = set()
        for spec in specs:
            if spec.id in self.jobs or spec.id in seen or spec.id in self.absent:
                continue
            for parent in spec.after:
                if parent not in ids and parent not in self.jobs and parent not in self.absent:
                    raise UnknownParent(parent)
            seen.add(spec.id)
            if spec.unique is not None:
                slot = (spec.queue, spec.unique.key)
                if not self._gets_key(spec, slot, taken, room, now_ms):
                    continue
                taken[slot] = spec if holds_key(spec.unique, _first_state(spec), now_ms, now_ms) else None
            if self._takes_room(spec):
                room[spec.queue] = room.get(spec.queue, 0) + 1
        for queue, count in room.items():
            capacity = self.settings[queue].capacity if queue in self.settings else None
            pending = self.lanes[queue].count if queue in self.lanes else 0
            if capacity and count > 0 and pending + count > capacity:
                raise QueueFull(queue, capacity)

    def _gets_key(
        self,
        spec: JobSpec,
        slot: tuple[str, str],
        taken: dict[tuple[str, str], JobSpec | None],
        room: dict[str, int],
        now_ms: int,
    ) -> bool:
        """Tell whether a spec of a call gets its unique key; raises UniqueConflict where it is to."""
        assert spec.unique is not None
        earlier = taken.get(slot)
        holder = None if slot in taken else self.holder(slot, now_ms)
        if earlier is None and holder is None:
            return True
        if spec.unique.on_conflict == "refuse":
            raise UniqueConflict(spec.unique.key, earlier.id if earlier is not None else holder or "")
        if spec.unique.on_conflict != "replace":
            return False
        if earlier is not None:
            room[spec.queue] = room.get(spec.queue, 0) - self._takes_room(earlier)
            return True
        held_by = self.jobs[holder or ""]
        if held_by.state is State.PENDING:
            room[spec.queue] = room.get(spec.queue, 0) - 1
        return held_by.state in REPLACEABLE

    def _takes_room(self, spec: JobSpec) -> bool:
        """Tell whether a new job is pending at once: those that wait for an instant or for parents are let in."""
        states = [self.jobs[parent].state if parent in self.jobs else State.WAITING for parent in spec.after]
        if spec.after_failed == "cancel":
            return spec.delay_ms <= 0 and all(state is State.SUCCEEDED for state in states)
        return spec.delay_ms <= 0 and all(state in TERMINAL for state in states)

    def add(self, specs: Sequence[JobSpec], now_ms: int) -> None:
        """Store what follows from a move: who cannot be stored is left out."""
        order = parents_first(specs)
        self._add_all(specs if order is None else [specs[number] for number in order], now_ms)

    def _add_all(self, specs: Sequence[JobSpec], now_ms: int) -> list[Enqueued]:
        """Store jobs unless their id or unique key is there already. `after` may name one whose key was held."""
        answers: list[Enqueued] = []
        instead: dict[str, str] = {}
        children: list[tuple[StoredJob, JobSpec]] = []
        for spec in specs:
            answer = self._add(spec, now_ms)
            answers.append(answer)
            if answer.id != spec.id:
                instead[spec.id] = answer.id
            if spec.after and answer.created:
                children.append((self.jobs[spec.id], spec))
        for job, spec in children:
            job.after = tuple(dict.fromkeys(instead.get(parent, parent) for parent in spec.after))
            if job.state is State.WAITING:  # else it was replaced by another of this call
                self._join_family(job, spec, now_ms)
        return answers

    def _add(self, spec: JobSpec, now_ms: int) -> Enqueued:
        if spec.id in self.jobs or spec.id in self.absent:
            return Enqueued(spec.id, False)
        if spec.unique is not None:
            slot = (spec.queue, spec.unique.key)
            holder = self.holder(slot, now_ms)
            if holder is not None:
                job = self.jobs[holder]
                if spec.unique.on_conflict != "replace" or job.state not in REPLACEABLE:
                    return Enqueued(holder, False)
                job.errors = add_error(job.errors, replaced_by(spec.id, now_ms))
                self.end(job, State.CANCELLED, now_ms)
                self.rung.add(f"job:{job.id}")
            self.take_key(slot, spec.id)
        job = StoredJob(
            seq=next(self.seq),
            children=NOBODY,
            waiting_on=NOTHING,
            id=spec.id,
            type=spec.type,
            queue=spec.queue,
            state=State.WAITING,
            payload=spec.payload,
            priority=spec.priority,
            attempt=0,
            max_attempts=spec.max_attempts,
            timeout_ms=spec.timeout_ms,
            created_at_ms=now_ms,
            due_at_ms=now_ms + max(0, spec.delay_ms),
            key=spec.key,
            tags=spec.tags,
            meta=copied(spec.meta),
            unique=spec.unique.key if spec.unique is not None else None,
            unique_spec=spec.unique,
            after_failed=spec.after_failed,
            workflow=spec.workflow,
            node=spec.node,
            schedule=spec.schedule,
            slot_at_ms=spec.slot_at_ms,
        )
        self.jobs[spec.id] = job
        if not spec.after:
            self.start_over(job, spec.delay_ms, now_ms)
        return Enqueued(spec.id, True)

    def _join_family(self, job: StoredJob, spec: JobSpec, now_ms: int) -> None:
        """Let a new job wait for its parents, or end because of one."""
        for name in job.after:
            self.adopt(name, job.id)
        for name in job.after:
            parent = self.jobs.get(name)
            if parent is None and name in self.absent:
                continue
            state = parent.state if parent is not None else State.FAILED
            if state in _BAD and job.after_failed == "cancel":
                self._cancel_for_parent(job, name, state, now_ms)
                return
        if not self.wait_for_parents(job):
            self.start_over(job, spec.delay_ms, now_ms)


def _first_state(spec: JobSpec) -> State:
    """Answer the state of a new job; one with parents may also be freed or end at once."""
    return State.WAITING if spec.after else State.SCHEDULED if spec.delay_ms > 0 else State.PENDING


def copied(meta: dict[str, str] | None) -> dict[str, str] | None:
    """The one value of a job that can change: who holds it must not change what is stored (FAILURES A)."""
    return None if meta is None else dict(meta)
