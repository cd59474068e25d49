"""The oracle: a second book of every job, kept from what the store answers and what handlers do.

It knows nothing of how the store works. Each answer of the store must follow from the book, each start of a
handler must be covered by a live claim, and each end that is stored must be what the run of that very token
ended with. What does not fit is a `Violation`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from ...backends.base import Enqueued, Pulse, QueueChange, Rerun, Settlement, Steered, Verdict, landing, lapse_landing
from ...backends.memory import MemoryStore
from ...job import LIVE, TERMINAL, TRANSITIONS, Claimed, JobSpec, State


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
        "attempt", "cancel_requested", "due_ms", "ended", "id", "kind", "label", "life", "max_attempts", "parked_ms",
        "queue", "runs", "state", "token", "unique", "worker",
    )  # fmt: skip

    def __init__(self, label: str, spec: JobSpec, now_ms: int) -> None:
        self.id = spec.id
        self.label = label
        self.kind = (spec.meta or {}).get("kind", "")
        self.queue = spec.queue
        self.unique = spec.unique.key if spec.unique is not None else None
        self.max_attempts = spec.max_attempts
        self.state = State.SCHEDULED if spec.delay_ms > 0 else State.PENDING
        self.due_ms = now_ms + spec.delay_ms
        self.attempt = 0
        self.token: str | None = None
        self.worker: str | None = None
        self.cancel_requested = False
        self.parked_ms: int | None = None
        self.life = 1  # 1 + reruns
        self.ended = 0  # terminal states recorded
        self.runs: dict[str, Run] = {}  # by token

    @property
    def run(self) -> Run:
        """The claim that holds the job."""
        assert self.token is not None
        return self.runs[self.token]


class Ledger:
    """Checks every answer of the store and every start and end of a handler against its own book."""

    def __init__(
        self,
        store: MemoryStore,
        now_ms: Callable[[], int],
        say: Callable[[str, str], None],
        excuses: Excuses,
        park_ms: int,
        concurrency: int,
    ) -> None:
        self.jobs: dict[str, Entry] = {}
        self.lease_end_ms: dict[str, int] = {}
        self.lease_ms: dict[str, int] = {}
        self.paused: set[str] = set()
        self.counted: dict[str, int] = {}
        self._store = store
        self._now_ms = now_ms
        self._say = say
        self._excuses = excuses
        self._park_ms = park_ms
        self._concurrency = concurrency
        self._active: dict[str, set[Run]] = {}  # by worker
        self._runs = 0
        self._wanted: dict[str, Run] = {}  # ids of follow-ups → the run that asked for them

    def count(self, what: str, by: int = 1) -> None:
        """Count what happened, to see what a seed covers."""
        self.counted[what] = self.counted.get(what, 0) + by

    def label(self, job_id: str) -> str:
        """Name a job as people want to read it."""
        entry = self.jobs.get(job_id)
        return entry.label if entry is not None else job_id[-6:]

    # ---- what the store answered -----------------------------------------------------------------------

    def witness(self, who: str, verb: str, args: tuple[Any, ...], answer: Any) -> None:
        """Check one call that was done. Raises Violation."""
        check = getattr(self, f"_after_{verb}", None)
        if check is not None:
            check(who, args, answer)

    def _after_enqueue(self, who: str, args: tuple[Any, ...], answers: list[Enqueued]) -> None:
        for spec, answer in zip(args[0], answers, strict=True):
            if answer.created:
                entry = self._add(spec)
                self._say(who, f"enqueue {entry.label} {entry.kind} → {entry.state}")
                continue
            entry = self._known(answer.id)
            if answer.id == spec.id:
                self._say(who, f"enqueue {entry.label} again")
                continue
            self._say(who, f"enqueue → key {entry.unique} is held by {entry.label}")
            self.count("unique conflict")
            if spec.unique is None or entry.unique != spec.unique.key or entry.state in TERMINAL:
                raise Violation(f"{entry.label} ({entry.state}) was named as holder of {spec.unique}")

    def _add(self, spec: JobSpec) -> Entry:
        if spec.id in self.jobs:
            raise Violation(f"{self.label(spec.id)} was created twice")
        entry = Entry(f"j{len(self.jobs) + 1}", spec, self._now_ms())
        self._check_unique(entry)
        self.jobs[spec.id] = entry
        self._compare(entry)
        return entry

    def _check_unique(self, entry: Entry) -> None:
        if entry.unique is None:
            return
        for other in self.jobs.values():
            same = other.unique == entry.unique and other.queue == entry.queue
            if same and other is not entry and other.state in LIVE:
                raise Violation(f"unique key {entry.unique} is held by {other.label} and {entry.label}")

    def _after_claim(self, who: str, args: tuple[Any, ...], jobs: list[Claimed]) -> None:
        _, limit, lease_ms, worker = args
        self._renew(worker, lease_ms)
        if len(jobs) > limit:
            raise Violation(f"{len(jobs)} jobs were claimed where {limit} were wanted")
        if jobs:
            self._say(who, f"claim → {', '.join(f'{self.label(j.id)}#{j.token}' for j in jobs)}")
        for job in jobs:
            self._claimed(self._known(job.id), job, worker)

    def _claimed(self, entry: Entry, job: Claimed, worker: str) -> None:
        if entry.state is not State.PENDING:
            raise Violation(f"{entry.label} was claimed by {worker} while {entry.state} (held by {entry.worker})")
        if entry.queue in self.paused:
            raise Violation(f"{entry.label} was claimed from {entry.queue}, which is paused")
        if job.token in entry.runs:
            raise Violation(f"{entry.label} was claimed under token {job.token} a second time")
        entry.attempt += 1
        if job.attempt != entry.attempt or entry.attempt > entry.max_attempts:
            raise Violation(f"{entry.label}: attempt {job.attempt} of {entry.max_attempts}, {entry.attempt} expected")
        self._runs += 1
        entry.runs[job.token] = Run(self._runs, entry, job.token, worker, job.attempt)
        entry.token, entry.worker = job.token, worker
        self._move(entry, State.RUNNING)

    def _after_settle(self, who: str, args: tuple[Any, ...], verdicts: list[Verdict]) -> None:
        for item, verdict in zip(args[0], verdicts, strict=True):
            entry = self._known(item.id)
            held = entry.state is State.RUNNING and entry.token == item.token
            self._say(who, f"settle {entry.label}#{item.token} {item.state}{' +1' * item.refund} → {verdict}")
            if verdict is Verdict.STALE:
                self.count("stale settle")
                if held:
                    raise Violation(f"the end of {entry.label}#{item.token} was refused while it held the job")
                continue
            if not held:
                raise Violation(
                    f"{entry.label}#{item.token} was settled as {item.state}, but the job is {entry.state} under "
                    f"token {entry.token}: an old run decided the outcome"
                )
            self._settled(entry, item)

    def _settled(self, entry: Entry, item: Settlement) -> None:
        run = entry.run
        run.settled = item.state
        self._check_end(entry, run, item)
        if item.refund:
            run.refunded = True
            entry.attempt -= 1
        if not item.park:
            entry.parked_ms = None
        elif entry.parked_ms is None:
            entry.parked_ms = self._now_ms()
        entry.token = entry.worker = None
        state = landing(item, entry.cancel_requested)
        if state is not item.state:
            self.count("cancelled instead of run again")
        if state in LIVE:
            state = State.SCHEDULED if item.delay_ms > 0 else State.PENDING
            entry.due_ms = self._now_ms() + item.delay_ms
        self._move(entry, state)
        if state in TERMINAL and self._store.jobs[entry.id].result != item.result:
            raise Violation(f"{entry.label} keeps a result that is not that of token {item.token}")
        for spec in item.follow_ups:
            run.follow_ups.append(spec.id)
            self._add(spec)

    def _check_end(self, entry: Entry, run: Run, item: Settlement) -> None:
        """A settlement must say what the run of that very token ended with."""
        name = f"{entry.label}#{run.token}"
        if item.state is State.SUCCEEDED:
            if run.ended_ms is None or run.error is not None:
                raise Violation(f"{name} succeeded, but its handler did not")
            if item.result is not None and msgspec.json.decode(item.result) != run.value:
                raise Violation(f"{name} is settled with the result of another run")
        elif item.refund and item.state is State.PENDING and run.started_ms is not None and run.error != "Snooze":
            if not self._excuses.stopping(run.worker):
                raise Violation(f"{name} was given back after its handler had started, and nobody was stopping")
            if run.ended_ms is None:
                raise Violation(f"{name} was given back while its handler still runs")
            self.count("released after its start")
        elif item.refund and item.state is State.PENDING:
            self.count("released unstarted")
        elif item.state is State.FAILED and run.started_ms is None:
            since_ms = self._now_ms() if entry.parked_ms is None else entry.parked_ms
            if self._now_ms() - since_ms < self._park_ms - 500:
                raise Violation(
                    f"{name} failed unstarted {self._now_ms() - since_ms} ms after it was first parked; "
                    f"it was to be offered around for {self._park_ms} ms"
                )
        elif item.state is State.FAILED and entry.attempt < entry.max_attempts and run.error not in {"Fail", None}:
            raise Violation(f"{name} failed with attempts left, by {run.error}")
        if item.refund and run.started_ms is not None and run.error == "Snooze":
            self.count("snoozed")

    def _after_heartbeat(self, who: str, args: tuple[Any, ...], pulse: Pulse) -> None:
        worker, lease_ms = args[0].id, args[1]
        self._renew(worker, lease_ms)
        held = {e.id: e.token for e in self.jobs.values() if e.worker == worker and e.state is State.RUNNING}
        if held != pulse.held:
            raise Violation(f"{worker} was told it holds {sorted(pulse.held)}, the book says {sorted(held)}")
        if pulse.cancel != {job_id for job_id in held if self.jobs[job_id].cancel_requested}:
            raise Violation(f"{worker} was told to cancel {sorted(pulse.cancel)}")

    def _renew(self, worker: str, lease_ms: int) -> None:
        self.lease_end_ms[worker] = self._now_ms() + lease_ms
        self.lease_ms[worker] = lease_ms

    def _after_retire(self, who: str, args: tuple[Any, ...], count: int) -> None:
        worker = args[0]
        lost = [e for e in self.jobs.values() if e.worker == worker and e.state is State.RUNNING]
        if count != len(lost):
            raise Violation(f"{worker} was retired with {count} jobs, the book says {len(lost)}")
        self.lease_end_ms[worker] = self._now_ms()
        for entry in lost:
            self._lapse(entry, "retired")

    def _after_tick(self, who: str, args: tuple[Any, ...], answer: object) -> None:
        for entry in self.jobs.values():
            if entry.state in TERMINAL:
                continue
            actual = self._store.jobs.get(entry.id)
            if actual is None:
                raise Violation(f"{entry.label} ({entry.state}) is gone from the store")
            if entry.state is State.SCHEDULED and actual.state is State.PENDING:
                if entry.due_ms > self._now_ms():
                    raise Violation(f"{entry.label} became pending {entry.due_ms - self._now_ms()} ms too early")
                self._move(entry, State.PENDING)
            elif entry.state is State.RUNNING and (actual.token != entry.token or actual.state is not entry.state):
                self._check_lapse(entry)
                self._lapse(entry, "lapsed")
            else:
                self._compare(entry)

    def _check_lapse(self, entry: Entry) -> None:
        worker = entry.worker or ""
        left_ms = self.lease_end_ms.get(worker, 0) - self._now_ms()
        if left_ms > 0:
            raise Violation(f"{entry.label}#{entry.token} lapsed though {worker}'s lease had {left_ms} ms left")
        since_ms = self.lease_end_ms[worker] - self.lease_ms[worker]
        if not self._excuses.for_lapse(worker, since_ms):
            raise Violation(f"{entry.label}#{entry.token} lapsed, but nothing kept {worker} from renewing its lease")

    def _lapse(self, entry: Entry, how: str) -> None:
        run, worker = entry.run, entry.worker
        state = lapse_landing(entry.attempt, entry.max_attempts, entry.cancel_requested)
        if how == "retired" and not entry.kind.startswith("deaf") and not self._excuses.for_retire(worker or ""):
            raise Violation(f"{worker} stopped in good order, and it cost {entry.label}#{entry.token} an attempt")
        self._say("store", f"{how} {entry.label}#{entry.token} of {worker} → {state}")
        self.count(how)
        run.settled = how
        entry.token = entry.worker = None
        self._move(entry, state)

    def _after_cancel(self, who: str, args: tuple[Any, ...], answers: list[Steered]) -> None:
        for job_id, answer in zip(args[0], answers, strict=True):
            entry = self.jobs.get(job_id)
            state = entry.state if entry is not None else None
            wanted = Steered.DONE
            if entry is None:
                wanted = Steered.MISSING
            elif entry.state in TERMINAL:
                wanted = Steered.ENDED
            elif entry.state is State.RUNNING:
                wanted = Steered.REQUESTED
            self._say(who, f"cancel {self.label(job_id)} → {answer}")
            self.count(f"cancel: {answer}")
            if answer is not wanted:
                raise Violation(f"cancelling {self.label(job_id)} ({state}) answered {answer}")
            if entry is not None and answer is not Steered.ENDED:
                entry.cancel_requested = True
            if entry is not None and answer is Steered.DONE:
                self._move(entry, State.CANCELLED)

    def _after_rerun(self, who: str, args: tuple[Any, ...], answers: list[Steered]) -> None:
        for request, answer in zip(args[0], answers, strict=True):
            self._say(who, f"rerun {self.label(request.id)} → {answer}")
            self.count(f"rerun: {answer}")
            if answer is Steered.DONE:
                self._rerun(self._known(request.id), request)

    def _rerun(self, entry: Entry, request: Rerun) -> None:
        if entry.state in LIVE:
            raise Violation(f"{entry.label} was rerun while {entry.state}")
        entry.life += 1
        entry.attempt = 0
        entry.cancel_requested = False
        entry.parked_ms = None
        entry.due_ms = self._now_ms() + request.delay_ms
        self._move(entry, State.SCHEDULED if request.delay_ms > 0 else State.PENDING)
        self._check_unique(entry)

    def _after_queues(self, who: str, args: tuple[Any, ...], answer: dict[str, QueueChange]) -> None:
        for change in args[0]:
            self._say(who, f"{'pause' if change.paused else 'resume'} {change.queue}")
            self.count("pause" if change.paused else "resume")
            (self.paused.add if change.paused else self.paused.discard)(change.queue)
        if {name for name, queue in answer.items() if queue.paused} != self.paused:
            raise Violation(f"paused are {sorted(self.paused)}, the store says {answer}")

    # ---- what handlers do ------------------------------------------------------------------------------

    def start(self, worker: str, job_id: str, token: str | None) -> Run:
        """Note that a handler starts; it must be covered by a live claim under a live lease. Raises Violation."""
        entry = self._known(job_id)
        if token is None:  # a handler that asks for nothing does not know its token: take the first it may be
            mine = [run for run in entry.runs.values() if run.worker == worker and run.started_ms is None]
            token = min(mine, key=lambda run: run.settled != "").token if mine else None
        run = entry.runs.get(token or "")
        name = f"{entry.label}#{token}"
        self._say(worker, f"start {name}")
        if run is None or run.worker != worker:
            raise Violation(f"{worker} started {name}, which it never claimed")
        if run.started_ms is not None:
            raise Violation(f"{worker} started {name} a second time")
        if self._now_ms() >= self.lease_end_ms[worker]:
            late_ms = self._now_ms() - self.lease_end_ms[worker]
            raise Violation(f"{worker} started {name} {late_ms} ms after its lease had lapsed")
        if entry.state is not State.RUNNING or entry.token != token:
            raise Violation(f"{worker} started {name} while the job is {entry.state} under token {entry.token}")
        run.started_ms = self._now_ms()
        self.count("start")
        self.count(f"handler: {entry.kind}")
        if not entry.kind.startswith("deaf"):  # their slots are taken back while they go on
            active = self._active.setdefault(worker, set())
            active.add(run)
            if len(active) > self._concurrency:
                raise Violation(f"{worker} runs {len(active)} handlers at once; {self._concurrency} are allowed")
        return run

    def nth(self, run: Run) -> int:
        """Answer how many times the job's handler has started, this one included."""
        return sum(1 for other in run.entry.runs.values() if other.started_ms is not None)

    def end(self, run: Run, value: Any, error: str | None) -> None:
        """Note that a handler ended with a value, or by an error of that name."""
        run.ended_ms = self._now_ms()
        run.value, run.error = value, error
        self._active.get(run.worker, set()).discard(run)
        self._say(run.worker, f"end {run.entry.label}#{run.token} {error or 'ok'}")

    def wants(self, run: Run, follow_up: str) -> None:
        """Note that a run asked for a follow-up job."""
        self._wanted[follow_up] = run

    # ---- moves -----------------------------------------------------------------------------------------

    def _known(self, job_id: str) -> Entry:
        entry = self.jobs.get(job_id)
        if entry is None:
            raise Violation(f"the store speaks of job {job_id}, which nobody enqueued")
        return entry

    def _move(self, entry: Entry, state: State) -> None:
        if state not in TRANSITIONS[entry.state]:
            raise Violation(f"{entry.label} went from {entry.state} to {state}")
        if entry.cancel_requested and state in {State.PENDING, State.SCHEDULED} and entry.state is State.RUNNING:
            raise Violation(f"{entry.label} is to run again though its cancellation was acknowledged")
        entry.state = state
        if state in TERMINAL:
            entry.ended += 1
        self._compare(entry)

    def _compare(self, entry: Entry) -> None:
        actual = self._store.jobs.get(entry.id)
        if actual is None:
            raise Violation(f"{entry.label} ({entry.state}) is gone from the store")
        if (actual.state, actual.attempt, actual.token) != (entry.state, entry.attempt, entry.token):
            raise Violation(
                f"{entry.label} is {entry.state}, attempt {entry.attempt}, token {entry.token} by the book, but "
                f"{actual.state}, {actual.attempt}, {actual.token} in the store"
            )

    # ---- at the end ------------------------------------------------------------------------------------

    def unfinished(self) -> list[Entry]:
        """Answer the jobs that have not ended."""
        return [entry for entry in self.jobs.values() if entry.state in LIVE]

    def close(self, acknowledged: set[str]) -> None:
        """Check what can be known only when everything has ended. Raises Violation."""
        for job_id in sorted(acknowledged):
            if job_id not in self.jobs or job_id not in self._store.jobs:
                raise Violation(f"an acknowledged enqueue was lost: {self.label(job_id)}")
        for entry in self.jobs.values():
            self._compare(entry)
            if entry.ended != entry.life:
                raise Violation(f"{entry.label} was ended {entry.ended} times in {entry.life} lives")
            spent = sum(1 for run in entry.runs.values() if run.started_ms is not None and not run.refunded)
            if spent > entry.max_attempts * entry.life:
                raise Violation(f"{entry.label} was started {spent} times in {entry.life} × {entry.max_attempts}")
        for follow_up, run in self._wanted.items():
            stored = follow_up in self.jobs
            if stored != (run.settled == State.SUCCEEDED and follow_up in run.follow_ups):
                raise Violation(f"a follow-up of {run.entry.label}#{run.token} ({run.settled}) is stored: {stored}")
