"""Broken on purpose: limits, capacity, unique windows, turns of keys. Each in the way of a real product."""

from __future__ import annotations

import contextlib

import msgspec
import pytest

from packhorse.backends.base import Lapse
from packhorse.backends.memory import MemoryBackend
from packhorse.errors import Unavailable
from packhorse.job import State
from packhorse.limits import tokens
from packhorse.worker.declared import _declare, declare_limits
from packhorse.worker.engine import Engine

# ---- limits --------------------------------------------------------------------------------------------------


class LeaksASlotOnLapse(MemoryBackend):
    """A job whose worker died goes on counting as running: the slot of its limit is gone for good."""

    def __init__(self, store) -> None:
        super().__init__(store)
        lapse = store.lapse

        def leak(job, reason, now_ms) -> Lapse:
            limited = job.lane is not None
            lapsed = lapse(job, reason, now_ms)
            if limited:
                store.limits.count(job, 1)
            return lapsed

        store.lapse = leak


class LeaksASlotOnRelease(MemoryBackend):
    """Counts down when a job ends, and not when it is given back or tried again."""

    def __init__(self, store) -> None:
        super().__init__(store)
        start_over = store.start_over

        def leak(job, delay_ms, now_ms) -> None:
            if job.attempt and job.lane is not None:
                store.limits.count(job, 1)
            start_over(job, delay_ms, now_ms)

        store.start_over = leak


class GivesASlotBackTwice(MemoryBackend):
    """Each settlement counts the limit down, one that was repeated or came too late as well."""

    async def settle(self, settlements):
        limits = self.store.limits
        for item in settlements:
            job = self.store.jobs.get(item.id)
            if job is not None and job.token != item.token and limits.running_now((job.type, job.key)) > 0:
                limits.count(job, -1)
        return await super().settle(settlements)


class JudgesLimitsByWorker(MemoryBackend):
    """Counts what runs in the process that claims."""

    async def claim(self, queues, limit, lease_ms, worker):
        store = self.store
        others = [
            job
            for name, ids in store.held.items()
            for job in map(store.jobs.__getitem__, ids)
            if name != worker and job.lane is not None
        ]
        for job in others:
            store.limits.count(job, -1)
        try:
            return await super().claim(queues, limit, lease_ms, worker)
        finally:
            for job in others:
                store.limits.count(job, 1)


class JudgesRatesByWorker(MemoryBackend):
    """Each worker has a bucket of its own."""

    def __init__(self, store) -> None:
        super().__init__(store)
        self._buckets = {}

    async def claim(self, queues, limit, lease_ms, worker):
        limits = self.store.limits
        shared, limits._full_at_ns = limits._full_at_ns, self._buckets.setdefault(worker, {})
        try:
            return await super().claim(queues, limit, lease_ms, worker)
        finally:
            limits._full_at_ns = shared


class ForgetsLimitsAtARestart(MemoryBackend):
    """After a restart of the server the first claims find no limits yet."""

    blind = 0

    def on_crash(self) -> None:
        self.blind = 3

    async def claim(self, queues, limit, lease_ms, worker):
        limits = self.store.limits
        self.blind -= 1
        if self.blind >= 0:
            limits.of = lambda job_type, key: []
        try:
            return await super().claim(queues, limit, lease_ms, worker)
        finally:
            limits.__dict__.pop("of", None)


class LooksAtTheTypeAlone(MemoryBackend):
    """Where a type has a limit, those of its keys are not looked at."""

    def __init__(self, store) -> None:
        super().__init__(store)
        of = store.limits.of
        store.limits.of = lambda job_type, key: of(job_type, key)[:1]


class CountsTheBucketTwice(MemoryBackend):
    """A bucket of `burst` that is also filled at the start of each period: twice the rate in one window."""

    def __init__(self, store) -> None:
        super().__init__(store)
        free = store.limits.free

        def generous(limit, name, now_ms):
            room, opens_at_ms = free(limit, name, now_ms)
            if limit.rate is not None and room == 0 and now_ms % limit.period_ms < 100:
                return tokens(limit, 0, now_ms), now_ms
            return room, opens_at_ms

        store.limits.free = generous


