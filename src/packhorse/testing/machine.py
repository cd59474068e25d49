"""Any backend against the model, in any order of calls that Hypothesis can think of.

    TestMine = machine_for(lambda: Harness(lambda: MyBackend("…", clock), clock))

Needs `hypothesis`, which packhorse itself does not, and a backend that takes a ManualClock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ..backends.base import (
    BATCH_MAX,
    Backend,
    Keep,
    Note,
    Query,
    QueueChange,
    Rerun,
    Settlement,
    Steered,
    WorkerInfo,
)
from ..errors import UniqueConflict
from ..job import LIVE, TERMINAL, JobSpec, State, Unique
from .conformance import Harness, HarnessFactory
from .model import Conflict, Model, trouble

Answer = TypeVar("Answer")

_QUEUES = ("a", "b")
_WORKERS = ("w0", "w1")
_LEASE_MS = 10_000
_KEEP = Keep(succeeded_ms=50_000, failed_ms=80_000, cancelled_ms=30_000)

_picks = st.integers(0, 40)
_many_picks = st.lists(_picks, min_size=1, max_size=4)
_queues = st.sampled_from(_QUEUES)
_workers = st.sampled_from(_WORKERS)
_delays_ms = st.sampled_from((0, 0, 1, 5_000, 20_000))
_uniques = st.sampled_from((None, None, "k", "l"))
_new_jobs = st.lists(st.tuples(_queues, _delays_ms, _uniques, _picks), min_size=1, max_size=4)


class BackendMachine(RuleBasedStateMachine):
    """One store over two connections, and the model beside it. Subclasses say how a harness is made."""

    make_harness: ClassVar[HarnessFactory]
    strict_order: ClassVar[bool] = True  # False for backends that promise the best order they can

    @initialize(jobs=_new_jobs, claims=st.integers(0, 3))
    def begin(self, jobs: list[tuple[str, int, str | None, int]], claims: int) -> None:
        """Start with a few jobs, some of them running: Hypothesis leaves out some rules in each history."""
        self.runner = asyncio.Runner()
        self.harness: Harness = type(self).make_harness()
        self.model = Model()
        self.ids: list[str] = []
        self.tokens: list[tuple[str, str]] = []  # every job and token that a claim answered
        self.run(self.harness.__aenter__())
        assert self.harness.clock is not None, "the machine needs a backend that takes a ManualClock"
        self.connections = [self.harness.backend, self.run(self.harness.open())]
        self.turn = 0
        self.enqueue(jobs=jobs, again=None, conflict="existing")
        self.claim(queues=list(_QUEUES), limit=claims, worker=_WORKERS[0])

    def teardown(self) -> None:
        """Close what was opened."""
        if hasattr(self, "runner"):
            try:
                self.run(self.harness.__aexit__(None, None, None))
            finally:
                self.runner.close()

    def run(self, call: Awaitable[Answer]) -> Answer:
        """Await a call on the machine's own loop."""

        async def awaited() -> Answer:
            return await call

        return self.runner.run(awaited())

    @property
    def backend(self) -> Backend:
        """The connections in turn: what one does the other must see."""
        self.turn += 1
        return self.connections[self.turn % 2]

    @property
    def now_ms(self) -> int:
        """The time of the store."""
        assert self.harness.clock is not None
        return self.harness.clock.now_ms()

    def pick(self, number: int) -> str:
        """Answer one of the jobs there were, or an id that never was."""
        return self.ids[number % len(self.ids)] if self.ids and number < 38 else "no-such-job"

    def make_spec(self, queue: str, delay_ms: int, unique: str | None, number: int, conflict: str) -> JobSpec:
        """Describe a new job; the fields nobody looks at vary with `number`."""
        spec = self.harness.spec(
            queue=queue,
            type=("t", "u")[number % 2],
            priority=number % 10,
            max_attempts=1 + number % 3,
            delay_ms=delay_ms,
            unique=None if unique is None else Unique(key=unique, on_conflict=conflict),
            tags=(("x",), ("x", "y"), ())[number % 3],
            key=(None, "tenant")[number // 10 % 2],
        )
        self.ids.append(spec.id)
        return spec

    # ---- the way of a job --------------------------------------------------------------------------------

    @rule(
        jobs=_new_jobs,
        again=st.none() | _picks,
        conflict=st.sampled_from(("existing", "existing", "refuse")),
    )
    def enqueue(self, jobs: list[tuple[str, int, str | None, int]], again: int | None, conflict: str) -> None:
        """Store new jobs, perhaps with the id of an old one among them."""
        specs = [self.make_spec(*job, conflict) for job in jobs]
        if again is not None and self.pick(again) != "no-such-job":
            specs.insert(0, self.harness.spec(id=self.pick(again), queue="a", payload=b"[2]"))
        expected: object
        try:
            expected = self.model.enqueue(specs, self.now_ms)
        except Conflict as conflict_:
            expected = (conflict_.unique, conflict_.holder)
        assert self.run(self.try_enqueue(specs)) == expected

    async def try_enqueue(self, specs: list[JobSpec]) -> object:
        """Enqueue; answers what the backend answered, or the key and holder that it refused for."""
        try:
            return await self.backend.enqueue(specs)
        except UniqueConflict as error:
            return (error.unique, error.holder)

    @rule(queues=st.permutations(_QUEUES), limit=st.integers(0, 5), worker=_workers)
    def claim(self, queues: list[str], limit: int, worker: str) -> None:
        """Take jobs: exactly those, in exactly that order."""
        expected = self.model.claimable(queues, limit)
        available = self.model.claimable(queues, BATCH_MAX)
        claimed = self.run(self.backend.claim(queues, limit, _LEASE_MS, worker))
        ids = [job.id for job in claimed]
        if self.strict_order:
            assert ids == expected, f"claimed {ids}, not {expected}"
        else:
            assert len(ids) == len(set(ids)) == len(expected)
            assert set(ids) <= set(available)
        self.model.claim(claimed, worker, _LEASE_MS, self.now_ms)
        if not claimed:
            left_ms = {info.id: info.lease_left_ms for info in self.run(self.backend.workers())}.get(worker)
            self.model.learn_lease(worker, left_ms, _LEASE_MS, self.now_ms)
        for job in claimed:
            assert job.attempt == self.model.jobs[job.id].attempt
            assert job.parked_at_ms == self.model.jobs[job.id].parked_at_ms
            self.tokens.append((job.id, job.token))

    def have_running(self, worker: str) -> None:
        """See to it that a worker holds something, so that there is something to settle."""
        if not self.model.running(worker):
            if not self.model.claimable(_QUEUES, 1):
                self.enqueue(jobs=[("a", 0, None, len(self.ids))], again=None, conflict="existing")
            self.claim(queues=list(_QUEUES), limit=2, worker=worker)

    def pick_token(self, number: int) -> tuple[str, str] | None:
        """Answer a job and its token: mostly of a claim that still runs, else of any that ever was."""
        running = [(job_id, job.token) for job_id, job in self.model.jobs.items() if job.token is not None]
        if running and number < 30:
            return running[number % len(running)]
        return self.tokens[number % len(self.tokens)] if self.tokens else None

    @rule(
        number=_picks,
        state=st.sampled_from((State.SUCCEEDED, *TERMINAL, State.SCHEDULED, State.PENDING)),
        error=st.booleans(),
        how=st.sampled_from(("", "", "", "refund", "park")),
        follow=st.none() | st.none() | st.tuples(_queues, _delays_ms, _uniques, _picks),
    )
    def settle(
        self, number: int, state: State, error: bool, how: str, follow: tuple[str, int, str | None, int] | None
    ) -> None:
        """End an attempt, most often by a token that owns it."""
        self.have_running(_WORKERS[number % 2])
        picked = self.pick_token(number)
        if picked is None:
            return
        job_id, token = picked
        job = self.model.jobs.get(job_id)
        spent = job is not None and job.attempt >= job.max_attempts
        settlement = Settlement(
            id=job_id,
            token=token,
            state=state,
            delay_ms=1 + number * 500 if state is State.SCHEDULED else 0,
            result=b"%d" % number if state is State.SUCCEEDED and number % 3 else None,
            error=trouble(number) if error and state is not State.SUCCEEDED else None,
            refund=bool(how) or (spent and state not in TERMINAL),  # the policy above never runs a job too often
            park=how == "park",
            follow_ups=() if follow is None else (self.make_spec(*follow, "existing"),),
        )
        expected = self.model.settle(settlement, self.now_ms)
        assert self.run(self.backend.settle([settlement])) == [expected]

    @rule(
        state=st.sampled_from((State.SUCCEEDED, State.SUCCEEDED, State.PENDING, State.FAILED)),
        worker=_workers,
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
        expected = [self.model.settle(settlement, self.now_ms) for settlement in settlements]
        assert self.run(self.backend.settle(settlements)) == expected

    @rule(worker=_workers, progress=st.none() | st.floats(0, 1), text=st.none() | st.text(max_size=5), number=_picks)
    def heartbeat(self, worker: str, progress: float | None, text: str | None, number: int) -> None:
        """Keep a lease and report progress by any token that ever was."""
        text = None if text is None else text.encode(errors="replace").decode().replace("\0", "")
        notes = []
        picked = self.pick_token(number)
        if picked is not None:
            notes.append(Note(id=picked[0], token=picked[1], progress=progress, text=text))
        held, cancel = self.model.heartbeat(worker, _LEASE_MS, notes, self.now_ms)
        pulse = self.run(self.backend.heartbeat(WorkerInfo(id=worker), _LEASE_MS, notes))
        assert pulse.held == held
        assert pulse.cancel == cancel

    @rule(worker=_workers)
    def retire(self, worker: str) -> None:
        """End a lease."""
        expected = self.model.retire(worker, self.now_ms)
        assert self.run(self.backend.retire(worker, "retired by the machine")) == expected

    @rule()
    def tick(self) -> None:
        """Move time on."""
        expected = self.model.tick(_KEEP, self.now_ms)
        assert self.run(self.backend.tick(BATCH_MAX, _KEEP)) == expected

    @rule(ms=st.sampled_from((1, 2_500, 2_500, 9_999, 10_000, 40_000)), then_tick=st.booleans())
    def advance(self, ms: int, then_tick: bool) -> None:
        """Let time pass."""
        self.run(self.harness.advance(ms))
        if then_tick:
            self.tick()

    # ---- steering ----------------------------------------------------------------------------------------

    @rule(numbers=_many_picks)
    def cancel(self, numbers: list[int]) -> None:
        """Stop jobs."""
        ids = [self.pick(number) for number in numbers]
        expected = [self.model.cancel(job_id, self.now_ms) for job_id in ids]
        assert self.run(self.backend.cancel(ids)) == expected

    @rule(numbers=_many_picks, delay_ms=_delays_ms, queue=st.none() | _queues, attempts=st.none() | st.integers(1, 4))
    def rerun(self, numbers: list[int], delay_ms: int, queue: str | None, attempts: int | None) -> None:
        """Start ended jobs over."""
        payload = b"[3]" if delay_ms else None
        reruns = [
            Rerun(id=self.pick(number), delay_ms=delay_ms, queue=queue, max_attempts=attempts, payload=payload)
            for number in numbers
        ]
        expected = [self.model.rerun(request, self.now_ms) for request in reruns]
        assert self.run(self.backend.rerun(reruns)) == expected

    @rule(numbers=_many_picks)
    def delete(self, numbers: list[int]) -> None:
        """Remove jobs."""
        ids = [self.pick(number) for number in numbers]
        expected: list[Steered] = [self.model.delete(job_id) for job_id in ids]
        assert self.run(self.backend.delete(ids)) == expected

    @rule(queue=_queues, paused=st.sampled_from((True, False, False, None)))
    def pause(self, queue: str, paused: bool | None) -> None:
        """Pause or resume a queue."""
        self.model.paused[queue] = self.model.paused.get(queue, False) if paused is None else paused
        changed = self.run(self.backend.queues([QueueChange(queue=queue, paused=paused)]))
        assert {name: bool(change.paused) for name, change in changed.items()} == self.model.paused

    @rule(
        states=st.lists(st.sampled_from(tuple(State)), max_size=3),
        queue=st.none() | _queues,
        tag=st.sampled_from((None, None, "x", "y")),
        key=st.sampled_from((None, None, "tenant")),
        type_=st.sampled_from((None, None, "t")),
        from_number=st.none() | _picks,
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

    @invariant()
    def lists_are_true(self) -> None:
        """Find and counts agree with the model, and a key has one live holder."""
        if not hasattr(self, "model"):
            return
        found = self.run(self.harness.all())
        assert [job.id for job in found] == self.model.find(Query())
        assert self.run(self.backend.counts()) == self.model.counts(self.now_ms)
        keys = Counter((job.queue, job.unique) for job in found if job.unique is not None and job.state in LIVE)
        assert not keys or max(keys.values()) == 1, "two live jobs hold one key"
        live = {info.id: info.running for info in self.run(self.backend.workers())}
        leases = {worker for worker, end_ms in self.model.leases.items() if end_ms > self.now_ms}
        assert live == {worker: len(self.model.running(worker)) for worker in leases}


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
