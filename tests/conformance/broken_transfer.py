"""Backends that break one rule of a move to another store."""

from __future__ import annotations

import msgspec

from packhorse.backends.base import Transfer
from packhorse.backends.memory import MemoryBackend
from packhorse.job import State

from .broken_on_the_way import broken


@broken
class LiveAtOnce(MemoryBackend):
    """A target that starts jobs while their source may still hand them to another target."""

    async def take_over(self, transfer=None):
        arrival = await super().take_over(transfer)
        if transfer is not None:
            await super().take_over(Transfer(source=transfer.source, number=transfer.number + 1))
        return arrival


@broken
class ForgetsWhatWasNotStored(MemoryBackend):
    """A source that believes a batch has arrived because the next one is asked for."""

    async def hand_over(self, to, limit, stored=None):
        self.store.transfers.departing = None
        return await super().hand_over(to, limit, stored)


@broken
class TakesALateBatch(MemoryBackend):
    """A target that does not remember how far a source is: a delayed message brings back what has ended since."""

    async def take_over(self, transfer=None):
        self.store.transfers.arrived.clear()
        return await super().take_over(transfer)


@broken
class ParentsFirst(MemoryBackend):
    """A source whose children may find at the target that their parent has come and gone."""

    async def hand_over(self, to, limit, stored=None):
        waiting = {job.id: job.seq for job in self.store.jobs.values() if job.state is State.WAITING}
        for job_id in waiting:
            self.store.jobs[job_id].seq += 10**6
            self.store.jobs[job_id].state = State.SCHEDULED
        transfer = await super().hand_over(to, limit, stored)
        for job_id, seq in waiting.items():
            if job_id in self.store.jobs:
                self.store.jobs[job_id].seq = seq
                self.store.jobs[job_id].state = State.WAITING
        return transfer


@broken
class ForgetsWhoLeft(MemoryBackend):
    """A source where an enqueue made again stores a job that runs at the target already."""

    async def hand_over(self, to, limit, stored=None):
        transfer = await super().hand_over(to, limit, stored)
        self.store.absent.clear()
        return transfer


@broken
class TakesNoOneForAParentToCome(MemoryBackend):
    """A target that starts a child because its parent is not there."""

    async def take_over(self, transfer=None):
        if transfer is not None:
            jobs = [msgspec.structs.replace(moved, parents={}) for moved in transfer.jobs]
            transfer = msgspec.structs.replace(transfer, jobs=tuple(jobs))
        return await super().take_over(transfer)


@broken
class WaitsForEverForAParentThatIsGone(MemoryBackend):
    async def take_over(self, transfer=None):
        if transfer is not None:
            transfer = msgspec.structs.replace(transfer, last=False)
        return await super().take_over(transfer)


@broken
class KeepsTheSchedule(MemoryBackend):
    """A schedule that is live in both stores."""

    async def hand_over(self, to, limit, stored=None):
        schedules = dict(self.store.schedules)
        transfer = await super().hand_over(to, limit, stored)
        self.store.schedules.update(schedules)
        return transfer


@broken
class CountsAttemptsAnew(MemoryBackend):
    async def take_over(self, transfer=None):
        for moved in transfer.jobs if transfer is not None else ():
            moved.record.attempt = 0
        return await super().take_over(transfer)
