"""What moved, of the memory backend: written down while somebody asks for it. The caller holds the store's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from itertools import islice
from typing import TYPE_CHECKING

from ..clock import Clock
from ..job import State
from .base import CHANGES_KEPT_MS, CHANGES_MAX, Backend, Change, Changes
from .following import new_log, read_mark, write_mark

if TYPE_CHECKING:
    from .memory_store import MemoryStore


class ChangeLog:
    """The latest changes. Nothing is kept while nobody asks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._name = ""  # empty: nobody asks
        self._until_ms = 0
        self._count = 0  # of changes since this log began
        self._latest: deque[Change] = deque(maxlen=CHANGES_MAX)  # who is further behind begins anew
        self.arriving: Container[str] = ()  # ids of jobs that are just taken over from another store

    def tell(self, job_id: str, state: State | None) -> None:
        """Write a move down. The store may be looked at by others only once its verb is done."""
        if not self._name or job_id in self.arriving:
            return
        now_ms = self._clock.now_ms()
        if now_ms > self._until_ms:
            self._end()
            return
        self._count += 1
        self._latest.append(Change(job_id, state, now_ms))

    def since(self, cursor: str | None) -> Changes:
        """Answer what was told since a cursor, and go on for a while."""
        now_ms = self._clock.now_ms()
        if self._name and now_ms > self._until_ms:
            self._end()
        if not self._name:
            self._name = new_log()
        self._until_ms = now_ms + CHANGES_KEPT_MS
        here = write_mark(self._name, self._count)
        if cursor is None:
            return Changes([], here)
        mark = read_mark(cursor)
        if mark is None or mark.log != self._name or not 0 <= self._count - mark.upto <= CHANGES_MAX:
            return Changes([], here, gap=True)
        behind = self._count - mark.upto
        return Changes(list(islice(self._latest, len(self._latest) - behind, None)), here)

    def _end(self) -> None:
        self._name = ""
        self._count = 0
        self._latest.clear()


class ChangesVerb(Backend):
    """The verb that tells what changed."""

    store: MemoryStore

    async def changes(self, cursor: str | None = None) -> Changes:
        with self.store.lock:
            return self.store.log.since(cursor)
