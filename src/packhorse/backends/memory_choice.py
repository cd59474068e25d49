"""Claims of the memory backend from a queue where limits may hold jobs back. The caller holds the store's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..job import State
from .base import DUE_TOPIC, Limit
from .memory_lanes import Gate, QueueLanes, StoredJob, TypeLanes

if TYPE_CHECKING:
    from .memory_store import MemoryStore
    from .rate_limited import RateLimited


class Choice:
    """The jobs that one claim takes from one queue."""

    def __init__(
        self, store: MemoryStore, queue: str, lanes: QueueLanes, now_ms: int, rate_limited: RateLimited
    ) -> None:
        self._store = store
        self._limits = store.limits
        self._queue = queue
        self._lanes = lanes
        self._now_ms = now_ms
        self._rate_limited = rate_limited
        self._gates: dict[tuple[str, str | None], Gate] = {}
        self._shut: set[str] = set()  # types that may start nothing more
        self._aside: list[tuple[TypeLanes, str]] = []  # lanes that may start nothing more because of jobs that run

    def make(self, wanted: int) -> list[StoredJob]:
        """Take up to `wanted` jobs, best first, and note what their starts use up."""
        lanes = self._lanes
        lanes.wake(self._now_ms)
        taken: list[StoredJob] = []
        while len(taken) < wanted and self._take_run(taken, wanted):
            pass
        for of_type, lane in self._aside:
            of_type.show(lane)
        for job_type in [name for name, of_type in lanes.limited.items() if not of_type.lanes]:
            del lanes.limited[job_type]
        for gate in self._gates.values():
            opens_at_ms = self._limits.opens(gate, self._now_ms) if gate.room <= 0 else None
            if opens_at_ms is not None:
                self._opens(opens_at_ms)
            self._limits.use(gate, self._now_ms)
        return taken

    def _opens(self, at_ms: int) -> None:
        openings = self._store.openings
        known_ms = openings.get(self._queue)
        if known_ms is None or at_ms < known_ms or known_ms <= self._now_ms:
            openings[self._queue] = at_ms
            self._store.rung.add(DUE_TOPIC)

    def _take_run(self, taken: list[StoredJob], wanted: int) -> bool:
        """Take from the lane with the best job for as long as no other has a better one; False: there is none."""
        best: tuple[int, int, str] | None = None
        second: tuple[int, int] | None = None
        source: TypeLanes | None = None
        first = self._lanes.open.peek()
        if first is not None:
            best = (first[0], first[1], "")
        for job_type, of_type in self._lanes.limited.items():
            head = of_type.best() if job_type not in self._shut else None
            if head is None:
                continue
            if best is None or head < best:
                if best is not None:
                    second = best[:2]
                best, source = head, of_type
            elif second is None or head[:2] < second:
                second = head[:2]
        if best is None:
            return False
        if source is None:
            self._take_open(taken, wanted, second)
        elif len(source.lanes) > 1:
            self._take_lane(source, best[2], taken, len(taken) + 1, second)  # its other lanes are not compared above
        else:
            self._take_lane(source, best[2], taken, wanted, second)
        return True

    def _take_open(self, taken: list[StoredJob], wanted: int, before: tuple[int, int] | None) -> None:
        changes = self._limits.changes
        while len(taken) < wanted and (entry := self._lanes.open.pop(before)) is not None:
            job = entry[3]
            if job.lane_of != changes:
                job.lane, job.lane_of = self._limits.lane(job), changes
                if job.lane is not None:  # the limits of its type were set since it came here
                    self._lanes.push(entry)
                    return
            self._start(job, taken)

    def _take_lane(
        self, source: TypeLanes, lane: str, taken: list[StoredJob], wanted: int, before: tuple[int, int] | None
    ) -> None:
        changes = self._limits.changes
        ready = source.lanes[lane]
        gates: list[Gate] | None = None
        while len(taken) < wanted:
            entry = ready.pop(before)
            if entry is None:
                break
            job = entry[3]
            if job.lane_of != changes:
                job.lane_of = changes
                wanted_lane = self._limits.lane(job)
                if wanted_lane != lane:  # the limits of its type were changed since it came here
                    job.lane = wanted_lane
                    self._lanes.push(entry)
                    break
            if gates is None:
                gates = [self._gate(limit, name) for limit, name in self._limits.of(job.type, job.key)]
            shut = next((gate for gate in gates if gate.room <= 0), None)
            if shut is not None:
                ready.push(entry)
                self._close(source, lane, job.type, shut)
                return
            for gate in gates:
                gate.room -= 1
                gate.used += 1
            self._limits.count(job, 1)
            self._start(job, taken)
        source.show(lane)

    def _gate(self, limit: Limit, name: tuple[str, str | None]) -> Gate:
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = Gate(limit, name, self._limits.free(limit, name, self._now_ms)[0])
        return gate

    def _close(self, source: TypeLanes, lane: str, job_type: str, gate: Gate) -> None:
        """Look at a type no more in this claim, or at a lane until its limit opens."""
        opens_at_ms = self._limits.opens(gate, self._now_ms)
        if gate.name[1] is None:
            if opens_at_ms is not None:
                self._rate_limited.note_type(job_type, opens_at_ms)
            self._shut.add(job_type)
            source.show(lane)
            return
        source.leave_out(lane, opens_at_ms)
        if opens_at_ms is None:
            self._aside.append((source, lane))
        else:
            self._rate_limited.note_lane(job_type)

    def _start(self, job: StoredJob, taken: list[StoredJob]) -> None:
        self._lanes.leave(job, claimed=True)
        job.state = State.RUNNING
        taken.append(job)
