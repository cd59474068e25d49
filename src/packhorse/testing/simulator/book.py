"""The book the oracle keeps: every job as it must be, apart from the store, and what its runs came to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ...backends.base import Keep
from ...backends.memory import MemoryStore
from ...job import LIVE, TERMINAL, TRANSITIONS, JobSpec, State


class Violation(Exception):
    """The promise was broken."""


class Excuses(Protocol):
    """Who knows which faults struck a worker."""

    def for_lapse(self, worker: str, since_ms: int) -> bool:
        """Answer whether anything since then may have kept the worker from renewing its lease."""

    def for_retire(self, worker: str) -> bool:
        """Answer whether a stop of the worker may cost attempts: it did not go in good order."""

    def stopping(self, worker: str) -> bool:
        """Answer whether the worker was told to stop."""


class Run:
    """One claim of one job, and what came of it."""

    __slots__ = (
        "attempt", "ended_ms", "entry", "error", "follow_ups", "number", "refunded", "settled", "started_ms", "token",
        "value", "worker",
    )  # fmt: skip

    def __init__(self, number: int, entry: Entry, token: str, worker: str, attempt: int) -> None:
        self.number = number
        self.entry = entry
        self.token = token
        self.worker = worker
        self.attempt = attempt
        self.started_ms: int | None = None
        self.ended_ms: int | None = None
        self.value: Any = None
        self.error: str | None = None  # the name of what the handler raised
        self.settled = ""  # by what this claim ended: the state, or "lapsed"
        self.refunded = False
        self.follow_ups: list[str] = []


class Entry:
    """One job in the book."""

    __slots__ = (
        "after", "after_failed", "attempt", "cancel_requested", "children", "created_ms", "delay_ms", "due_ms", "ended",
        "ended_ms",
        "held_by", "id", "key", "kind", "label", "life", "max_attempts", "overtaken", "parked_ms", "payload",
        "priority", "queue", "runs", "schedule", "skips", "state", "steps", "token", "turn", "type", "unique",
        "waiting_on", "worker",
    )  # fmt: skip

    def __init__(self, label: str, spec: JobSpec, now_ms: int) -> None:
        self.id = spec.id
        self.label = label
        self.type = spec.type
        self.key = spec.key
        self.kind = (spec.meta or {}).get("kind", "")
        self.queue = spec.queue
        self.priority = spec.priority
        self.unique = spec.unique
        self.max_attempts = spec.max_attempts
        self.payload = spec.payload
        self.created_ms = now_ms
        self.delay_ms = spec.delay_ms
        self.due_ms = now_ms + spec.delay_ms
        self.state = State.WAITING if spec.after else State.SCHEDULED if spec.delay_ms > 0 else State.PENDING
        self.attempt = 0
        self.token: str | None = None
        self.worker: str | None = None
        self.cancel_requested = False
        self.parked_ms: int | None = None
        self.life = 1  # 1 + reruns, by an operator or because of a parent
        self.ended = 0  # terminal states recorded
        self.ended_ms = 0  # when the last of them was
        self.runs: dict[str, Run] = {}  # by token
        self.after: list[str] = []
        self.after_failed = spec.after_failed
        self.waiting_on: dict[str, Entry] = {}  # parents that have not ended
        self.children: dict[str, Entry] = {}
        self.held_by: str | None = None  # the parent because of which it was cancelled
        self.schedule = spec.schedule
        self.skips = False  # of a schedule that must not have two live jobs
        self.steps: dict[str, bytes] = {}
        self.turn = 0  # rises with each time a job of the world becomes pending
        self.overtaken: dict[str, int] = {}  # key → how many of its jobs went first since this one is pending

    @property
    def run(self) -> Run:
        """The claim that holds the job."""
        assert self.token is not None
        return self.runs[self.token]


class Book:
    """All jobs, and the one way to move them. What moved is compared with the store when the verb is over."""

    def __init__(self, store: MemoryStore, now_ms: Callable[[], int], say: Callable[[str, str], None]) -> None:
        self.jobs: dict[str, Entry] = {}
        self.live: dict[str, Entry] = {}
        self.deleted: set[str] = set()
        self.counted: dict[str, int] = {}
        #: Ended, and their children do not know yet.
        self.unserved: list[Entry] = []
        self.store = store
        self.now_ms = now_ms
        self.say = say
        self._touched: dict[str, Entry] = {}
        self._labels = 0
        self._turns = 0

    def count(self, what: str, by: int = 1) -> None:
        """Count what happened, to see what a seed covers."""
        self.counted[what] = self.counted.get(what, 0) + by

    def label(self, job_id: str) -> str:
        """Name a job as people want to read it."""
        entry = self.jobs.get(job_id)
        return entry.label if entry is not None else job_id[-6:]

    def known(self, job_id: str) -> Entry:
        """Answer a job by id. Raises Violation."""
        entry = self.jobs.get(job_id)
        if entry is None:
            raise Violation(f"the store speaks of job {job_id}, which nobody enqueued")
        return entry

    def add(self, spec: JobSpec) -> Entry:
        """Enter a new job. Raises Violation."""
        if spec.id in self.jobs:
            raise Violation(f"{self.label(spec.id)} was created twice")
        self._labels += 1
        entry = self.jobs[spec.id] = Entry(f"j{self._labels}", spec, self.now_ms())
        self.live[spec.id] = self._touched[spec.id] = entry
        self._line_up(entry)
        return entry

    def move(self, entry: Entry, state: State) -> None:
        """Move a job to another state. Raises Violation."""
        if state not in TRANSITIONS[entry.state]:
            raise Violation(f"{entry.label} went from {entry.state} to {state}")
        if entry.cancel_requested and state in {State.PENDING, State.SCHEDULED} and entry.state is State.RUNNING:
            raise Violation(f"{entry.label} is to run again though its cancellation was acknowledged")
        entry.state = state
        self._touched[entry.id] = entry
        if state in TERMINAL:
            entry.ended += 1
            entry.ended_ms = self.now_ms()
            del self.live[entry.id]
            if entry.children:
                self.unserved.append(entry)
        else:
            self.live[entry.id] = entry
            self._line_up(entry)

    def _line_up(self, entry: Entry) -> None:
        if entry.state is State.PENDING:
            self._turns += 1
            entry.turn = self._turns
            entry.overtaken.clear()

    def start_over(self, entry: Entry, delay_ms: int) -> None:
        """Make a job pending, or scheduled where there is a delay."""
        entry.due_ms = self.now_ms() + delay_ms
        self.move(entry, State.SCHEDULED if delay_ms > 0 else State.PENDING)

    def remove(self, entry: Entry) -> None:
        """Take a job out: somebody deleted it."""
        del self.jobs[entry.id]
        self._touched.pop(entry.id, None)
        self.deleted.add(entry.id)
        for parent in self.parents(entry):
            parent.children.pop(entry.id, None)

    def drop(self, keep: Keep) -> int:
        """Take out what a tick has dropped from the store; answers how many jobs that were. Raises Violation."""
        keep_ms = {
            State.SUCCEEDED: keep.succeeded_ms,
            State.FAILED: keep.failed_ms,
            State.CANCELLED: keep.cancelled_ms,
        }
        gone = [entry for entry in self.jobs.values() if entry.id not in self.store.jobs]
        for entry in gone:
            age_ms = self.now_ms() - entry.ended_ms
            if entry.state not in TERMINAL or age_ms < keep_ms[entry.state]:
                raise Violation(f"{entry.label} ({entry.state}) is gone from the store after {age_ms} ms")
            living = next((child.label for child in entry.children.values() if self.is_live(child)), None)
            if living is not None:
                raise Violation(f"{entry.label} was dropped while its child {living} lives")
            self._check_end(entry)
            self.remove(entry)
        return len(gone)

    def _check_end(self, entry: Entry) -> None:
        """Check what must hold of a job whose story is over. Raises Violation."""
        if entry.ended != entry.life:
            raise Violation(f"{entry.label} was ended {entry.ended} times in {entry.life} lives")
        spent = sum(1 for run in entry.runs.values() if run.started_ms is not None and not run.refunded)
        if spent > entry.max_attempts * entry.life:
            raise Violation(f"{entry.label} was started {spent} times in {entry.life} × {entry.max_attempts}")

    def close(self) -> None:
        """Check all jobs when all is over. Raises Violation."""
        for entry in self.jobs.values():
            self.compare(entry)
            self._check_end(entry)
        if len(self.store.jobs) != len(self.jobs):
            odd = sorted(self.store.jobs.keys() ^ self.jobs.keys())
            raise Violation(f"the store has {len(self.store.jobs)} jobs, the book {len(self.jobs)}: {odd[:3]}")

    def compare_touched(self) -> None:
        """Compare what moved with the store. Raises Violation."""
        touched, self._touched = self._touched, {}
        for entry in touched.values():
            self.compare(entry)

    def compare(self, entry: Entry) -> None:
        """Compare one job with the store. Raises Violation."""
        actual = self.store.jobs.get(entry.id)
        if actual is None:
            raise Violation(f"{entry.label} ({entry.state}) is gone from the store")
        if (actual.state, actual.attempt, actual.token) != (entry.state, entry.attempt, entry.token):
            raise Violation(
                f"{entry.label} is {entry.state}, attempt {entry.attempt}, token {entry.token} by the book, but "
                f"{actual.state}, {actual.attempt}, {actual.token} in the store{self._family(entry)}"
            )
        if (actual.steps or {}) != entry.steps:
            raise Violation(f"{entry.label} keeps the steps {actual.steps}, by the book they are {entry.steps}")

    def unfinished(self) -> list[Entry]:
        """Answer the jobs that have not ended."""
        return list(self.live.values())

    def is_live(self, entry: Entry) -> bool:
        """Tell whether a job has not ended and is still there."""
        return entry.state in LIVE and self.jobs.get(entry.id) is entry

    def parents(self, entry: Entry) -> list[Entry]:
        """Answer the parents of a job that are there."""
        return [self.jobs[job_id] for job_id in entry.after if job_id in self.jobs]

    def _family(self, entry: Entry) -> str:
        """Say how the parents of a job stand, if it has any."""
        told = ", ".join(f"{parent.label} {parent.state}" for parent in self.parents(entry))
        return f"; its policy is to {entry.after_failed}, its parents are {told}" if told else ""
