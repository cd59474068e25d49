"""Backends that break one rule of `changes`."""

from __future__ import annotations

from packhorse.backends.base import CHANGES_KEPT_MS, Changes
from packhorse.backends.memory import MemoryBackend
from packhorse.backends.memory_changes import ChangeLog

from .broken_on_the_way import broken


def silently(backend: MemoryBackend) -> ChangeLog:
    """Let a store tell nothing until the log that is answered is put back."""
    log = backend.store.log
    backend.store.log = ChangeLog(backend.store.clock)
    return log


@broken
class TellsOnlyOneWhoAsks(MemoryBackend):
    """A log that is emptied by whoever reads it."""

    async def changes(self, cursor=None):
        found = await super().changes(cursor)
        self.store.log._latest.clear()
        return found


@broken
class TellsNothingOfTheDropped(MemoryBackend):
    async def tick(self, limit, keep):
        gone = self.store.log.tell
        self.store.log.tell = lambda job_id, state: state is None or gone(job_id, state)
        try:
            return await super().tick(limit, keep)
        finally:
            del self.store.log.tell


@broken
class TellsNothingOfChildren(MemoryBackend):
    """Only the job that a settlement names."""

    async def settle(self, settlements):
        named = {one.id for one in settlements} | {spec.id for one in settlements for spec in one.follow_ups}
        told = self.store.log.tell
        self.store.log.tell = lambda job_id, state: job_id not in named or told(job_id, state)
        try:
            return await super().settle(settlements)
        finally:
            del self.store.log.tell


@broken
class TellsWhatWasRefused(MemoryBackend):
    """Written down before it was decided."""

    async def enqueue(self, specs):
        answers = await super().enqueue(specs)
        for spec, answer in zip(specs, answers, strict=True):
            if not answer.created:
                self.store.log.tell(spec.id, self.store.jobs[answer.id].state)
        return answers


@broken
class TellsNothingOfRetirements(MemoryBackend):
    async def retire(self, worker, reason):
        log = silently(self)
        try:
            return await super().retire(worker, reason)
        finally:
            self.store.log = log


@broken
class HidesGaps(MemoryBackend):
    """An answer without changes, as if nothing had happened."""

    async def changes(self, cursor=None):
        found = await super().changes(cursor)
        return Changes(found.changes, found.cursor)


@broken
class ForgetsEarly(MemoryBackend):
    """A log that ends after a part of the time it is promised for."""

    async def changes(self, cursor=None):
        found = await super().changes(cursor)
        self.store.log._until_ms -= CHANGES_KEPT_MS // 2
        return found


@broken
class BelievesAnyCursor(MemoryBackend):
    """A cursor of another store is taken for one of this."""

    async def changes(self, cursor=None):
        if cursor is not None and len(cursor.split(".")) == 2:
            cursor = f"{self.store.log._name}.{cursor.split('.')[1]}"
        return await super().changes(cursor)


@broken
class TellsStatesInTheWrongOrder(MemoryBackend):
    async def changes(self, cursor=None):
        found = await super().changes(cursor)
        return Changes(sorted(found.changes, key=lambda one: (one.id, str(one.state))), found.cursor, found.gap)


@broken
class TellsTheLastOnceMore(MemoryBackend):
    """Off by one: the change that the cursor stands at is told again."""

    async def changes(self, cursor=None):
        if cursor is not None and cursor.count(".") == 1 and cursor.rpartition(".")[2].isdigit():
            name, _, count = cursor.rpartition(".")
            cursor = f"{name}.{max(0, int(count) - 1)}"
        return await super().changes(cursor)
