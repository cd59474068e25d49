"""Stores and workers that are broken on purpose, each in the way of a real product: the simulator must notice."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from packhorse.backends.base import Enqueued, Keep, Settlement, Steered, Ticked, Verdict
from packhorse.backends.bells import Bell
from packhorse.backends.memory import MemoryBackend
from packhorse.errors import Unavailable
from packhorse.job import Claimed, State
from packhorse.retry import _park
from packhorse.testing.simulator import pause
from packhorse.worker.claimer import Claimer
from packhorse.worker.engine import Engine
from packhorse.worker.heart import Heart
from packhorse.worker.lease import Lease
from packhorse.worker.run import Run
from packhorse.worker.runner import Runner
from packhorse.worker.settler import Lane

# ---- stores --------------------------------------------------------------------------------------------------


class SettlesByIdAlone(MemoryBackend):
    """Ends a job without asking who owns it."""

    async def settle(self, settlements):
        jobs = self.store.jobs
        return await super().settle(
            [
                msgspec.structs.replace(item, token=jobs[item.id].token)
                if item.id in jobs and jobs[item.id].state is State.RUNNING
                else item
                for item in settlements
            ]
        )


class LapsesFromASnapshot(MemoryBackend):
    """A reaper that looks first and writes later, without looking again."""

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        store = self.store
        now_ms = store.clock.now_ms()
        dead = [worker for worker in store.held if worker not in store.workers or store.workers[worker][1] <= now_ms]
        doomed = [job_id for worker in dead for job_id in sorted(store.held[worker])]
        lapses = []
        if doomed:
            await pause(300)
            for job_id in doomed:
                if store.jobs[job_id].state is State.RUNNING:
                    reason, at_ms = "the lease of the worker ran out", store.clock.now_ms()
                    lapses.append(store.lapse(store.jobs[job_id], reason, at_ms))
        ticked = await super().tick(limit, keep)
        return msgspec.structs.replace(ticked, lapses=(*lapses, *ticked.lapses))


class NamesALapseTwice(MemoryBackend):
    """A tick names what the one before it lapsed, too."""

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        ticked = await super().tick(limit, keep)
        before = getattr(self.store, "named_before", ())
        self.store.named_before = ticked.lapses
        return msgspec.structs.replace(ticked, lapses=(*before, *ticked.lapses))


class RetiresWithoutAName(MemoryBackend):
    """A retirement takes the jobs and does not say which."""

    async def retire(self, worker, reason):
        await super().retire(worker, reason)
        return []


class AcknowledgesBeforeCommit(MemoryBackend):
    """Answers an enqueue at once and writes it to disk within 200 ms; a crash of the server in between loses it."""

    def __init__(self, store) -> None:
        super().__init__(store)
        self._unwritten: list[tuple[int, str]] = []

    async def enqueue(self, specs):
        answers: list[Enqueued] = await super().enqueue(specs)
        now_ms = self.store.clock.now_ms()
        self._unwritten.extend([(now_ms, answer.id) for answer in answers if answer.created])
        return answers

    def on_crash(self) -> None:
        oldest_ms = self.store.clock.now_ms() - 200
        for at_ms, job_id in self._unwritten:
            job = self.store.jobs.get(job_id)
            if at_ms >= oldest_ms and job is not None and job.state in {State.PENDING, State.SCHEDULED}:
                if job.unique is not None:
                    self.store.unique.pop((job.queue, job.unique), None)
                self.store.leave_place(job)
                del self.store.jobs[job_id]


class ClaimsInTwoSteps(MemoryBackend):
    """Reads what is pending, then writes that it is claimed: another claim fits in between."""

    async def claim(self, queues, limit, lease_ms, worker):
        pending = [
            job
            for job in self.store.jobs.values()
            if job.state is State.PENDING and job.queue in queues and not self._paused(job.queue)
        ]
        await pause(2)
        claimed = []
        now_ms = self.store.clock.now_ms()
        info = self.store.workers.get(worker)
        await super().claim([], 0, lease_ms, worker)
        assert info is None or info[0].id == worker
        for job in pending[:limit]:
            job.state, job.worker, job.token = State.RUNNING, worker, str(next(self.store.tokens))
            job.attempt += 1
            job.started_at_ms = now_ms
            self.store.held[worker].add(job.id)
            given = {name: getattr(job, name) for name in Claimed.__struct_fields__ if name != "ready_at_ms"}
            claimed.append(Claimed(**given, ready_at_ms=job.due_at_ms))
        return claimed

    def _paused(self, queue: str) -> bool:
        return queue in self.store.settings and bool(self.store.settings[queue].paused)


class ChargesForReleases(MemoryBackend):
    """Counts an attempt for a job that was given back unstarted."""

    async def settle(self, settlements):
        return await super().settle(
            [
                msgspec.structs.replace(item, refund=False) if item.state is State.PENDING else item
                for item in settlements
            ]
        )


class ReusesTokens(MemoryBackend):
    """Names a claim by its worker, so that a worker's old claim looks like its new one."""

    async def claim(self, queues, limit, lease_ms, worker):
        jobs = await super().claim(queues, limit, lease_ms, worker)
        for job in jobs:
            self.store.jobs[job.id].token = worker
        return [msgspec.structs.replace(job, token=worker) for job in jobs]


