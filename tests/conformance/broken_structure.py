"""Backends that break one rule of dependencies, unique windows, steps and schedules."""

from __future__ import annotations

import msgspec

from packhorse.backends.base import Verdict
from packhorse.backends.memory import MemoryBackend
from packhorse.backends.memory_store import MemoryStore
from packhorse.job import LIVE, State, Unique

from .broken_on_the_way import broken


def _waiting(store):
    return [job for job in store.jobs.values() if job.state is State.WAITING]


class WithStore(MemoryBackend):
    """Breaks a move of the store: each variant names the methods that it overrides there."""

    def __init__(self, store=None, clock=None):
        super().__init__(store)
        for name in vars(type(self)):
            if hasattr(MemoryStore, name) and not name.startswith("__"):
                setattr(self.store, name, getattr(self, name))


# ---- parents and children --------------------------------------------------------------------------------


@broken
class AcceptsUnknownParents(WithStore):
    """Takes a parent that is not there for one that has failed, as a follow-up does."""

    def refuse(self, specs, now_ms):
        known = {spec.id for spec in specs} | set(self.store.jobs)
        plain = [msgspec.structs.replace(spec, after=tuple(known.intersection(spec.after))) for spec in specs]
        MemoryStore.refuse(self.store, plain, now_ms)


@broken
class StoresHalfOfACallWithAnUnknownParent(MemoryBackend):
    """Stores what has no parents before it looks for those of the others."""

    async def enqueue(self, specs):
        if not any(spec.after for spec in specs):
            return await super().enqueue(specs)
        first = {each.id: each for each in await super().enqueue([spec for spec in specs if not spec.after])}
        return [first.get(each.id, each) for each in await super().enqueue(specs)]


@broken
class AcceptsCycles(MemoryBackend):
    """Takes a job that waits for itself: it waits for ever."""

    async def enqueue(self, specs):
        return await super().enqueue(
            [msgspec.structs.replace(spec, after=tuple(name for name in spec.after if name != spec.id)) for spec in specs]
        )


@broken
class StartsChildrenAtOnce(WithStore):
    def wait_for_parents(self, job):
        return False


@broken
class FreesAtTheFirstParent(WithStore):
    """A child is freed by any parent in place of the last."""

    def _parent_ended(self, child, parent, state, now_ms):
        if child is not None:
            child.waiting_on &= {parent}
        MemoryStore._parent_ended(self.store, child, parent, state, now_ms)


@broken
class CountsDownWithoutLooking(WithStore):
    """A number of parents that is left, with nobody's name on it: one that succeeds twice counts for two."""

    def _parent_ended(self, child, parent, state, now_ms):
        if child is not None and child.waiting_on and parent not in child.waiting_on:
            parent = min(child.waiting_on)
        MemoryStore._parent_ended(self.store, child, parent, state, now_ms)


@broken
class FreesRunningChildrenAgain(WithStore):
    """A child is freed whatever its state: the rerun of its parent starts it over."""

    def _parent_ended(self, child, parent, state, now_ms):
        if child is not None and child.state is State.RUNNING and state is State.SUCCEEDED:
            self.store.let_go(child)
            self.store.make_ready(child, now_ms)
        MemoryStore._parent_ended(self.store, child, parent, state, now_ms)


@broken
class ForgetsTheChildrenOfTheCancelled(MemoryBackend):
    """A cancel that ends the parent and tells nobody (FAILURES B23)."""

    async def cancel(self, ids):
        children = {job_id: self.store.jobs[job_id].children for job_id in ids if job_id in self.store.jobs}
        for job_id in children:
            self.store.jobs[job_id].children = {}
        answers = await super().cancel(ids)
        for job_id, kept in children.items():
            self.store.jobs[job_id].children = kept
        return answers


@broken
class ForgetsTheChildrenOfTheLapsed(MemoryBackend):
    async def tick(self, limit, keep):
        unserved = list(self.store.unserved)
        serve, self.store.serve = self.store.serve, lambda now_ms, budget=0: self.store.unserved.clear() or 0
        try:
            ticked = await super().tick(limit, keep)
        finally:
            self.store.serve = serve
        self.store.unserved.extend(unserved)
        return ticked


@broken
class ForgetsTheChildrenOfTheDeleted(WithStore):
    def forget(self, job, now_ms):
        job.children = {} if job.state in LIVE else job.children
        MemoryStore.forget(self.store, job, now_ms)


