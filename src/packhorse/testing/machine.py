"""Any backend against the model, in any order of calls that Hypothesis can think of.

    TestMine = machine_for(lambda: Harness(lambda: MyBackend("…", clock), clock))

Needs `hypothesis`, which packhorse itself does not, and a backend that takes a ManualClock. What the backend has no
capability for is not asked.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from ..backends.base import BATCH_MAX, Note, Query, Rerun, Settlement, WorkerInfo
from ..job import LIVE, TERMINAL, State, Unique
from .conformance import HarnessFactory
from .machine_base import (
    ENDS,
    KEEP,
    KEYS,
    LEASE_MS,
    QUEUES,
    TYPES,
    WORKERS,
    Draft,
    conflicts,
    delays_ms,
    drafts,
    many_drafts,
    many_picks,
    picks,
    queues,
    workers,
)
from .machine_settings import SettingsRules, plain
from .model import Refusal, by_id, trouble, without_waits


class JobRules(SettingsRules):
    """The rules of the way of a job, of time, of steering, and what must be true after each of them."""

    strict_order: ClassVar[bool] = True  # False for backends that promise the best order they can

    @initialize(jobs=many_drafts, claims=st.integers(0, 3))
    def begin(self, jobs: list[Draft], claims: int) -> None:
        """Start with a few jobs, some of them running: Hypothesis leaves out some rules in each history."""
        self.set_up()
        self.enqueue(jobs=jobs, again=None, conflict="existing")
        self.claim(order=list(QUEUES), limit=claims, worker=WORKERS[0])

    # ---- the way of a job --------------------------------------------------------------------------------

    @rule(jobs=many_drafts, again=st.none() | picks, conflict=conflicts, backwards=st.booleans())
    def enqueue(self, jobs: list[Draft], again: int | None, conflict: str, backwards: bool = False) -> None:
        """Store new jobs, children before their parents or after them, perhaps with the id of an old one among them."""
        if conflict == "replace":  # within one call only one may
            seen = [(job.queue, job.unique) for job in jobs]
            jobs = [job for place, job in enumerate(jobs) if job.unique is None or seen.index(seen[place]) == place]
        specs = [self.make_spec(job, conflict) for job in jobs]
        if backwards:
            specs.reverse()
        picked = self.pick_again(again)
        if picked is not None:
            specs.insert(0, self.harness.spec(id=picked, queue="a", payload=b"[2]"))
        expected: list[object]
        try:
            expected = [self.model.enqueue(specs, self.now_ms)]
        except Refusal as refusal:
            expected = list(refusal.reasons)
        answer = self.run(self.try_enqueue(specs))
        assert answer in expected, f"answered {answer}, not one of {expected}"

    @rule(order=st.permutations(QUEUES), limit=st.integers(0, 5), worker=workers)
    def claim(self, order: list[str], limit: int, worker: str) -> None:
        """Take jobs: exactly those, in exactly that order."""
        expected = self.model.claimable(order, limit, self.now_ms)
        available = self.model.claimable(order, BATCH_MAX, self.now_ms)
        claimed = self.run(self.backend.claim(order, limit, LEASE_MS, worker))
        ids = [job.id for job in claimed]
        if self.strict_order:
            assert ids == expected, f"claimed {ids}, not {expected}"
        else:
            assert len(ids) == len(set(ids)) == len(expected)
            assert set(ids) <= set(available)
        self.model.claim(claimed, worker, LEASE_MS, self.now_ms)
        if not claimed:
            left_ms = {info.id: info.lease_left_ms for info in self.run(self.backend.workers())}.get(worker)
            self.model.learn_lease(worker, left_ms, LEASE_MS, self.now_ms)
        for job in claimed:
            assert job.attempt == self.model.jobs[job.id].attempt
            assert job.parked_at_ms == self.model.jobs[job.id].parked_at_ms
            assert job.ready_at_ms == self.model.jobs[job.id].due_at_ms
            self.tokens.append((job.id, job.token))

    def have_running(self, worker: str) -> None:
        """See to it that a worker holds something, so that there is something to settle."""
        if not self.model.running(worker):
            if not self.model.claimable(QUEUES, 1, self.now_ms):
                self.enqueue(jobs=[Draft("a", 0, None, len(self.ids))], again=None, conflict="existing")
            self.claim(order=list(QUEUES), limit=2, worker=worker)

    @rule(
        number=picks,
        state=st.sampled_from(ENDS),
        error=st.booleans(),
        how=st.sampled_from(("", "", "", "refund", "park")),
        follow=st.none() | st.none() | drafts,
        own_child=st.booleans(),
    )
    def settle(self, number: int, state: State, error: bool, how: str, follow: Draft | None, own_child: bool) -> None:
        """End an attempt, most often by a token that owns it. A follow-up may wait for the job that it follows."""
        self.have_running(WORKERS[number % 2])
        picked = self.pick_token(number)
        if picked is None:
            return
        job_id, token = picked
        follow_ups = [] if follow is None else [self.make_spec(follow)]
        if own_child and self.can("dependencies"):
            follow_ups = [msgspec.structs.replace(spec, after=(job_id,), key=None) for spec in follow_ups]
        settlement = Settlement(
            id=job_id,
            token=token,
            state=state,
            delay_ms=1 + number * 500 if state is State.SCHEDULED else 0,
            result=b"%d" % number if state is State.SUCCEEDED and number % 3 else None,
            error=trouble(number) if error and state is not State.SUCCEEDED else None,
            refund=bool(how) or (self.spent(job_id) and state not in TERMINAL),
            park=how == "park",
            follow_ups=tuple(follow_ups),
        )
        expected = self.model.settle([settlement], self.now_ms)
        assert self.run(self.backend.settle([settlement])) == expected

    @rule(
        state=st.sampled_from((State.SUCCEEDED, State.SUCCEEDED, State.PENDING, State.FAILED)),
        worker=workers,
        results=st.booleans(),
        twice=st.booleans(),
    )
    def settle_all(self, state: State, worker: str, results: bool, twice: bool) -> None:
        """End everything a worker holds in one call, perhaps the first of it twice."""
        self.have_running(worker)
        jobs = self.model.running(worker)
        if state is State.PENDING:
            jobs = [job for job in jobs if job.attempt < job.max_attempts]
        settlements = [
            Settlement(id=job.spec.id, token=job.token or "", state=state, result=b"{}" if results else None)
            for job in [*jobs, *(jobs[:1] if twice else [])]
        ]
        expected = self.model.settle(settlements, self.now_ms)
        assert self.run(self.backend.settle(settlements)) == expected

    @rule(
        worker=workers,
        progress=st.none() | st.floats(0, 1),
        text=st.none() | st.text(max_size=5),
        number=picks,
        step=st.sampled_from((None, None, "one", "two")),
    )
    def heartbeat(self, worker: str, progress: float | None, text: str | None, number: int, step: str | None) -> None:
        """Keep a lease and report progress, perhaps a step, by any token that ever was."""
        text = None if text is None else text.encode(errors="replace").decode().replace("\0", "")
        notes = []
        picked = self.pick_token(number)
        if picked is not None:
            step = step if self.can("steps") else None
            note = Note(id=picked[0], token=picked[1], progress=progress, text=text, step=step, result=b"%d" % number)
            notes.append(note)
        held, cancel = self.model.heartbeat(worker, LEASE_MS, notes, self.now_ms)
        pulse = self.run(self.backend.heartbeat(WorkerInfo(id=worker), LEASE_MS, notes))
        assert pulse.held == held
        assert pulse.cancel == cancel

    @rule(worker=workers)
    def retire(self, worker: str) -> None:
        """End a lease, unless its jobs would line up in an order that is open."""
        if self.model.ambiguous(self.model.running(worker)):
            return
        expected = self.model.retire(worker, self.now_ms)
        assert by_id(self.run(self.backend.retire(worker, "retired by the machine"))) == expected

    @rule()
    def tick(self) -> None:
        """Move time on. Leases are renewed first if what lapses would line up in an order that is open."""
        if self.model.ambiguous(self.model.lapsing(self.now_ms)):
            for worker in WORKERS:
                self.heartbeat(worker=worker, progress=None, text=None, number=0, step=None)
        expected, perhaps = self.model.tick(KEEP, self.now_ms)
        ticked = self.run(self.backend.tick(BATCH_MAX, KEEP))
        found = self.run(self.backend.get(perhaps))
        gone = [job_id for job_id, record in zip(perhaps, found, strict=True) if record is None]
        self.model.forget(gone)
        expected = msgspec.structs.replace(expected, dropped=expected.dropped + len(gone))
        if not self.can("schedules"):
            expected = msgspec.structs.replace(expected, now_ms=ticked.now_ms)
        assert without_waits(ticked) == without_waits(expected)
        assert plain(sorted(ticked.schedules, key=lambda schedule: schedule.name)) == plain(expected.schedules)
        latest_ms, earliest_ms = self.model.next_due(self.now_ms)
        due_ms = ticked.next_due_ms
        assert latest_ms is None or (due_ms is not None and due_ms <= latest_ms), f"due in {due_ms}, not {latest_ms} ms"
        assert due_ms is None or (earliest_ms is not None and due_ms >= earliest_ms), f"due in {due_ms} ms for nothing"

    @rule(ms=st.sampled_from((1, 300, 2_500, 2_500, 9_999, 10_000, 40_000)), then_tick=st.booleans())
    def advance(self, ms: int, then_tick: bool) -> None:
        """Let time pass."""
        self.run(self.harness.advance(ms))
        if then_tick:
            self.tick()

    # ---- steering ----------------------------------------------------------------------------------------

    @rule(numbers=many_picks)
    def cancel(self, numbers: list[int]) -> None:
        """Stop jobs."""
        ids = [self.pick(number) for number in numbers]
        expected = self.model.cancel(ids, self.now_ms)
        assert self.run(self.backend.cancel(ids)) == expected

    @rule(numbers=many_picks, delay_ms=delays_ms, queue=st.none() | queues, attempts=st.none() | st.integers(1, 4))
    def rerun(self, numbers: list[int], delay_ms: int, queue: str | None, attempts: int | None) -> None:
        """Start ended jobs over."""
        payload = b"[3]" if delay_ms else None
        reruns = [
            Rerun(id=self.pick(number), delay_ms=delay_ms, queue=queue, max_attempts=attempts, payload=payload)
            for number in numbers
        ]
        expected = [self.model.rerun(request, self.now_ms) for request in reruns]
        assert self.run(self.backend.rerun(reruns)) == expected

    @rule(numbers=many_picks)
    def delete(self, numbers: list[int]) -> None:
        """Remove jobs."""
        ids = [self.pick(number) for number in numbers]
        expected = self.model.delete(ids, self.now_ms)
        assert self.run(self.backend.delete(ids)) == expected

    @rule(
        states=st.lists(st.sampled_from(tuple(State)), max_size=3),
        queue=st.none() | queues,
        tag=st.sampled_from((None, None, "x", "y")),
        key=st.sampled_from((*KEYS, None)),
        workflow=st.sampled_from((None, None, "w-1")),
        type_=st.sampled_from((None, None, "t")),
        from_number=st.none() | picks,
        limit=st.integers(1, 7),
        oldest_first=st.booleans(),
    )
    def find(self, from_number: int | None, type_: str | None, states: list[State], **fields: Any) -> None:
        """Walk along a filter: all that match, once each, in order."""
        picked = None if from_number is None else self.model.jobs.get(self.pick(from_number))
        fields |= {"type": type_, "states": tuple(states)}
        if picked is not None:
            bound = "created_from_ms" if from_number and from_number % 2 else "created_before_ms"
            fields[bound] = picked.created_at_ms
        walked = [job.id for job in self.run(self.harness.all(**fields))]
        assert walked == self.model.find(Query(**fields))

    # ---- after every step --------------------------------------------------------------------------------

    @invariant()
    def records_are_true(self) -> None:
        """Every job there ever was is as the model says, or gone as it was told to be."""
        if not hasattr(self, "model") or not self.ids:
            return
        ids = list(dict.fromkeys(self.ids))[-BATCH_MAX:]
        for job_id, record in zip(ids, self.run(self.backend.get(ids)), strict=True):
            if record is None:
                assert job_id not in self.model.jobs, f"{job_id} has vanished"
                continue
            assert job_id in self.model.jobs, f"{job_id} should not be there"
            assert not (difference := self.model.difference(record)), difference
            assert 0 <= record.attempt <= record.max_attempts
            assert (record.state is State.RUNNING) == (record.worker is not None)
            assert (record.state in TERMINAL) == (record.finished_at_ms is not None)
            assert (record.state is State.WAITING) == (record.waiting_for > 0)

    @invariant()
    def lists_are_true(self) -> None:
        """Find and counts agree with the model, and a key has one live holder."""
        if not hasattr(self, "model"):
            return
        found = self.run(self.harness.all())
        assert [job.id for job in found] == self.model.find(Query())
        assert self.run(self.backend.counts()) == self.model.counts(self.now_ms)
        if self.can("dependencies"):
            assert self.run(self.backend.workflows()) == self.model.workflows()
        states = Unique(key="").states
        held = [job for job in self.model.jobs.values() if job.spec.unique is not None and job.state in LIVE]
        keys = Counter((job.queue, job.unique) for job in held if job.spec.unique and job.spec.unique.states == states)
        assert not keys or max(keys.values()) == 1, "two live jobs hold one key"
        live = {info.id: info.running for info in self.run(self.backend.workers())}
        leases = {worker for worker, end_ms in self.model.leases.items() if end_ms > self.now_ms}
        assert live == {worker: len(self.model.running(worker)) for worker in leases}


class BackendMachine(JobRules):
    """And a few plots: what rarely comes about by chance, as one rule each."""

    @rule(
        queue=queues,
        keys=st.lists(st.integers(0, 2), min_size=2, max_size=6),
        late=st.lists(st.integers(0, 2), min_size=1, max_size=3),
        first=st.integers(1, 3),
        worker=workers,
    )
    def crowd(self, queue: str, keys: list[int], late: list[int], first: int, worker: str) -> None:
        """Let jobs of several keys come to one queue, some of them when others have started."""
        for part, limit in ((keys, first), (late, 5)):
            self.enqueue(jobs=[Draft(queue, 0, None, 5 + 10 * key) for key in part], again=None, conflict="existing")
            self.claim(order=[queue], limit=limit, worker=worker)

    @precondition(lambda self: self.can("limits"))
    @rule(
        by_key=st.booleans(),
        concurrency=st.integers(1, 2),
        key=st.integers(0, 2),
        how=st.sampled_from(("retire", "settle", "retry", "lapse", "cancel")),
        worker=workers,
    )
    def squeeze(self, by_key: bool, concurrency: int, key: int, how: str, worker: str) -> None:
        """Let more come than a limit lets start, and those that started leave in one of the ways there are."""
        digit = 4 if by_key else 5  # its type has a limit of each key, or of the type as a whole
        limit = {"rate": None, "burst": None, "source": "", "cleared": False}
        self.limit(job_type=TYPES[digit % 2], by_key=by_key, concurrency=concurrency, **limit)
        drafts = [Draft("a", 0, None, digit + 10 * key)] * 3
        self.enqueue(jobs=drafts, again=None, conflict="existing")
        self.claim(order=list(QUEUES), limit=5, worker=worker)
        if how == "retire":
            self.retire(worker=worker)
        elif how == "lapse":
            self.advance(ms=LEASE_MS, then_tick=True)
        elif how == "cancel":
            self.cancel(numbers=list(range(max(0, len(self.ids) - 3), len(self.ids))))
            self.settle_all(state=State.FAILED, worker=worker, results=False, twice=True)
        else:
            state = State.SUCCEEDED if how == "settle" else State.PENDING
            self.settle_all(state=state, worker=worker, results=False, twice=True)
        self.claim(order=list(QUEUES), limit=5, worker=WORKERS[1])

    @rule(worker=workers, late_ms=st.sampled_from((0, -1)))
    def fall_silent(self, worker: str, late_ms: int) -> None:
        """Let a worker that holds something send its last heartbeat, and its lease run out to the ms."""
        self.have_running(worker)
        self.heartbeat(worker=worker, progress=None, text=None, number=0, step=None)
        self.advance(ms=LEASE_MS + late_ms, then_tick=True)

    @precondition(lambda self: self.can("dependencies"))
    @rule(number=picks, how=st.sampled_from(("settle", "fail", "cancel", "delete")), rerun=st.booleans())
    def family(self, number: int, how: str, rerun: bool) -> None:
        """Let a parent with a child and a grandchild end in one of the ways there are, and perhaps run again."""
        self.enqueue(jobs=[Draft("a", 0, None, number)], again=None, conflict="existing")
        for number_ in (number + 1, number + 2):
            self.enqueue(jobs=[Draft("b", 0, None, number_, (len(self.ids) - 1,))], again=None, conflict="existing")
        place = len(self.ids) - 3
        if how in {"settle", "fail"}:
            self.claim(order=["a"], limit=5, worker=WORKERS[0])
            state = State.SUCCEEDED if how == "settle" else State.FAILED
            self.settle_all(state=state, worker=WORKERS[0], results=True, twice=False)
        elif place < 38:
            (self.cancel if how == "cancel" else self.delete)(numbers=[place])
        if rerun and place < 38:
            self.rerun(numbers=[place], delay_ms=0, queue=None, attempts=None)


def machine_for(
    make: HarnessFactory, *, examples: int = 30, steps: int = 30, strict_order: bool = True, shrink: bool = True
) -> Any:
    """Answer a `unittest.TestCase` that drives the backend of a harness: give it a name that starts with `Test`.

    `shrink` looks for the shortest history that fails, which takes far longer than finding one.
    """

    class Machine(BackendMachine):
        make_harness = staticmethod(make)

    Machine.strict_order = strict_order
    case: Any = Machine.TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    return case