class RunsCancelledJobsAgain(MemoryBackend):
    """Forgets on a retry that the job was asked to stop."""

    async def settle(self, settlements):
        for item in settlements:
            if item.id in self.store.jobs and item.state is State.SCHEDULED:
                self.store.jobs[item.id].cancel_requested = False
        return await super().settle(settlements)


class CancelsWhatRuns(MemoryBackend):
    """Answers DONE for a running job, whose run goes on."""

    async def cancel(self, ids):
        answers = await super().cancel(ids)
        return [Steered.DONE if answer is Steered.REQUESTED else answer for answer in answers]


class ForgetsPausesAtOnce(MemoryBackend):
    """Looks at the pause when a worker starts, not at every claim."""

    async def claim(self, queues, limit, lease_ms, worker):
        settings, self.store.settings = self.store.settings, {}
        try:
            return await super().claim(queues, limit, lease_ms, worker)
        finally:
            self.store.settings = settings


class FreesKeysOnRetry(MemoryBackend):
    """Frees a unique key when an attempt ends rather than when the job does."""

    async def settle(self, settlements):
        verdicts = await super().settle(settlements)
        for item, verdict in zip(settlements, verdicts, strict=True):
            job = self.store.jobs.get(item.id)
            if verdict is Verdict.APPLIED and job is not None and job.unique is not None:
                self.store.unique.pop((job.queue, job.unique), None)
        return verdicts


class StoresFollowUpsOfStaleRuns(MemoryBackend):
    """Stores the follow-ups of a settlement whatever became of it."""

    async def settle(self, settlements):
        verdicts = await super().settle(settlements)
        for item, verdict in zip(settlements, verdicts, strict=True):
            if verdict is Verdict.STALE and item.follow_ups:
                await self.enqueue(item.follow_ups)
        return verdicts


class EnqueuesTwice(MemoryBackend):
    """Takes a repeated id for a new job, as a store that makes the ids itself would."""

    async def enqueue(self, specs):
        specs = [
            msgspec.structs.replace(spec, id=spec.id[:-4] + "ffff") if spec.id in self.store.jobs else spec
            for spec in specs
        ]
        return await super().enqueue(specs)


