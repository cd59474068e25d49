"""What the tests of the worker share: a loop that must end clean, conditions to wait for, backends with faults."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from packhorse import Packhorse
from packhorse.backends.base import Settlement, Verdict
from packhorse.backends.memory import MemoryBackend
from packhorse.backends.memory_store import MemoryStore
from packhorse.backends.opening import register_backend
from packhorse.clock import SYSTEM_CLOCK
from packhorse.job import TERMINAL, JobRecord

# This file is imported by two names, and stores in memory are shared by theirs: each has its own half of the numbers.
_numbers = itertools.count(0 if __name__ == "working" else 1, 2)


def new_app(**settings: Any) -> Packhorse:
    """An app on an empty memory store of its own."""
    return Packhorse(f"memory://worker-test-{next(_numbers)}", **settings)


def work(scenario: Callable[[], Awaitable[Any]], *, debug: bool = False, limit_s: float = 100) -> Any:
    """Run a scenario to its end on a fresh loop; no task may be left behind when it is over."""

    async def main() -> Any:
        async with asyncio.timeout(limit_s):
            answer = await scenario()
        for _ in range(3):  # callbacks of tasks that ended just now
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left behind: {left}"
        return answer

    return asyncio.run(main(), debug=debug)


async def until(condition: Callable[[], Any], limit_s: float = 60) -> Any:
    """Wait until `condition()` is true, at most `limit_s`; it may be a coroutine function."""
    end_s = asyncio.get_running_loop().time() + limit_s
    while True:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return answer
        assert asyncio.get_running_loop().time() < end_s, f"not true within {limit_s} s"
        await asyncio.sleep(0.002)


async def ended(app: Packhorse, job: Any, limit_s: float = 60) -> JobRecord:
    """Wait for a job to end; answers its record."""

    async def look() -> JobRecord | None:
        record = await app.job(job.id).arecord()
        return record if record.state in TERMINAL else None

    return await until(look, limit_s)


def store_of(app: Packhorse) -> MemoryStore:
    """The store behind an app, to put things in that no client would."""
    (backend,) = app._backends.values()
    store: MemoryStore = backend.inner.store
    return store


class Faulty(MemoryBackend):
    """A memory backend whose verbs can be made to fail: `fail[verb]` is called before it, and may raise."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(SYSTEM_CLOCK))
        self.fail: dict[str, Callable[[], None]] = {}
        self.calls: list[tuple[str, int]] = []

    def _before(self, verb: str, size: int = 0) -> None:
        self.calls.append((verb, size))
        if verb in self.fail:
            self.fail[verb]()

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> Any:
        if limit:  # else it only asks whether it may
            self._before("claim", limit)
        return await super().claim(queues, limit, lease_ms, worker)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        self._before("settle", len(settlements))
        return await super().settle(settlements)

    async def heartbeat(self, *args: Any) -> Any:
        self._before("heartbeat")
        return await super().heartbeat(*args)

    async def tick(self, *args: Any) -> Any:
        self._before("tick")
        return await super().tick(*args)

    async def retire(self, *args: Any) -> Any:
        self._before("retire")
        return await super().retire(*args)


def faulty_app(**settings: Any) -> tuple[Packhorse, Faulty]:
    """An app on a backend that can be made to fail."""
    backend = Faulty()
    scheme = f"faulty{next(_numbers)}"
    register_backend(scheme, lambda url, clock: backend)
    return Packhorse(f"{scheme}://", **settings), backend
