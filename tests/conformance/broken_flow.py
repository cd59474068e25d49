"""Backends that break one rule of limits, fair turns and capacity."""

from __future__ import annotations

from collections import Counter

import msgspec

from packhorse.backends import memory_lanes, memory_store
from packhorse.backends.base import EACH_KEY, Ticked
from packhorse.backends.memory import MemoryBackend
from packhorse.job import State

from .broken_on_the_way import broken


def _running(store):
    return [job for job in store.jobs.values() if job.state is State.RUNNING]


# ---- slots -----------------------------------------------------------------------------------------------


class LeaksSlots(MemoryBackend):
    """Counts what a verb takes from its worker as running still."""

    def kept(self):
        return dict(self.store.limits.running)

    def leak(self, kept):
        self.store.limits.running.update(kept)


@broken
class LeaksTheSlotOfALapse(LeaksSlots):
    async def tick(self, limit, keep):
        kept = self.kept()
        ticked = await super().tick(limit, keep)
        if ticked.lapsed:
            self.leak(kept)
        return ticked


@broken
class LeaksTheSlotOfARetired(LeaksSlots):
    async def retire(self, worker, reason):
        kept = self.kept()
        lost = await super().retire(worker, reason)
        if lost:
            self.leak(kept)
        return lost


@broken
class LeaksTheSlotOfARetry(LeaksSlots):
    async def settle(self, settlements):
        kept = self.kept()
        verdicts = await super().settle(settlements)
        if any(each.state is State.SCHEDULED for each in settlements):
            self.leak(kept)
        return verdicts


@broken
class FreesASlotForAStaleSettlement(MemoryBackend):
    async def settle(self, settlements):
        for each in settlements:
            job = self.store.jobs.get(each.id)
            if job is not None and job.token != each.token and job.lane is not None:
                self.store.limits.count(job, -1)
        return await super().settle(settlements)


@broken
class FreesASlotWhenAskedToStop(MemoryBackend):
    """Gives the slot of a cancelled job away while it still runs."""

    async def cancel(self, ids):
        for job in _running(self.store):
            if job.id in ids and job.lane is not None and not job.cancel_requested:
                self.store.limits.count(job, -1)
        return await super().cancel(ids)


@broken
class CountsOnlyWhatStartedUnderTheLimit(MemoryBackend):
    async def limits(self, changes=(), *, about=None):
        running = dict(self.store.limits.running)
        answer = await super().limits(changes, about=about)
        if changes:
            self.store.limits.running.clear()
            self.store.limits.running.update(running)
        return answer


# ---- rates -----------------------------------------------------------------------------------------------


@broken
class TakesATokenForAnEmptyClaim(MemoryBackend):
    async def claim(self, *args):
        claimed = await super().claim(*args)
        limits, now_ms = self.store.limits, self.store.clock.now_ms()
        for (job_type, key), limit in limits.by_name.items():
            if not claimed and limit.rate is not None and key is None:
                full_at_ns = limits._full_at_ns.get((job_type, None), 0)
                if memory_lanes.tokens(limit, full_at_ns, now_ms) > 0:
                    limits._full_at_ns[job_type, None] = memory_lanes.take(limit, full_at_ns, now_ms, 1)
        return claimed


@broken
class ForgetsTheBucketAtEachClaim(MemoryBackend):
    async def claim(self, *args):
        self.store.limits._full_at_ns.clear()
        return await super().claim(*args)


@broken
class TakesTheRateForTheBurst(MemoryBackend):
    async def limits(self, changes=(), *, about=None):
        changes = [msgspec.structs.replace(each, burst=each.burst or each.rate) for each in changes]
        return await super().limits(changes, about=about)


@broken
class CountsEachClaimThatARateHoldsBack(MemoryBackend):
    """An idle worker that polls would count for ever."""

    async def claim(self, *args):
        self._rate_limited._opens_at_ms.clear()
        return await super().claim(*args)


@broken
class CountsARateThatIsSpentThoughNothingWaits(MemoryBackend):
    async def claim(self, *args):
        claimed = await super().claim(*args)
        for job in claimed:
            for limit in await self.limits(about=(job.type, job.key)):
                if limit.opens_in_ms:
                    self._rate_limited.note_type(job.type, self.store.clock.now_ms() + limit.opens_in_ms)
        return claimed


@broken
class NeverSaysWhenARateOpens(MemoryBackend):
    """A tick that knows only of delayed jobs: a limited queue sleeps until somebody polls."""

    async def tick(self, limit, keep):
        self.store.openings.clear()
        ticked: Ticked = await super().tick(limit, keep)
        return ticked


# ---- whom a limit holds ----------------------------------------------------------------------------------


def _as_whole(changes):
    return [msgspec.structs.replace(each, key=None) for each in changes]


@broken
class TakesALimitOfAKeyForOneOfTheType(MemoryBackend):
    async def limits(self, changes=(), *, about=None):
        return await super().limits(_as_whole(changes), about=about)


@broken
class LetsAllKeysShareOneLimit(MemoryBackend):
    """`EACH_KEY` as the sum over all keys."""

    async def claim(self, queues, limit, lease_ms, worker):
        each = {job_type for job_type, key in self.store.limits.by_name if key == EACH_KEY}
        keys = Counter(job.type for job in _running(self.store) if job.key is not None)
        for job in self.store.jobs.values():
            if job.type in each and job.key is not None:
                self.store.limits.running[job.type, job.key] = keys[job.type]
        return await super().claim(queues, limit, lease_ms, worker)


