"""Broken on purpose: parents and children, schedules and their tickers, durable steps of workers."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from packhorse.backends.base import Lapse
from packhorse.backends.memory import MemoryBackend
from packhorse.errors import PackhorseError, Unavailable
from packhorse.job import TERMINAL, State
from packhorse.steps import Steps
from packhorse.worker.steps import StepKeeper
from packhorse.worker.ticker import Ticker, _batches

# ---- families ------------------------------------------------------------------------------------------------


class FreesByCounting(MemoryBackend):
    """Counts parents down, and a settlement that is repeated counts as well."""

    async def settle(self, settlements):
        for item in settlements:
            job = self.store.jobs.get(item.id)
            if job is None or job.state not in TERMINAL:
                continue
            for child_id in job.children:
                child = self.store.jobs[child_id]
                if child.state is State.WAITING and child.waiting_on:
                    self.store._parent_ended(child, min(child.waiting_on), State.SUCCEEDED, self.store.clock.now_ms())
        return await super().settle(settlements)


class FreesAChildTwice(MemoryBackend):
    """Frees the children of a job whenever its end is told, whatever has become of them."""

    async def settle(self, settlements):
        store = self.store
        for item in settlements:
            job = store.jobs.get(item.id)
            if job is None or job.state is not State.SUCCEEDED:
                continue
            for child in [store.jobs[child_id] for child_id in job.children]:
                if child.state is State.RUNNING and not child.cancel_requested:
                    store.let_go(child)
                    store.make_ready(child, store.clock.now_ms())
        return await super().settle(settlements)


class FreesChildrenOfFailedParents(MemoryBackend):
    """An end is an end: the policy of the child is not asked."""

    def __init__(self, store) -> None:
        super().__init__(store)
        ended = store._parent_ended
        store._parent_ended = lambda child, parent, state, now_ms: ended(child, parent, State.SUCCEEDED, now_ms)


class StartsWithTheFirstParent(MemoryBackend):
    """A child starts when the first of its parents has ended."""

    def __init__(self, store) -> None:
        super().__init__(store)
        ended = store._parent_ended

        def first(child, parent, state, now_ms) -> None:
            if child is not None and parent in child.waiting_on:
                child.waiting_on &= {parent}
            ended(child, parent, state, now_ms)

        store._parent_ended = first


class _ForgetsChildren(MemoryBackend):
    """Ends a job without telling its children."""

    def forget_children(self) -> None:
        self.store.unserved.clear()


class ForgetsChildrenOnLapse(_ForgetsChildren):
    """A job whose last attempt lapsed fails, and its children wait for ever."""

    def __init__(self, store) -> None:
        super().__init__(store)
        lapse = store.lapse

        def forget(job, reason, now_ms) -> Lapse:
            lapsed = lapse(job, reason, now_ms)
            if job.state in TERMINAL:
                self.forget_children()
            return lapsed

        store.lapse = forget


class ForgetsChildrenOnCancel(_ForgetsChildren):
    """Children of a job that was cancelled before it started wait for ever."""

    async def cancel(self, ids):
        serve, self.store.serve = self.store.serve, lambda now_ms, budget=0: 0
        try:
            return await super().cancel(ids)
        finally:
            self.store.serve = serve
            self.forget_children()


class ForgetsChildrenOnReplace(_ForgetsChildren):
    """Children of a job whose unique key went to another wait for ever."""

    async def enqueue(self, specs):
        serve, self.store.serve = self.store.serve, lambda now_ms, budget=0: 0
        try:
            return await super().enqueue(specs)
        finally:
            self.store.serve = serve
            self.forget_children()


class ForgetsChildrenOnDelete(_ForgetsChildren):
    """Children of a job that was deleted wait for ever."""

    async def delete(self, ids):
        serve, self.store.serve = self.store.serve, lambda now_ms, budget=0: 0
        try:
            return await super().delete(ids)
        finally:
            self.store.serve = serve
            self.forget_children()


class RevivesNobody(MemoryBackend):
    """A rerun of a failed parent leaves the children cancelled that were cancelled because of it."""

    def __init__(self, store) -> None:
        super().__init__(store)
        store.revive_children = lambda parent, now_ms: None


class RevivesWhatWasCancelledOnPurpose(MemoryBackend):
    """A rerun of a parent brings back children that an operator had cancelled."""

    def __init__(self, store) -> None:
        super().__init__(store)
        revive = store.revive_children

        def all_of_them(parent, now_ms) -> None:
            for child_id in parent.children:
                child = store.jobs.get(child_id)
                if child is not None and child.state is State.CANCELLED:
                    child.held_by = parent.id
            revive(parent, now_ms)

        store.revive_children = all_of_them


class RerunsChildrenBeforeTheirParents(MemoryBackend):
    """A rerun makes a job pending, whoever it has to wait for."""

    def _rerun_one(self, request, now_ms, topics):
        wait, self.store.wait_for_parents = self.store.wait_for_parents, lambda job: False
        self.store.revive_children, revive = (lambda parent, now_ms: None), self.store.revive_children
        try:
            answer = super()._rerun_one(request, now_ms, topics)
        finally:
            self.store.wait_for_parents, self.store.revive_children = wait, revive
        if request.id in self.store.jobs:
            revive(self.store.jobs[request.id], now_ms)
        return answer


class DropsParentsOfLiveChildren(MemoryBackend):
    """Keeps an ended job for its time, whoever may still ask for it."""

    def __init__(self, store) -> None:
        super().__init__(store)
        store.has_live_child = lambda job: False


class DropsTooEarly(MemoryBackend):
    """Counts the time a job is kept from when it was stored."""

    async def tick(self, limit, keep):
        for ended in self.store.ended.values():
            for index, (_, job_id) in enumerate(ended):
                job = self.store.jobs.get(job_id)
                if job is not None and job.state in TERMINAL:
                    job.finished_at_ms = job.created_at_ms
                    ended[index] = (job.created_at_ms, job_id)
        return await super().tick(limit, keep)


# ---- schedules -----------------------------------------------------------------------------------------------


class FiresWithoutAGuard(MemoryBackend):
    """Takes any firing, wherever the schedule stands by now."""

    async def fire(self, firings):
        schedules = self.store.schedules
        return await super().fire(
            [
                msgspec.structs.replace(one, revision=schedules[one.name].revision, done_ms=schedules[one.name].done_ms)
                if one.name in schedules
                else one
                for one in firings
            ]
        )


class FiresWithoutItsRevision(MemoryBackend):
    """Looks at the cursor alone: what was planned from an older definition is fired."""

    async def fire(self, firings):
        schedules = self.store.schedules
        return await super().fire(
            [
                msgspec.structs.replace(one, revision=schedules[one.name].revision) if one.name in schedules else one
                for one in firings
            ]
        )


class FiresWhilePaused(MemoryBackend):
    """Looks at the pause when it hands a schedule out, not when it is fired."""

    async def fire(self, firings):
        before = self.store.schedules
        self.store.schedules = {
            name: msgspec.structs.replace(one, paused=False) for name, one in self.store.schedules.items()
        }
        try:
            return await super().fire(firings)
        finally:
            for name, one in self.store.schedules.items():
                self.store.schedules[name] = msgspec.structs.replace(one, paused=before[name].paused)


class FiresAndForgetsTheCursor(MemoryBackend):
    """Two writes: the jobs are stored, and a crash of the server comes before the cursor is."""

    crashed = False

    def on_crash(self) -> None:
        self.crashed = True

    async def fire(self, firings):
        before = dict(self.store.schedules)
        verdicts = await super().fire(firings)
        if self.crashed:
            self.crashed = False
            self.store.schedules = before
        return verdicts


class ResumesWhereItStopped(MemoryBackend):
    """A restart goes on with the slots of the pause."""

    async def schedules(self, changes=()):
        done_ms = {name: one.done_ms for name, one in self.store.schedules.items() if one.paused}
        answer = await super().schedules(changes)
        if not any(change.paused is False for change in changes):
            return answer
        for name, one in self.store.schedules.items():
            if name in done_ms and not one.paused:
                self.store.schedules[name] = msgspec.structs.replace(one, done_ms=done_ms[name])
        return list(self.store.schedules.values())


class LetsSlotsOverlap(MemoryBackend):
    """Does not ask whether the job of the slot before is still alive."""

    async def fire(self, firings):
        return await super().fire(
            [
                msgspec.structs.replace(
                    one, specs=tuple(msgspec.structs.replace(spec, unique=None) for spec in one.specs)
                )
                for one in firings
            ]
        )


class FiresRemovedSchedules(MemoryBackend):
    """Stores the jobs of a firing though its schedule was removed."""

    async def fire(self, firings):
        verdicts = await super().fire(firings)
        for one in firings:
            if one.name not in self.store.schedules:
                self.store.add(one.specs, self.store.clock.now_ms())
        return verdicts


STRUCTURE_STORES = [
    FreesByCounting, FreesAChildTwice, FreesChildrenOfFailedParents, StartsWithTheFirstParent, ForgetsChildrenOnLapse,
    ForgetsChildrenOnCancel, ForgetsChildrenOnReplace, ForgetsChildrenOnDelete, RevivesNobody,
    RevivesWhatWasCancelledOnPurpose, RerunsChildrenBeforeTheirParents, DropsParentsOfLiveChildren, DropsTooEarly,
    FiresWithoutAGuard, FiresWithoutItsRevision,
    FiresWhilePaused, FiresAndForgetsTheCursor, ResumesWhereItStopped, LetsSlotsOverlap, FiresRemovedSchedules,
]  # fmt: skip

# ---- tickers -------------------------------------------------------------------------------------------------


def plans_with_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due is told by this machine's clock, which somebody sets."""
    plan = Ticker._plan
    monkeypatch.setattr(
        Ticker, "_plan", lambda self, schedule, now_ms, crowded: plan(self, schedule, self._clock.now_ms(), crowded)
    )


