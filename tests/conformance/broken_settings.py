"""Backends that break one rule of unique windows, steps and schedules."""

from __future__ import annotations

import msgspec

from packhorse.backends.base import Verdict
from packhorse.backends.memory import MemoryBackend
from packhorse.backends.memory_store import MemoryStore
from packhorse.job import State, Unique

from .broken_on_the_way import broken
from .broken_structure import WithStore

# ---- unique windows --------------------------------------------------------------------------------------


@broken
class ForgetsWindows(MemoryBackend):
    async def enqueue(self, specs):
        plain = [
            msgspec.structs.replace(spec, unique=msgspec.structs.replace(spec.unique, for_ms=0))
            if spec.unique
            else spec
            for spec in specs
        ]
        return await super().enqueue(plain)


@broken
class CountsAWindowFromTheEnd(WithStore):
    def holder(self, slot, now_ms):
        job = self.store.jobs.get(self.store.unique.get(slot, ""))
        if job is not None and job.finished_at_ms is not None and job.unique_spec is not None:
            return job.id if now_ms < job.finished_at_ms + job.unique_spec.for_ms else None
        return MemoryStore.holder(self.store, slot, now_ms)


@broken
class HoldsInAllStates(MemoryBackend):
    """Any job that has not ended holds its key, whatever states it named."""

    async def enqueue(self, specs):
        states = Unique(key="").states
        plain = [
            msgspec.structs.replace(spec, unique=msgspec.structs.replace(spec.unique, states=states))
            if spec.unique
            else spec
            for spec in specs
        ]
        return await super().enqueue(plain)


@broken
class ReplacesAndLeavesTwo(MemoryBackend):
    """The newcomer gets the key and the old holder runs as well."""

    async def enqueue(self, specs):
        for spec in specs:
            holder = self.store.unique.get((spec.queue, spec.unique.key), "") if spec.unique else ""
            job = self.store.jobs.get(holder)
            replaces = spec.unique is not None and spec.unique.on_conflict == "replace" and spec.id != holder
            if replaces and job is not None and job.state is State.PENDING and spec.id not in self.store.jobs:
                del self.store.unique[spec.queue, spec.unique.key]
        return await super().enqueue(specs)


@broken
class ReplacesWhatRuns(MemoryBackend):
    async def enqueue(self, specs):
        for spec in specs:
            holder = self.store.unique.get((spec.queue, spec.unique.key), "") if spec.unique else ""
            job = self.store.jobs.get(holder)
            if spec.unique and spec.unique.on_conflict == "replace" and job is not None and job.state is State.RUNNING:
                del self.store.unique[spec.queue, spec.unique.key]
        return await super().enqueue(specs)


# ---- steps -----------------------------------------------------------------------------------------------


@broken
class KeepsStepsOfStaleTokens(MemoryBackend):
    async def heartbeat(self, worker, lease_ms, notes=()):
        for note in notes:
            job = self.store.jobs.get(note.id)
            if job is not None and note.step is not None:
                job.steps = {**(job.steps or {}), note.step: note.result}
        return await super().heartbeat(worker, lease_ms, notes)


@broken
class LosesStepsAtARetry(MemoryBackend):
    def _apply(self, job, settlement, now_ms, topics):
        if settlement.state is State.SCHEDULED:
            job.steps = None
        super()._apply(job, settlement, now_ms, topics)


@broken
class KeepsStepsForAnotherPayload(MemoryBackend):
    def _rerun_one(self, request, now_ms, topics):
        job = self.store.jobs.get(request.id)
        steps = job.steps if job is not None else None
        answer = super()._rerun_one(request, now_ms, topics)
        if job is not None:
            job.steps = steps
        return answer


@broken
class AcknowledgesStepsBeforeTheyAreKept(MemoryBackend):
    """Keeps the steps of a heartbeat with the next one: a crash between loses what was acknowledged."""

    async def heartbeat(self, worker, lease_ms, notes=()):
        late, self._late = getattr(self, "_late", []), [note for note in notes if note.step is not None]
        return await super().heartbeat(worker, lease_ms, [*late, *(note for note in notes if note.step is None)])