class EmptiesAnotherBucket(MemoryBackend):
    """Whoever clears a limit that is not there clears what the key has used of the limit for each key."""

    async def limits(self, changes=(), *, about=None):
        for change in changes:
            if change.cleared and (change.type, change.key) not in self.store.limits.by_name:
                self.store.limits._full_at_ns.pop((change.type, change.key), None)
        return await super().limits(changes, about=about)


class RefillsBucketsWhenSetAgain(MemoryBackend):
    """A limit that is set again as it was begins with a full bucket: each worker that starts is a burst."""

    async def limits(self, changes=(), *, about=None):
        if changes:
            self.store.limits._full_at_ns.clear()
        return await super().limits(changes, about=about)


class StopsTheQueue(MemoryBackend):
    """A job that its limit holds back holds back what stands behind it."""

    async def claim(self, queues, limit, lease_ms, worker):
        limits, now_ms = self.store.limits, self.store.clock.now_ms()
        pending = [job for job in self.store.jobs.values() if job.state is State.PENDING and job.queue in queues]
        first = min(pending, key=lambda job: job.place, default=None)
        if first is not None and any(limits.free(*one, now_ms)[0] <= 0 for one in limits.of(first.type, first.key)):
            return await super().claim((), limit, lease_ms, worker)
        return await super().claim(queues, limit, lease_ms, worker)


class TakesAFullClaimOrNone(MemoryBackend):
    """Where a limit lets start fewer than are wanted, the claim takes nothing of that queue."""

    async def claim(self, queues, limit, lease_ms, worker):
        limits, now_ms = self.store.limits, self.store.clock.now_ms()
        short = any(
            limits.free(limit_of, name, now_ms)[0] < limit
            for job in self.store.jobs.values()
            if job.state is State.PENDING
            for limit_of, name in limits.of(job.type, job.key)
        )
        return await super().claim(() if short else queues, limit, lease_ms, worker)


# ---- what is let in ------------------------------------------------------------------------------------------


class CountsRoomForEachJobAlone(MemoryBackend):
    """Looks for each job of a call whether there is room for one."""

    async def enqueue(self, specs):
        settings = self.store.settings
        self.store.settings = {
            name: msgspec.structs.replace(one, capacity=one.capacity + len(specs) - 1) if one.capacity else one
            for name, one in settings.items()
        }
        try:
            return await super().enqueue(specs)
        finally:
            self.store.settings = settings


class CountsDelayedJobs(MemoryBackend):
    """Refuses for what is not pending yet."""

    def __init__(self, store) -> None:
        super().__init__(store)
        refuse = store.refuse

        def strict(specs, now_ms) -> None:
            refuse([msgspec.structs.replace(spec, delay_ms=0) for spec in specs], now_ms)

        store.refuse = strict


class HoldsKeysWhileTheyLiveOnly(MemoryBackend):
    """Knows no windows: a key is free as soon as its job is not in one of the states."""

    async def enqueue(self, specs):
        return await super().enqueue(
            [
                msgspec.structs.replace(spec, unique=msgspec.structs.replace(spec.unique, for_ms=0))
                if spec.unique is not None
                else spec
                for spec in specs
            ]
        )


class ReplacesWhatRuns(MemoryBackend):
    """Takes the place of a job that a worker has in its hands."""

    async def enqueue(self, specs):
        store = self.store
        for spec in specs:
            if spec.unique is None or spec.unique.on_conflict != "replace" or spec.id in store.jobs:
                continue
            holder = store.jobs.get(store.holder((spec.queue, spec.unique.key), store.clock.now_ms()) or "")
            if holder is not None and holder.state is State.RUNNING:
                store.let_go(holder)
                store.end(holder, State.CANCELLED, store.clock.now_ms())
        return await super().enqueue(specs)


class RefusesNobody(MemoryBackend):
    """Answers with the holder where it was to refuse."""

    async def enqueue(self, specs):
        return await super().enqueue(
            [
                msgspec.structs.replace(spec, unique=msgspec.structs.replace(spec.unique, on_conflict="existing"))
                if spec.unique is not None and spec.unique.on_conflict == "refuse"
                else spec
                for spec in specs
            ]
        )