def fires_again_with_fresh_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firing whose reply is lost is made good by enqueueing its jobs, under new ids."""

    async def fire(self, ticked) -> bool:
        planned = [self._plan(schedule, ticked.now_ms, False) for schedule in ticked.schedules]
        firings = [firing for firing in planned if firing is not None]
        for batch in _batches(firings):
            try:
                await self._backend.fire(batch)
            except Unavailable:
                specs = [spec for firing in batch for spec in firing.specs]
                ids = self._chance.ids(ticked.now_ms, len(specs))
                await self._backend.enqueue(
                    [
                        msgspec.structs.replace(spec, id=job_id, unique=None)
                        for spec, job_id in zip(specs, ids, strict=True)
                    ]
                )
        return bool(firings)

    monkeypatch.setattr(Ticker, "_fire", fire)


def fires_one_slot_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes good the first slot that was missed, and passes over the others."""
    plan = Ticker._plan

    def first(self, schedule, now_ms, crowded):
        firing = plan(self, schedule, now_ms, crowded)
        return None if firing is None else msgspec.structs.replace(firing, specs=firing.specs[:1])

    monkeypatch.setattr(Ticker, "_plan", first)


def makes_good_what_it_should_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slot that was missed is made good, whatever the policy says."""
    plan = Ticker._plan

    def every(self, schedule, now_ms, crowded):
        return plan(self, msgspec.structs.replace(schedule, missed="all"), now_ms, crowded)

    monkeypatch.setattr(Ticker, "_plan", every)


def looks_at_schedules_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ticker plans what it finds when it starts, and nothing that is defined later."""
    fire = Ticker._fire

    async def once(self, ticked) -> bool:
        known = self.__dict__.setdefault("known", frozenset(one.name for one in ticked.schedules))
        rest = tuple(one for one in ticked.schedules if one.name in known)
        return await fire(self, msgspec.structs.replace(ticked, schedules=rest))

    monkeypatch.setattr(Ticker, "_fire", once)


# ---- steps ---------------------------------------------------------------------------------------------------


def answers_a_step_before_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler goes on while its step is on its way."""
    keep = StepKeeper.keep

    async def later(self, note) -> None:
        task = asyncio.get_running_loop().create_task(keep(self, note))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    monkeypatch.setattr(StepKeeper, "keep", later)


def takes_a_lost_call_for_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no answer comes, the step is believed to be kept."""
    send = StepKeeper._send

    async def hope(self, batch) -> None:
        try:
            await send(self, batch)
        except PackhorseError:
            for _, kept in batch:
                if not kept.done():
                    kept.set_result(None)

    monkeypatch.setattr(StepKeeper, "_send", hope)


def does_kept_steps_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new attempt does not look what the one before has done."""

    def nothing(self, record) -> None:
        self._kept = {}

    monkeypatch.setattr(Steps, "_take", nothing)


STRUCTURE_WORKERS = [
    plans_with_its_own_clock, fires_again_with_fresh_ids, fires_one_slot_of_many, makes_good_what_it_should_skip,
    looks_at_schedules_once, answers_a_step_before_it_is_kept, takes_a_lost_call_for_done, does_kept_steps_again,
]  # fmt: skip
