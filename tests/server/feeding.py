"""A feed on a store that is watched, and listeners that keep what they hear, for the tests of the feed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from packhorse.backends.base import Backend, Changes, QueueCounts, Settlement
from packhorse.backends.memory import MemoryBackend
from packhorse.chance import CHANCE
from packhorse.errors import Unavailable
from packhorse.job import JobRecord, JobSpec, State
from packhorse.server.feed.events import Batch, Filter, Told
from packhorse.server.feed.following import Feed
from packhorse.server.feed.listeners import Listener

from ..worker.working import until


class Watched(MemoryBackend):
    """A store in memory that counts what it is asked, and is away or broken when told so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = self.counted = 0
        self.counted_at: list[float] = []
        self.away = False
        self.bug = False
        self.got: list[str] = []

    async def changes(self, cursor: str | None = None) -> Changes:
        self.asked += 1
        if self.away:
            raise Unavailable("the store is away")
        if self.bug:
            self.bug = False
            raise RuntimeError("a bug, on purpose")
        return await super().changes(cursor)

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        if self.away:
            raise Unavailable("the store is away")
        self.got += ids
        return await super().get(ids)

    async def counts(self) -> dict[str, QueueCounts]:
        self.counted += 1
        self.counted_at.append(asyncio.get_running_loop().time())
        return await super().counts()


class Hearer(Listener):
    """A listener that keeps what it hears."""

    def __init__(self, wanted: Filter | None = None, *, owner: str = "", after: str | None = None) -> None:
        super().__init__(wanted or Filter(), owner=owner, after=after)
        self.told: list[Told] = []
        self.gaps: list[str] = []
        self.counts: list[bytes] = []
        self.resumed = False
        self.ended = False

    def begin(self, mark: str | None, *, resumed: bool) -> None:
        super().begin(mark, resumed=resumed)
        self.resumed = resumed

    def take(self, batch: Batch) -> None:
        self.told += batch.events

    def gap(self, reason: str, mark: str | None) -> None:
        self.gaps.append(reason)

    def take_counts(self, text: bytes) -> None:
        self.counts.append(text)

    def end(self) -> None:
        self.ended = True

    def states(self, job_id: str) -> list[State | None]:
        return [told.event.state for told in self.told if told.event.id == job_id]

    def moves(self) -> list[tuple[str, State | None]]:
        return [(told.event.id, told.event.state) for told in self.told]


@asynccontextmanager
async def feeding(store: Backend) -> AsyncIterator[Feed]:
    """A feed of `store`, as one server has it."""

    async def opened() -> Backend:
        return store

    feed = Feed(opened, asyncio.Event(), CHANCE)
    try:
        yield feed
    finally:
        await feed.close()


async def joined(feed: Feed, hearer: Hearer) -> Hearer:
    feed.add(hearer)
    await until(lambda: hearer.began)
    return hearer


numbers = iter(range(10_000_000))


def spec(**options: Any) -> JobSpec:
    return JobSpec(id=options.pop("id", f"job-{next(numbers)}"), type=options.pop("type", "email"), **options)


async def run(store: Backend, job_id: str, state: State = State.SUCCEEDED, **end: Any) -> None:
    """Claim jobs until it is this one, and settle it."""
    for claimed in await store.claim(["default"], 1_000, 30_000, "worker-1"):
        if claimed.id == job_id:
            await store.settle([Settlement(id=claimed.id, token=claimed.token, state=state, **end)])
