"""Within its queues a scoped store is a store: every case of the contract, on a view that may use all queues."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from typing import Any, Self

import pytest

from packhorse.backends.base import Backend, Keep, Query
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.scoped import ScopedBackend
from packhorse.clock import ManualClock
from packhorse.testing.conformance import Case, Harness, cases
from packhorse.testing.conformance.case import run_on

from ..worker.working import work


class Everything(frozenset):  # type: ignore[type-arg]
    """All queues there are, as far as anybody has named them."""

    def __new__(cls) -> Self:
        made = super().__new__(cls)
        made.named = {"default"}
        return made

    def __contains__(self, queue: object) -> bool:
        assert isinstance(queue, str)
        self.named.update([queue] if queue else [])
        return bool(queue)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.named))

    def __len__(self) -> int:
        return 2  # never as if there were but one


class Wide(ScopedBackend):
    """Sees all queues, on the way of those who see several. What a scope may not do at all, the store does."""

    def __init__(self, inner: Backend, queues: Everything) -> None:
        super().__init__(inner, queues)
        self._suffix = ".wide"

    async def find(self, query: Query) -> Any:
        for queue in await self._inner.counts():
            assert queue in self._queues
        return await super().find(query)

    async def migrate(self) -> int:
        return await self._inner.migrate()

    async def tick(self, limit: int, keep: Keep) -> Any:
        return await self._inner.tick(limit, keep)

    async def limits(self, changes: Any = (), *, about: Any = None) -> Any:
        return await self._inner.limits(changes, about=about)

    async def _check_schedule_labels(self, specs: Any) -> None:
        """Any label is right where all schedules are one's own, also of those that are gone."""

    async def close(self) -> None:
        await self._inner.close()


class ScopedHarness(Harness):
    """Opens views of one memory store."""

    def __init__(self) -> None:
        clock = ManualClock()
        store, queues = MemoryStore(clock), Everything()
        super().__init__(lambda: Wide(MemoryBackend(store), queues), clock)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_within_its_queues_a_scoped_store_keeps_the_contract(case: Case) -> None:
    async def scenario() -> None:
        try:
            await run_on(case, ScopedHarness())
        except unittest.SkipTest as error:
            pytest.skip(str(error))

    work(scenario)
