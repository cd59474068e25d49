"""The pending jobs of the memory backend: in order, and apart where a limit can hold them back.

The caller of everything here holds the store's lock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

from ..job import AGEING_MS, JobRecord, State, Unique
from ..limits import lane_of, merge_limit, opens_at_ms, take, tokens
from .messages import EACH_KEY, Limit

#: Shared by all jobs without children, or without parents to wait for. Nobody adds to them.
NOBODY: dict[str, None] = {}
NOTHING: set[str] = set()


class StoredJob(JobRecord, kw_only=True):
    """A job as this store keeps it."""

    seq: int
    token: str | None = None
    unique_spec: Unique | None = None
    place: tuple[int, int, int] = (0, 0, 0)  # its entry in a lane or the due heap; any other entry is out of date
    lane: str | None = None  # of its type, where that is limited; see packhorse.limits.lane_of
    lane_of: int = 0  # the number of changes of limits when it got that lane
    children: dict[str, None]  # `NOBODY` for most: a dict and a set for each job would be a third of its memory
    waiting_on: set[str]
    held_by: str | None = None  # the parent it was cancelled because of: revived with it


#: (rank or instant, seq, number of the push, job): the push makes every entry different.
Entry = tuple[int, int, int, StoredJob]


class Ready:
    """Pending jobs, best rank first.

    Jobs of one priority mostly come in order: they wait in a line each, and a claim costs the same however many wait.
    Only what comes out of order (a retry, a clock set back, a turn among keys) goes to a heap.
    """

    def __init__(self) -> None:
        self._lines: dict[int, deque[Entry]] = {}
        self._late: list[Entry] = []

    def push(self, entry: Entry) -> None:
        """Add a job."""
        priority = entry[3].priority
        line = self._lines.get(priority)
        if line is None:
            line = self._lines[priority] = deque()
        if not line or line[-1] < entry:
            line.append(entry)
        else:
            heapq.heappush(self._late, entry)

    def peek(self) -> Entry | None:
        """Answer the best entry that is up to date, without taking it."""
        late = self._late
        while late and not _valid(late[0]):
            heapq.heappop(late)
        best: Entry | None = late[0] if late else None
        for line in self._lines.values():
            while line and not _valid(line[0]):
                line.popleft()
            if line and (best is None or line[0] < best):
                best = line[0]
        return best

    def pop(self, before: tuple[int, int] | None = None) -> Entry | None:
        """Take the best entry that is up to date; None when there is none, or none of a rank and seq `before` that."""
        while True:
            best: Entry | None = self._late[0] if self._late else None
            source: deque[Entry] | None = None
            for line in self._lines.values():
                if line and (best is None or line[0] < best):
                    best, source = line[0], line
            if best is None or (before is not None and best[:2] > before):
                return None
            if source is not None:
                source.popleft()
            else:
                heapq.heappop(self._late)
            job = best[3]
            if job.state is State.PENDING and job.place[2] == best[2]:
                return best


def _valid(entry: Entry) -> bool:
    job = entry[3]
    return job.state is State.PENDING and job.place[2] == entry[2]


class TypeLanes:
    """The lanes of one limited type in one queue; with limits by key there is one for each key."""

    def __init__(self) -> None:
        self.lanes: dict[str, Ready] = {}
        self._heads: list[tuple[int, int, str]] = []  # heap of (rank, seq, lane)
        self._shown: dict[str, tuple[int, int]] = {}  # lane → its entry in there; any other is out of date
        self._out: set[str] = set()  # lanes that are not to be shown now
        self._asleep: list[tuple[int, str]] = []  # (when its rate lets a job start, lane)

    def push(self, entry: Entry) -> None:
        """Add a job to its lane."""
        lane = entry[3].lane
        assert lane is not None
        ready = self.lanes.get(lane)
        if ready is None:
            ready = self.lanes[lane] = Ready()
        ready.push(entry)
        shown = self._shown.get(lane)
        if lane not in self._out and (shown is None or entry[:2] < shown):
            self._shown[lane] = (entry[0], entry[1])
            heapq.heappush(self._heads, (entry[0], entry[1], lane))

    def wake(self, now_ms: int) -> None:
        """Look again at the lanes whose rate lets a job start."""
        while self._asleep and self._asleep[0][0] <= now_ms:
            self.show(heapq.heappop(self._asleep)[1])

    def wake_all(self) -> None:
        """Look again at all lanes: the limits changed."""
        self._asleep.clear()
        self._heads.clear()
        self._shown.clear()
        for lane in list(self.lanes):
            self.show(lane)

    def show(self, lane: str) -> None:
        """Line a lane up by its best job."""
        self._out.discard(lane)
        head = self.lanes[lane].peek() if lane in self.lanes else None
        if head is None:
            self.lanes.pop(lane, None)
            self._shown.pop(lane, None)
        elif self._shown.get(lane) != head[:2]:
            self._shown[lane] = (head[0], head[1])
            heapq.heappush(self._heads, (head[0], head[1], lane))

    def leave_out(self, lane: str, until_ms: int | None = None) -> None:
        """Do not look at a lane until then, or until it is shown again."""
        self._out.add(lane)
        self._shown.pop(lane, None)
        if until_ms is not None:
            heapq.heappush(self._asleep, (until_ms, lane))

    def best(self) -> tuple[int, int, str] | None:
        """Answer rank, seq and lane of the best job; None when there is none that may be looked at."""
        while self._heads:
            rank, seq, lane = self._heads[0]
            if self._shown.get(lane) == (rank, seq):
                head = self.lanes[lane].peek()
                if head is not None and (head[0], head[1]) == (rank, seq):
                    return self._heads[0]
                self.show(lane)
            if self._heads[0] == (rank, seq, lane):
                heapq.heappop(self._heads)
        return None


class QueueLanes:
    """The pending jobs of one queue."""

    def __init__(self) -> None:
        self.open = Ready()
        self.limited: dict[str, TypeLanes] = {}
        self.count = 0
        self.keyed = 0
        self._woken_at_ms = 0
        self.front_ms: int | None = None  # turn of the last keyed job claimed; None while no keyed job is pending
        self._turns: dict[
            tuple[str, int], list[Entry]
        ] = {}  # (key, priority) → heap of the turns of pending jobs, negated

    def push(self, entry: Entry) -> None:
        """Add a job that became pending."""
        job = entry[3]
        if job.lane is None:
            self.open.push(entry)
            return
        lanes = self.limited.get(job.type)
        if lanes is None:
            lanes = self.limited[job.type] = TypeLanes()
        lanes.push(entry)

    def wake(self, now_ms: int) -> None:
        """Look again at the lanes whose rate lets a job start; at all of them if the clock was set back."""
        for of_type in self.limited.values():
            if now_ms < self._woken_at_ms:
                of_type.wake_all()
            of_type.wake(now_ms)
        self._woken_at_ms = now_ms

    def enter(self, entry: Entry) -> None:
        """Count a job that became pending, and push it."""
        self.count += 1
        job = entry[3]
        if job.key is not None:
            turn_ms = entry[0] - job.priority * AGEING_MS
            if not self.keyed:
                self.front_ms = turn_ms
            self.keyed += 1
            heapq.heappush(self._turns.setdefault((job.key, job.priority), []), (-turn_ms, entry[1], entry[2], job))
        self.push(entry)

    def leave(self, job: StoredJob, *, claimed: bool = False) -> None:
        """Count a job that is pending no more."""
        self.count -= 1
        if job.key is not None:
            self.leave_turn(job, claimed=claimed)

    def leave_turn(self, job: StoredJob, *, claimed: bool) -> None:
        """Count a keyed job that is pending no more."""
        self.keyed -= 1
        if not self.keyed:
            self.front_ms = None
            self._turns.clear()
        elif claimed and self.front_ms is not None:
            self.front_ms = max(self.front_ms, job.place[0] - job.priority * AGEING_MS)

    def last_ms(self, key: str, priority: int) -> int | None:
        """Answer the turn of the last pending job of a key and priority."""
        turns = self._turns.get((key, priority))
        while turns:
            if _valid(turns[0]):
                return -turns[0][0]
            heapq.heappop(turns)
        self._turns.pop((key, priority), None)
        return None


class Gate:
    """What one limit lets start in one claim."""

    __slots__ = ("limit", "name", "room", "used")

    def __init__(self, limit: Limit, name: tuple[str, str | None], room: int) -> None:
        self.limit = limit
        self.name = name
        self.room = room
        self.used = 0


class Limits:
    """The limits of a store, and how much of each is used."""

    def __init__(self) -> None:
        self.by_name: dict[tuple[str, str | None], Limit] = {}
        self.limited: dict[str, bool] = {}  # type → whether some limits are by key
        self.changes = 0
        self._full_at_ns: dict[tuple[str, str | None], int] = {}
        self.running: dict[str | tuple[str, str | None], int] = {}  # jobs with a lane, by type and by type and key

    def change(self, changes: Iterable[Limit]) -> None:
        """Take changes over."""
        for change in changes:
            name = (change.type, change.key)
            merged = merge_limit(self.by_name.get(name), change)
            if merged is None:
                if self.by_name.pop(name, None) is not None:  # else the bucket is that of the limit for each key
                    self._full_at_ns.pop(name, None)
            else:
                self.by_name[name] = merged
        self.changes += 1
        self.limited = {}
        for job_type, key in self.by_name:
            self.limited[job_type] = self.limited.get(job_type, False) or key is not None

    def lane(self, job: StoredJob) -> str | None:
        """Answer the lane a job belongs into."""
        return lane_of(job.type, job.key, self.limited) if self.limited else None

    def count(self, job: StoredJob, change: int) -> None:
        """Count a job with a lane that starts (1) or leaves its worker (-1)."""
        running = self.running
        running[job.type] = running.get(job.type, 0) + change
        if job.key is not None:
            name = (job.type, job.key)
            left = running.get(name, 0) + change
            if left:
                running[name] = left
            else:
                running.pop(name, None)

    def running_now(self, name: tuple[str, str | None]) -> int:
        """Answer how many jobs of a type, or of a type and key, run."""
        return self.running.get(name if name[1] is not None else name[0], 0)

    def of(self, job_type: str, key: str | None) -> list[tuple[Limit, tuple[str, str | None]]]:
        """Answer the limits that a job must pass, each with the name its use is kept under."""
        found: list[tuple[Limit, tuple[str, str | None]]] = []
        whole = self.by_name.get((job_type, None))
        if whole is not None:
            found.append((whole, (job_type, None)))
        if key is not None:
            for name in ((job_type, key), (job_type, EACH_KEY)):
                limit = self.by_name.get(name)
                if limit is not None:
                    found.append((limit, (job_type, key)))
                    break  # a limit for this very key goes before the one for each
        return found

    def free(self, limit: Limit, name: tuple[str, str | None], now_ms: int) -> tuple[int, int | None]:
        """Answer how many jobs one limit lets start now, and when it opens if none (None: when a running one ends)."""
        room = limit.concurrency - self.running_now(name) if limit.concurrency is not None else 1 << 30
        if room <= 0:
            return 0, None
        if limit.rate is None:
            return room, now_ms
        full_at_ns = self._full_at_ns.get(name, 0)
        return min(room, tokens(limit, full_at_ns, now_ms)), opens_at_ms(limit, full_at_ns, now_ms)

    def opens(self, gate: Gate, now_ms: int) -> int | None:
        """Answer when the rate of a gate lets one more start; None where no rate holds it back."""
        if gate.limit.rate is None:
            return None
        at_ms = opens_at_ms(gate.limit, self._bucket(gate, now_ms), now_ms)
        return at_ms if at_ms > now_ms else None

    def use(self, gate: Gate, now_ms: int) -> None:
        """Take what the starts of a claim cost."""
        if gate.limit.rate is not None and gate.used:
            self._full_at_ns[gate.name] = self._bucket(gate, now_ms)

    def _bucket(self, gate: Gate, now_ms: int) -> int:
        full_at_ns = self._full_at_ns.get(gate.name, 0)
        return take(gate.limit, full_at_ns, now_ms, gate.used) if gate.used else full_at_ns

    def forget_full(self, now_ms: int) -> None:
        """Drop the buckets that are full again: they are as new ones."""
        full = [name for name, full_at_ns in self._full_at_ns.items() if full_at_ns <= now_ms * 1_000_000]
        for name in full:
            del self._full_at_ns[name]