@broken
class LimitsEachQueueForItself(MemoryBackend):
    async def claim(self, queues, limit, lease_ms, worker):
        claimed = []
        counted = dict(self.store.limits.running)
        for queue in queues:
            here = Counter(job.type for job in _running(self.store) if job.queue == queue)
            self.store.limits.running.update({name: here[name] for name in counted if isinstance(name, str)})
            claimed += await super().claim([queue], limit - len(claimed), lease_ms, worker)
        total = Counter(job.type for job in _running(self.store))
        self.store.limits.running.update({name: total[name] for name in counted if isinstance(name, str)})
        return claimed


@broken
class LimitsOnlyWhatComesLater(MemoryBackend):
    """The lane of a job is chosen when it is enqueued, and a new limit finds nobody in it."""

    async def claim(self, *args):
        for job in self.store.jobs.values():
            job.lane_of = self.store.limits.changes
        return await super().claim(*args)


@broken
class StopsAtTheFirstThatIsHeldBack(MemoryBackend):
    """A claim that looks at the head of the queue only: a limited type holds up all others."""

    async def claim(self, queues, limit, lease_ms, worker):
        heads = []
        for queue in queues:
            pending = [job for job in self.store.jobs.values() if job.queue == queue and job.state is State.PENDING]
            head = min(pending, key=lambda job: job.place, default=None)
            limits = self.store.limits.of(head.type, head.key) if head is not None else []
            now_ms = self.store.clock.now_ms()
            if all(self.store.limits.free(one, name, now_ms)[0] > 0 for one, name in limits):
                heads.append(queue)
        return await super().claim(heads, limit, lease_ms, worker)


@broken
class LetsCodeOverrideAnOperator(MemoryBackend):
    async def limits(self, changes=(), *, about=None):
        for each in changes:
            old = self.store.limits.by_name.get((each.type, each.key))
            if old is not None:
                self.store.limits.by_name[each.type, each.key] = msgspec.structs.replace(old, source="app")
        return await super().limits(changes, about=about)


@broken
class TakesHalfOfTheLimitsOfARefusedCall(MemoryBackend):
    async def limits(self, changes=(), *, about=None):
        answer = await super().limits(about=about)
        for each in changes:
            answer = await super().limits([each], about=about)
        return answer


@broken
class DropsLimitsOfTypesNobodyHas(MemoryBackend):
    async def tick(self, limit, keep):
        types = {job.type for job in self.store.jobs.values()}
        for name in [name for name in self.store.limits.by_name if name[0] not in types]:
            del self.store.limits.by_name[name]
        return await super().tick(limit, keep)


# ---- fair turns and capacity -----------------------------------------------------------------------------


@broken
class KnowsNoTurns(MemoryBackend):
    """Keys share a queue first come, first served."""

    async def enqueue(self, specs):
        fair, memory_store.fair_turn = memory_store.fair_turn, lambda ready_at_ms, front_ms, last_ms: ready_at_ms
        try:
            return await super().enqueue(specs)
        finally:
            memory_store.fair_turn = fair


@broken
class NeverStartsTurnsAfresh(MemoryBackend):
    """The front of a queue outlives the last keyed job: who comes later stands behind the past."""

    async def enqueue(self, specs):
        for queue, lanes in self.store.lanes.items():
            if lanes.front_ms is None:
                lanes.front_ms = _fronts.get((id(self.store), queue))
        return await super().enqueue(specs)

    async def claim(self, queues, limit, lease_ms, worker):
        claimed = await super().claim(queues, limit, lease_ms, worker)
        for job in claimed:
            name = (id(self.store), job.queue)
            turn_ms = self.store.jobs[job.id].place[0] - job.priority * memory_lanes.AGEING_MS
            _fronts[name] = max(_fronts.get(name, 0), turn_ms)
        return claimed


_fronts: dict[tuple[int, str], int] = {}


@broken
class TakesOneTooMany(MemoryBackend):
    """A capacity that is compared before the job is counted."""

    async def queues(self, changes=()):
        more = [msgspec.structs.replace(each, capacity=each.capacity and each.capacity + 1) for each in changes]
        answer = await super().queues(more)
        return {
            name: msgspec.structs.replace(each, capacity=each.capacity and each.capacity - 1)
            for name, each in answer.items()
        }


@broken
class StoresWhatFits(MemoryBackend):
    """An enqueue that fills the queue before it refuses."""

    async def enqueue(self, specs):
        answers = []
        for spec in specs:
            answers += await super().enqueue([spec])
        return answers


@broken
class CountsWaitingJobsAsRoomTaken(MemoryBackend):
    def __init__(self, *args):
        super().__init__(*args)
        self.store._takes_room = lambda spec: True


@broken
class RefusesFollowUpsOfAFullQueue(MemoryBackend):
    """Drops silently what a job enqueues at its end."""

    async def settle(self, settlements):
        def fits(spec):
            settings = self.store.settings.get(spec.queue)
            lanes = self.store.lanes.get(spec.queue)
            return not (settings and settings.capacity and lanes and lanes.count >= settings.capacity)

        kept = [
            msgspec.structs.replace(each, follow_ups=tuple(spec for spec in each.follow_ups if fits(spec)))
            for each in settlements
        ]
        return await super().settle(kept)