class StoresACallJobByJob(MemoryBackend):
    """Has stored what comes before the job that it refuses."""

    async def enqueue(self, specs):
        return [answer for spec in specs for answer in await super(StoresACallJobByJob, self).enqueue([spec])]


# ---- steps ---------------------------------------------------------------------------------------------------


class LosesStepsOnLapse(MemoryBackend):
    """Forgets with a worker what its runs had done."""

    def __init__(self, store) -> None:
        super().__init__(store)
        lapse = store.lapse

        def forget(job, reason, now_ms) -> Lapse:
            lapsed = lapse(job, reason, now_ms)
            job.steps = None
            return lapsed

        store.lapse = forget


class LosesStepsOnRetry(MemoryBackend):
    """Each attempt begins with nothing done."""

    async def claim(self, queues, limit, lease_ms, worker):
        jobs = await super().claim(queues, limit, lease_ms, worker)
        for job in jobs:
            self.store.jobs[job.id].steps = None
        return jobs


class KeepsStepsOfOldRuns(MemoryBackend):
    """Keeps what any run says it did, whoever has the job by now."""

    async def heartbeat(self, worker, lease_ms, notes=()):
        jobs = self.store.jobs
        return await super().heartbeat(
            worker,
            lease_ms,
            [
                msgspec.structs.replace(note, token=jobs[note.id].token)
                if note.id in jobs and jobs[note.id].state is State.RUNNING
                else note
                for note in notes
            ],
        )


class KeepsStepsAfterANewPayload(MemoryBackend):
    """A rerun with another payload finds the steps of the old one."""

    async def rerun(self, reruns):
        kept = {one.id: self.store.jobs[one.id].steps for one in reruns if one.id in self.store.jobs}
        answers = await super().rerun(reruns)
        for job_id, steps in kept.items():
            self.store.jobs[job_id].steps = steps
        return answers


FLOW_STORES = [
    LeaksASlotOnLapse, LeaksASlotOnRelease, GivesASlotBackTwice, JudgesLimitsByWorker, JudgesRatesByWorker,
    ForgetsLimitsAtARestart, LooksAtTheTypeAlone, CountsTheBucketTwice, EmptiesAnotherBucket,
    RefillsBucketsWhenSetAgain, StopsTheQueue, TakesAFullClaimOrNone,
    CountsRoomForEachJobAlone, CountsDelayedJobs, HoldsKeysWhileTheyLiveOnly, ReplacesWhatRuns, RefusesNobody,
    StoresACallJobByJob, LosesStepsOnLapse, LosesStepsOnRetry, KeepsStepsOfOldRuns, KeepsStepsAfterANewPayload,
]  # fmt: skip

# ---- workers -------------------------------------------------------------------------------------------------


def serves_keys_in_the_order_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with many jobs keeps all others waiting."""
    monkeypatch.setattr("packhorse.backends.memory_store.fair_turn", lambda ready_at_ms, front_ms, last_ms: ready_at_ms)


def claims_before_its_limits_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker starts to claim while what its code declares is on its way."""

    async def claim(self) -> None:
        self._tasks.append(self._go(declare_limits(self.app, self.backend)))
        await self.claimer.run()

    monkeypatch.setattr(Engine, "_claim", claim)


def gives_up_to_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot reach the store when it starts works without the limits of its code."""

    async def once(app, backend, queues=()) -> None:
        with contextlib.suppress(Unavailable):
            await _declare(app, backend)

    monkeypatch.setattr("packhorse.worker.engine.declare_limits", once)


def takes_every_new_job_for_a_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts room as if a job of the same call held its key whatever its states say (memory, 2026-11-22)."""
    monkeypatch.setattr("packhorse.backends.memory_store._first_state", lambda spec: spec.unique.states[0])


FLOW_WORKERS = [
    serves_keys_in_the_order_they_came, claims_before_its_limits_are_known, gives_up_to_declare,
    takes_every_new_job_for_a_holder,
]  # fmt: skip