# ---- schedules -------------------------------------------------------------------------------------------


@broken
class FiresWithoutTheGuard(MemoryBackend):
    """Two workers that planned the same slot both fire it."""

    async def fire(self, firings):
        now = self.store.schedules
        return await super().fire(
            [
                msgspec.structs.replace(each, revision=now[each.name].revision, done_ms=now[each.name].done_ms)
                if each.name in now
                else each
                for each in firings
            ]
        )


@broken
class StoresTheJobsOfStaleFirings(MemoryBackend):
    async def fire(self, firings):
        verdicts = await super().fire(firings)
        for each, verdict in zip(firings, verdicts, strict=True):
            if verdict is Verdict.STALE:
                await self.enqueue(each.specs)
        return verdicts


@broken
class StoresTheJobOfASlotTwice(MemoryBackend):
    """Gives a job that is there already a second life under its id."""

    async def fire(self, firings):
        for each in firings:
            for spec in each.specs:
                job = self.store.jobs.get(spec.id)
                if job is not None and job.state is not State.RUNNING:
                    await self.delete([spec.id])
        return await super().fire(firings)


@broken
class ForgetsTheJobsOfASlot(MemoryBackend):
    async def fire(self, firings):
        return await super().fire([msgspec.structs.replace(each, specs=()) for each in firings])


@broken
class FiresPausedSchedules(MemoryBackend):
    async def fire(self, firings):
        kept = self.store.schedules
        self.store.schedules = {name: msgspec.structs.replace(each, paused=False) for name, each in kept.items()}
        verdicts = await super().fire(firings)
        self.store.schedules = {
            name: msgspec.structs.replace(each, paused=kept[name].paused) for name, each in self.store.schedules.items()
        }
        return verdicts


@broken
class ResumesWithTheSlotsOfThePause(MemoryBackend):
    async def schedules(self, changes=()):
        old = dict(self.store.schedules)
        answer = await super().schedules(changes)
        for change in changes:
            if change.paused is False and change.name in old:
                stood = {"done_ms": old[change.name].done_ms, "next_ms": old[change.name].next_ms}
                self.store.schedules[change.name] = msgspec.structs.replace(self.store.schedules[change.name], **stood)
        return [self.store.schedules[each.name] for each in answer]


@broken
class DefinesAnewEachTime(MemoryBackend):
    """Every worker that starts throws away where the schedule stands."""

    async def schedules(self, changes=()):
        for change in changes:
            if change.define is not None:
                self.store.schedules.pop(change.name, None)
        return await super().schedules(changes)


@broken
class ChangesSchedulesOneByOne(MemoryBackend):
    async def schedules(self, changes=()):
        answer = await super().schedules(())
        for change in changes:
            answer = await super().schedules([change])
        return answer


@broken
class HandsOutSchedulesThatAreNotDue(MemoryBackend):
    async def tick(self, limit, keep):
        ticked = await super().tick(limit, keep)
        return msgspec.structs.replace(ticked, schedules=tuple(self.store.schedules.values()))


@broken
class HandsOutEverySchedule(MemoryBackend):
    """A tick whose answer grows with the number of schedules."""

    async def tick(self, limit, keep):
        ticked = await super().tick(limit, keep)
        known = self.store.schedules.values()
        due = [each for each in known if not each.paused and (each.next_ms or 0) <= ticked.now_ms]
        return msgspec.structs.replace(ticked, schedules=tuple(due))


# ---- looking ---------------------------------------------------------------------------------------------


@broken
class IsNeverBrief(MemoryBackend):
    async def find(self, query):
        return await super().find(msgspec.structs.replace(query, brief=False))


@broken
class CountsOtherWorkflows(MemoryBackend):
    async def find(self, query):
        return await super().find(msgspec.structs.replace(query, workflow=None))
