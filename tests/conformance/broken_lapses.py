"""Backends that break one rule of naming lapses."""

from __future__ import annotations

import msgspec

from packhorse.backends.base import Lapse
from packhorse.backends.memory import MemoryBackend
from packhorse.job import TERMINAL, State

from .broken_on_the_way import broken

replace = msgspec.structs.replace


@broken
class TicksWithoutNames(MemoryBackend):
    async def tick(self, limit, keep):
        return replace(await super().tick(limit, keep), lapses=())


@broken
class RetiresWithoutNames(MemoryBackend):
    async def retire(self, worker, reason):
        lapses = await super().retire(worker, reason)
        return [replace(lapse, id="") for lapse in lapses]


@broken
class NamesEndsOnly(MemoryBackend):
    """A tick that names what failed or was cancelled, and not what runs again."""

    async def tick(self, limit, keep):
        ticked = await super().tick(limit, keep)
        return replace(ticked, lapses=tuple(lapse for lapse in ticked.lapses if lapse.state is not State.PENDING))


@broken
class NamesTheStateBefore(MemoryBackend):
    """A lapse that is named as one that runs again, whatever became of it."""

    async def retire(self, worker, reason):
        return [replace(lapse, state=State.PENDING) for lapse in await super().retire(worker, reason)]


@broken
class SaysFailedOfWhatWasCancelled(MemoryBackend):
    async def tick(self, limit, keep):
        ticked = await super().tick(limit, keep)
        lapses = [replace(one, state=State.FAILED) if one.state in TERMINAL else one for one in ticked.lapses]
        return replace(ticked, lapses=tuple(lapses))


@broken
class NamesTheNextAttempt(MemoryBackend):
    async def tick(self, limit, keep):
        ticked = await super().tick(limit, keep)
        return replace(ticked, lapses=tuple(replace(one, attempt=one.attempt + 1) for one in ticked.lapses))


@broken
class NamesAgainUntilSomebodyElseTicks(MemoryBackend):
    """A tick that reads what lapsed from the store: two who tick both find it."""

    async def tick(self, limit, keep):
        ticked = await super().tick(limit, keep)
        before = getattr(self.store, "named_before", ())
        self.store.named_before = ticked.lapses
        return replace(ticked, lapses=ticked.lapses or before)


@broken
class NamesTheChildrenToo(MemoryBackend):
    """A tick that names everything that it ended."""

    async def tick(self, limit, keep):
        before = {job.id for job in self.store.jobs.values() if job.state in TERMINAL}
        ticked = await super().tick(limit, keep)
        named = {lapse.id for lapse in ticked.lapses}
        more = [
            Lapse(id=job.id, queue=job.queue, type=job.type, attempt=0, max_attempts=1, state=job.state)
            for job in self.store.jobs.values()
            if job.state in TERMINAL and job.id not in before and job.id not in named
        ]
        return replace(ticked, lapses=(*ticked.lapses, *more))


@broken
class NamesOnlyWhatIsKept(MemoryBackend):
    """A tick that looks its lapses up after it dropped what is old."""

    async def tick(self, limit, keep):
        ticked = await super().tick(limit, keep)
        return replace(ticked, lapses=tuple(lapse for lapse in ticked.lapses if lapse.id in self.store.jobs))


@broken
class NamesTheFirstFewOnly(MemoryBackend):
    async def tick(self, limit, keep):
        ticked = await super().tick(limit, keep)
        return replace(ticked, lapses=ticked.lapses[:2])