class LetsEveryoneLapse(MemoryBackend):
    """Judges leases by half of what was promised."""

    async def heartbeat(self, worker, lease_ms, notes=()):
        pulse = await super().heartbeat(worker, lease_ms, notes)
        info, end_ms = self.store.workers[worker.id]
        self.store.workers[worker.id] = (info, end_ms - lease_ms * 9 // 10)
        return pulse


STORES = [
    SettlesByIdAlone, LapsesFromASnapshot, AcknowledgesBeforeCommit, ClaimsInTwoSteps, ChargesForReleases, ReusesTokens,
    RunsCancelledJobsAgain, CancelsWhatRuns, ForgetsPausesAtOnce, FreesKeysOnRetry, StoresFollowUpsOfStaleRuns,
    EnqueuesTwice, LetsEveryoneLapse, NamesALapseTwice, RetiresWithoutAName,
]  # fmt: skip

# ---- workers -------------------------------------------------------------------------------------------------


def starts_after_the_lease_lapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner never asks how old its lease is."""
    monkeypatch.setattr(Lease, "fresh", lambda self: True)


def measures_the_lease_from_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease counts from when the answer came, as if calls took no time."""

    def renewed(self, sent_ms: int) -> None:
        self._from_ms = self._clock.boot_ms()

    monkeypatch.setattr(Lease, "renewed", renewed)


def measures_the_lease_on_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is measured on a clock that people set."""

    class Wall:
        def __init__(self, clock) -> None:
            self._clock = clock

        def boot_ms(self) -> int:
            return self._clock.now_ms() - 1_700_000_000_000 + 1_000_000

    build = Lease.__init__
    monkeypatch.setattr(Lease, "__init__", lambda self, clock, *rest: build(self, Wall(clock), *rest))
    # Nobody compares by another clock either: each start asks `fresh`.
    never = property(lambda self: 0, lambda self, value: None)
    monkeypatch.setattr(Lease, "fresh_until_ns", never, raising=False)


def drops_a_batch_whose_reply_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settler gives up at the first error."""

    async def settle(self, batch: list[Settlement]) -> None:
        try:
            self._count(batch, await self._backend.settle(batch))
        except Unavailable:
            return

    monkeypatch.setattr(Lane, "_settle", settle)


def forgets_claims_whose_reply_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat renews what the worker never heard of, for ever."""

    def apply_pulse(self, held, cancel, sent_ms) -> None:
        self.runner.apply_pulse(held, cancel, sent_ms)

    monkeypatch.setattr(Engine, "apply_pulse", apply_pulse)


def does_not_release_at_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was claimed and never started is left to lapse."""

    def drop(self) -> int:
        self._ready.clear()
        return 0

    async def nothing(self) -> None:
        pass

    monkeypatch.setattr(Runner, "release_unstarted", drop)
    monkeypatch.setattr(Engine, "_release_orphans", nothing)


def drops_a_claim_at_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim on its way when the worker is told to stop is cancelled, and with it what it brings."""

    async def claim(self) -> bool:
        sent_ms = self.claiming_since_ms = self._clock.boot_ms()
        try:
            queues, lease_ms = self._options.queues, self._options.lease_ms
            return self._take(await self._backend.claim(queues, self._wanted(), lease_ms, self._worker), sent_ms)
        finally:
            self.claiming_since_ms = None

    async def nothing(self) -> None:
        pass

    monkeypatch.setattr(Claimer, "_claim", claim)
    monkeypatch.setattr(Engine, "_release_orphans", nothing)


def starts_what_the_heartbeat_said_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens to what a heartbeat answers."""
    monkeypatch.setattr(Engine, "apply_pulse", lambda self, held, cancel, sent_ms: None)


def relies_on_bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a bell waits until it rings."""
    wait = Bell.wait

    async def for_ever(self, timeout_ms: float) -> bool:
        claimer = any(topic.startswith("queue:") for topic in self.topics)
        return await wait(self, 3_600_000 if claimer else timeout_ms)

    monkeypatch.setattr(Bell, "wait", for_ever)


def beats_too_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat a lease: any delay costs it."""
    monkeypatch.setattr(Heart, "_due", lambda self: self._lease.age_ms() * 20 >= self._lease.lease_ms * 19)


def lets_a_handler_stop_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot dies of what its handler raises."""
    monkeypatch.setattr(Run, "raised", _reraise)


def _reraise(self, error: BaseException):
    raise RuntimeError("the slot is gone") from error


def parks_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a job was parked is told by comparing the store's instants with this machine's clock."""

    def park(job: Claimed, outcome, now_ms: int, park_ms: int) -> Settlement:
        return _park(msgspec.structs.replace(job, ready_at_ms=now_ms), outcome, now_ms, park_ms)

    monkeypatch.setattr("packhorse.retry._park", park)


def gives_back_what_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ignored its stop is taken for a claim whose reply was lost."""

    def known(self) -> set[tuple[str, str]]:
        left, self._left_running = self._left_running, set()
        try:
            return known_before(self)
        finally:
            self._left_running = left

    known_before = Runner.known
    monkeypatch.setattr(Runner, "known", known)


def forgets_orphans_at_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim whose reply was lost just before the stop lapses, and costs an attempt."""

    async def nothing(self) -> None:
        pass

    monkeypatch.setattr(Engine, "_release_orphans", nothing)


def leaks_a_task_for_each_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stop leaves a task behind that waits for ever."""
    stop = Engine.stop

    async def and_wait(self, grace_ms=None) -> None:
        self.leaked = asyncio.get_running_loop().create_task(asyncio.Event().wait())
        await stop(self, grace_ms)

    monkeypatch.setattr(Engine, "stop", and_wait)


WORKERS = [
    starts_after_the_lease_lapsed, measures_the_lease_from_the_reply, measures_the_lease_on_the_wall_clock,
    drops_a_batch_whose_reply_is_lost, forgets_claims_whose_reply_is_lost, does_not_release_at_a_stop,
    drops_a_claim_at_a_stop, starts_what_the_heartbeat_said_is_lost, relies_on_bells, beats_too_seldom,
    lets_a_handler_stop_the_loop, leaks_a_task_for_each_stop, parks_by_its_own_clock,
    gives_back_what_still_runs, forgets_orphans_at_a_stop,
]  # fmt: skip
