"""The oracle: a second book of every job, kept from what the store answers and what handlers do.

It knows nothing of how the store works. Each answer of the store must follow from the book, each start of a
handler must be covered by a live claim, and each end that is stored must be what the run of that very token
ended with. What does not fit is a `Violation`.

Rules of their own files: `family` (parents), `admission` (unique keys, capacity), `flow` (limits, turns of keys),
`slots` (schedules).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ...backends.base import (
    Firing,
    Lapse,
    Pulse,
    QueueChange,
    Rerun,
    Settlement,
    Steered,
    Ticked,
    Verdict,
    landing,
    lapse_landing,
)
from ...backends.memory import MemoryStore
from ...errors import NotFound, PackhorseError
from ...job import LIVE, LOG_PREFIX, TERMINAL, Claimed, State
from .admission import Admission
from .book import Book, Entry, Excuses, Run, Violation
from .family import Families
from .flow import Flow
from .slots import Slots

__all__ = ["Entry", "Excuses", "Ledger", "Run", "Violation"]


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
        self.book = Book(store, now_ms, say)
        self.paused: set[str] = set()
        self.families = Families(self.book)
        self.admission = Admission(self.book, self.families)
        self.flow = Flow(self.book, self.paused)
        self.slots = Slots(self.book, self.admission.followed)
        self.lease_end_ms: dict[str, int] = {}
        self.lease_ms: dict[str, int] = {}
        self._jobs = self.book.jobs
        self._store = store
        self._now_ms = now_ms
        self._say = say
        self._excuses = excuses
        self._park_ms = park_ms
        self._concurrency = concurrency
        self._active: dict[str, set[Run]] = {}  # by worker
        self._runs = 0
        self._wanted: dict[str, Run] = {}  # ids of follow-ups → the run that asked for them

    # ---- what the store answered -----------------------------------------------------------------------

    def witness(self, who: str, verb: str, args: tuple[Any, ...], answer: Any) -> None:
        """Check one call that was done, or refused with an error. Raises Violation."""
        if isinstance(answer, PackhorseError):
            if verb == "enqueue":
                self.admission.refused(who, args[0], answer)
            elif verb != "schedules" or not isinstance(answer, NotFound):
                raise Violation(f"{verb} was refused: {type(answer).__name__}: {answer}")
            return
        check = getattr(self, f"_after_{verb}", None)
        if check is not None:
            check(who, args, answer)
            self.families.serve()
            self.book.compare_touched()

    def _after_enqueue(self, who: str, args: tuple[Any, ...], answers: Any) -> None:
        self.admission.enqueued(who, args[0], answers)

    def _after_claim(self, who: str, args: tuple[Any, ...], jobs: list[Claimed]) -> None:
        queues, limit, lease_ms, worker = args
        self._renew(worker, lease_ms)
        if len(jobs) > limit:
            raise Violation(f"{len(jobs)} jobs were claimed where {limit} were wanted")
        if jobs:
            self._say(who, f"claim → {', '.join(f'{self.book.label(j.id)}#{j.token}' for j in jobs)}")
        entries = [self.book.known(job.id) for job in jobs]
        for entry, job in zip(entries, jobs, strict=True):
            self._claimed(entry, job, worker)
        self.flow.claimed(entries, queues, limit - len(jobs))

    def _claimed(self, entry: Entry, job: Claimed, worker: str) -> None:
        self.families.check_start(entry)
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
        self.flow.took_turn(entry)
        self.book.move(entry, State.RUNNING)

    def _after_settle(self, who: str, args: tuple[Any, ...], verdicts: list[Verdict]) -> None:
        for item, verdict in zip(args[0], verdicts, strict=True):
            if item.id in self.book.deleted and verdict is Verdict.STALE:
                continue
            entry = self.book.known(item.id)
            held = entry.state is State.RUNNING and entry.token == item.token
            self._say(who, f"settle {entry.label}#{item.token} {item.state}{' +1' * item.refund} → {verdict}")
            if verdict is Verdict.STALE:
                self.book.count("stale settle")
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
            self.book.count("cancelled instead of run again")
        if state in LIVE:
            self.book.start_over(entry, item.delay_ms)
        else:
            self.book.move(entry, state)
        if state in TERMINAL and self._store.jobs[entry.id].result != item.result:
            raise Violation(f"{entry.label} keeps a result that is not that of token {item.token}")
        run.follow_ups.extend(spec.id for spec in item.follow_ups)
        self.admission.followed(item.follow_ups)

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
            self.book.count("released after its start")
        elif item.refund and item.state is State.PENDING:
            self.book.count("released unstarted")
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
            self.book.count("snoozed")

    def _after_heartbeat(self, who: str, args: tuple[Any, ...], pulse: Pulse) -> None:
        worker, lease_ms = args[0].id, args[1]
        self._renew(worker, lease_ms)
        held = {e.id: e for e in self.book.live.values() if e.worker == worker and e.state is State.RUNNING}
        for note in args[2]:
            entry = self._jobs.get(note.id) if note.step is not None else None
            if entry is not None and entry.state is State.RUNNING and entry.token == note.token:
                self._keep_step(who, entry, note.step, note.result)
        if {job_id: entry.token for job_id, entry in held.items()} != pulse.held:
            raise Violation(f"{worker} was told it holds {sorted(pulse.held)}, the book says {sorted(held)}")
        if pulse.cancel != {job_id for job_id, entry in held.items() if entry.cancel_requested}:
            raise Violation(f"{worker} was told to cancel {sorted(pulse.cancel)}")

    def _keep_step(self, who: str, entry: Entry, step: str, result: bytes) -> None:
        kept = entry.steps.get(step)
        if kept is not None and kept != result and not step.startswith(LOG_PREFIX):
            raise Violation(f"the step {step} of {entry.label} was {kept!r}, and is kept again as {result!r}")
        self.book.count("step kept" if kept is None else "step kept again")
        self._say(who, f"step {step} of {entry.label}#{entry.token} is kept")
        entry.steps[step] = result
        self.book.compare(entry)

    def _renew(self, worker: str, lease_ms: int) -> None:
        self.lease_end_ms[worker] = self._now_ms() + lease_ms
        self.lease_ms[worker] = lease_ms

    def _after_retire(self, who: str, args: tuple[Any, ...], lapses: list[Lapse]) -> None:
        worker = args[0]
        lost = [e for e in self.book.live.values() if e.worker == worker and e.state is State.RUNNING]
        self.lease_end_ms[worker] = self._now_ms()
        for entry in lost:
            self._lapse(entry, "retired")
        self._check_named(f"the retirement of {worker}", lapses, lost)

    def _check_named(self, what: str, lapses: Sequence[Lapse], lapsed: Sequence[Entry]) -> None:
        """Check that each lapse was named, with what became of the job, and nothing else."""
        named = sorted((lapse.id, lapse.attempt, lapse.state) for lapse in lapses)
        written = sorted((entry.id, entry.attempt, entry.state) for entry in lapsed)
        if named != written:
            raise Violation(f"{what} named the lapses {named}, the book says {written}")

    def _after_tick(self, who: str, args: tuple[Any, ...], answer: Ticked) -> None:
        lapsed: list[Entry] = []
        for entry in list(self.book.live.values()):
            actual = self._store.jobs.get(entry.id)
            if actual is None:
                raise Violation(f"{entry.label} ({entry.state}) is gone from the store")
            if entry.state is State.SCHEDULED and actual.state is not State.SCHEDULED:
                if entry.due_ms > self._now_ms():
                    raise Violation(f"{entry.label} became pending {entry.due_ms - self._now_ms()} ms too early")
                self.book.move(entry, State.PENDING)
            elif entry.state is State.SCHEDULED and entry.due_ms <= self._now_ms():
                raise Violation(f"{entry.label} was due {self._now_ms() - entry.due_ms} ms ago, and a tick left it")
            elif entry.state is State.RUNNING and (actual.token != entry.token or actual.state is not entry.state):
                self._check_lapse(entry)
                self._lapse(entry, "lapsed")
                lapsed.append(entry)
        self._check_named("a tick", answer.lapses, lapsed)
        self.families.serve()
        for entry in self.book.live.values():
            self.book.compare(entry)
        if answer.dropped:
            dropped = self.book.drop(args[1])
            self.book.count("dropped", dropped)
            if dropped != answer.dropped:
                raise Violation(f"a tick says it dropped {answer.dropped} jobs, and {dropped} are gone")
        self.slots.ticked(answer)

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
        self.book.count(how)
        run.settled = how
        entry.token = entry.worker = None
        self.book.move(entry, state)

    def _after_cancel(self, who: str, args: tuple[Any, ...], answers: list[Steered]) -> None:
        for job_id, answer in zip(args[0], answers, strict=True):
            entry = self._jobs.get(job_id)
            state = entry.state if entry is not None else None
            wanted = Steered.DONE
            if entry is None:
                wanted = Steered.MISSING
            elif entry.state in TERMINAL:
                wanted = Steered.ENDED
            elif entry.state is State.RUNNING:
                wanted = Steered.REQUESTED
            self._say(who, f"cancel {self.book.label(job_id)} → {answer}")
            self.book.count(f"cancel: {answer}")
            if answer is not wanted:
                raise Violation(f"cancelling {self.book.label(job_id)} ({state}) answered {answer}")
            if entry is not None and answer is not Steered.ENDED:
                entry.cancel_requested = True
            if entry is not None and answer is Steered.DONE:
                entry.waiting_on = {}
                self.book.move(entry, State.CANCELLED)

    def _after_rerun(self, who: str, args: tuple[Any, ...], answers: list[Steered]) -> None:
        for request, answer in zip(args[0], answers, strict=True):
            entry = self._jobs.get(request.id)
            self._say(who, f"rerun {self.book.label(request.id)} → {answer}")
            self.book.count(f"rerun: {answer}")
            wanted = Steered.DONE
            if entry is None:
                wanted = Steered.MISSING
            elif entry.state in LIVE:
                wanted = Steered.LIVE
            elif not self.admission.takes_key(entry):
                wanted = Steered.CONFLICT
            if answer is not wanted:
                raise Violation(f"the rerun of {self.book.label(request.id)} answered {answer}; it should be {wanted}")
            if entry is not None and answer is Steered.DONE:
                self._rerun(entry, request)

    def _rerun(self, entry: Entry, request: Rerun) -> None:
        entry.life += 1
        entry.attempt = 0
        entry.cancel_requested = False
        entry.parked_ms = None
        if request.payload is not None and request.payload != entry.payload:
            entry.payload = request.payload
            entry.steps = {}
            self.book.count("rerun with another payload")
        self.families.start_over(entry, request.delay_ms)
        self.families.revive(entry, self.admission.takes_key)

    def _after_delete(self, who: str, args: tuple[Any, ...], answers: list[Steered]) -> None:
        for job_id, answer in zip(args[0], answers, strict=True):
            entry = self._jobs.get(job_id)
            self._say(who, f"delete {self.book.label(job_id)} → {answer}")
            self.book.count(f"delete: {answer}")
            running = entry is not None and entry.state is State.RUNNING
            wanted = Steered.MISSING if entry is None else Steered.LIVE if running else Steered.DONE
            if answer is not wanted:
                raise Violation(f"deleting {self.book.label(job_id)} answered {answer}; it should be {wanted}")
            if entry is not None and answer is Steered.DONE:
                self.families.leave(entry)

    def _after_queues(self, who: str, args: tuple[Any, ...], answer: dict[str, QueueChange]) -> None:
        for change in args[0]:
            if change.paused is not None:
                self._say(who, f"{'pause' if change.paused else 'resume'} {change.queue}")
                self.book.count("pause" if change.paused else "resume")
                (self.paused.add if change.paused else self.paused.discard)(change.queue)
            if change.capacity is not None:
                self._say(who, f"capacity {change.queue} {change.capacity}")
                self.book.count("capacity set")
                self.admission.capacity[change.queue] = change.capacity
        if {name for name, queue in answer.items() if queue.paused} != self.paused:
            raise Violation(f"paused are {sorted(self.paused)}, the store says {answer}")

    def _after_limits(self, who: str, args: tuple[Any, ...], answer: Any) -> None:
        self.flow.changed(who, args[0], answer)

    def _after_schedules(self, who: str, args: tuple[Any, ...], answer: Any) -> None:
        self.slots.changed(who, args[0], answer)

    def _after_fire(self, who: str, args: tuple[list[Firing]], verdicts: list[Verdict]) -> None:
        self.slots.fired(who, args[0], verdicts)

    # ---- what handlers do ------------------------------------------------------------------------------

    def start(self, worker: str, job_id: str, token: str | None) -> Run:
        """Note that a handler starts; it must be covered by a live claim under a live lease. Raises Violation."""
        entry = self.book.known(job_id)
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
        for parent in entry.waiting_on.values():
            raise Violation(f"{worker} started {name} before its parent {parent.label} ended")
        run.started_ms = self._now_ms()
        self.book.count("start")
        self.book.count(f"handler: {entry.kind}")
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

    def begin_step(self, run: Run, step: str) -> None:
        """Note that a handler does a durable step, which must not be kept already. Raises Violation."""
        entry = run.entry
        self._say(run.worker, f"do step {step} of {entry.label}#{run.token}")
        if entry.token == run.token and step in entry.steps:
            raise Violation(f"{entry.label}#{run.token} does the step {step} again, though it is kept")

    def end_step(self, run: Run, step: str, value: Any) -> None:
        """Note what a durable step answered its handler: that must be kept. Raises Violation."""
        entry = run.entry
        if entry.token != run.token:
            return  # an old run: what it is told decides nothing
        kept = entry.steps.get(step)
        if kept is None:
            raise Violation(f"{entry.label}#{run.token} goes on after the step {step}, which is not kept")
        if msgspec.json.decode(kept) != value:
            raise Violation(f"{entry.label}#{run.token} was told {value} for the step {step}, and {kept!r} is kept")
        self.book.count("step answered")

    # ---- at the end ------------------------------------------------------------------------------------

    def close(self, acknowledged: set[str]) -> None:
        """Check what can be known only when everything has ended. Raises Violation."""
        for job_id in sorted(acknowledged - self.book.deleted):
            if job_id not in self._jobs or job_id not in self._store.jobs:
                raise Violation(f"an acknowledged enqueue was lost: {self.book.label(job_id)}")
        self.book.close()
        for follow_up, run in self._wanted.items():
            stored = follow_up in self._jobs or follow_up in self.book.deleted
            if follow_up in self.admission.left_out:
                continue
            if stored != (run.settled == State.SUCCEEDED and follow_up in run.follow_ups):
                raise Violation(f"a follow-up of {run.entry.label}#{run.token} ({run.settled}) is stored: {stored}")
        self.slots.close()