@broken
class KnowsNoPolicy(WithStore):
    """Cancels all children of a bad parent, also those that were to go on."""

    def _parent_ended(self, child, parent, state, now_ms):
        kept = child.after_failed if child is not None else ""
        if child is not None:
            child.after_failed = "cancel"
        MemoryStore._parent_ended(self.store, child, parent, state, now_ms)
        if child is not None:
            child.after_failed = kept


@broken
class CancelsOneGeneration(WithStore):
    """The children of a bad parent end, and theirs wait for ever."""

    def _cancel_for_parent(self, child, parent, state, now_ms):
        MemoryStore._cancel_for_parent(self.store, child, parent, state, now_ms)
        self.store.unserved = type(self.store.unserved)(each for each in self.store.unserved if each[0] != child.id)


@broken
class FreesOnlyTheFirstThousand(WithStore):
    """More children than one move takes: nobody comes back for the rest."""

    def serve(self, now_ms, budget=1_000):
        served = MemoryStore.serve(self.store, now_ms, budget)
        self.store.unserved.clear()
        return served


@broken
class FreesAllInOneMove(WithStore):
    def serve(self, now_ms, budget=1_000):
        return MemoryStore.serve(self.store, now_ms, 10**9)


@broken
class CancelsWithoutAWord(WithStore):
    def _cancel_for_parent(self, child, parent, state, now_ms):
        errors = child.errors
        MemoryStore._cancel_for_parent(self.store, child, parent, state, now_ms)
        child.errors = errors


@broken
class CountsTheDelayFromTheEnqueue(WithStore):
    def _parent_ended(self, child, parent, state, now_ms):
        waited = child is not None and child.state is State.WAITING
        MemoryStore._parent_ended(self.store, child, parent, state, now_ms)
        if waited and child.state is State.SCHEDULED:
            self.store.make_due(child, max(now_ms + 1, child.due_at_ms - (now_ms - child.created_at_ms)))


@broken
class DropsParentsOfLiveChildren(WithStore):
    """Retention that looks at the job alone: its result is gone when the child asks for it."""

    def has_live_child(self, job):
        return False


@broken
class NeverDropsAParent(WithStore):
    def has_live_child(self, job):
        return bool(job.children)


@broken
class RevivesNobody(WithStore):
    def revive_children(self, parent, now_ms):
        pass


@broken
class RevivesOneGeneration(WithStore):
    def revive_children(self, parent, now_ms):
        before = {job.id for job in _waiting(self.store)}
        MemoryStore.revive_children(self.store, parent, now_ms)
        for job in _waiting(self.store):
            if job.id not in before and parent.id not in job.after:
                self.store.end(job, State.CANCELLED, now_ms)


@broken
class RevivesTheCancelledByHand(WithStore):
    def revive_children(self, parent, now_ms):
        for child_id in parent.children:
            if child_id in self.store.jobs:
                self.store.jobs[child_id].held_by_parent = True
        MemoryStore.revive_children(self.store, parent, now_ms)


@broken
class RerunsWithoutWaiting(MemoryBackend):
    """A rerun that starts at once though a parent of it lives."""

    def _rerun_one(self, request, now_ms, topics):
        job = self.store.jobs.get(request.id)
        after = job.after if job is not None else ()
        if job is not None:
            job.after = ()
        answer = super()._rerun_one(request, now_ms, topics)
        if job is not None:
            job.after = after
        return answer


@broken
class KnowsParentsOnlyFromEarlierCalls(MemoryBackend):
    """Looks at the parents of a follow-up before the job itself has ended."""

    async def settle(self, settlements):
        kept = []
        for each in settlements:
            specs = tuple(
                msgspec.structs.replace(spec, after=tuple(name for name in spec.after if name != each.id))
                for spec in each.follow_ups
            )
            kept.append(msgspec.structs.replace(each, follow_ups=specs))
        return await super().settle(kept)


# ---- unique windows --------------------------------------------------------------------------------------


@broken
class ForgetsWindows(MemoryBackend):
    async def enqueue(self, specs):
        plain = [
            msgspec.structs.replace(spec, unique=msgspec.structs.replace(spec.unique, for_ms=0)) if spec.unique else spec
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
