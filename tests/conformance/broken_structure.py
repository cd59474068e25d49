"""Backends that break one rule of dependencies."""

from __future__ import annotations

import msgspec

from packhorse.backends.memory import MemoryBackend
from packhorse.backends.memory_store import MemoryStore
from packhorse.job import LIVE, State

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
            [
                msgspec.structs.replace(spec, after=tuple(name for name in spec.after if name != spec.id))
                for spec in specs
            ]
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
