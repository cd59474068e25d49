"""What the tests of Redis share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import redis

from packhorse.backends.base import WorkerInfo
from packhorse.backends.redis import RedisBackend
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK, Clock
from packhorse.job import Claimed, JobSpec

LEASE_MS = 30_000
WAIT_S = 60.0


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine, for a minute at most."""

    async def bounded() -> None:
        async with asyncio.timeout(100):
            await main()

    asyncio.run(bounded())


@asynccontextmanager
async def opened(url: str, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[RedisBackend]:
    """Open a backend and close it."""
    backend = RedisBackend(url, clock)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


def specs(count: int, **fields: Any) -> list[JobSpec]:
    """Describe new jobs."""
    ids = CHANCE.ids(SYSTEM_CLOCK.now_ms(), count)
    return [JobSpec(**{"id": job_id, "type": "work", **fields}) for job_id in ids]


async def add(backend: RedisBackend, count: int = 1, **fields: Any) -> list[str]:
    """Store new jobs; answers their ids."""
    answers = await backend.enqueue(specs(count, **fields))
    assert all(answer.created for answer in answers)
    return [answer.id for answer in answers]


async def claim(backend: RedisBackend, limit: int = 100, worker: str = "w1", queue: str = "default") -> list[Claimed]:
    """Claim jobs."""
    return await backend.claim([queue], limit, LEASE_MS, worker)


async def beat(backend: RedisBackend, worker: str = "w1") -> dict[str, str]:
    """Keep a worker's lease; answers what it holds."""
    return (await backend.heartbeat(WorkerInfo(id=worker), LEASE_MS)).held


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition, which may be a coroutine's."""
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {WAIT_S} s: {what}"
        await asyncio.sleep(0.01)


def shell(url: str) -> redis.Redis:
    """Answer a blocking client of the server of a URL."""
    parts = urlsplit(url)
    client: redis.Redis = redis.Redis.from_url(parts._replace(query="").geturl(), socket_timeout=10)
    return client


def key(backend: RedisBackend, name: str) -> str:
    """Answer the full name of a key."""
    return backend.location.key(name)


def keys(client: redis.Redis, backend: RedisBackend) -> set[str]:
    """Answer the names of all keys of a store, without the prefix."""
    start = backend.location.key("")
    return {name.decode().removeprefix(start) for name in client.scan_iter(f"{start}*", count=1_000)}
