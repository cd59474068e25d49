"""What the tests of this folder share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from packhorse.backends.opening import open_backend
from packhorse.backends.postgres import PostgresBackend
from packhorse.backends.postgres.connection import parse_url
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK, Clock
from packhorse.job import JobSpec


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine."""
    return asyncio.run(main)


@asynccontextmanager
async def opened(url: str, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[PostgresBackend]:
    """A backend that is open."""
    backend = open_backend(url, clock)
    assert isinstance(backend, PostgresBackend)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


def new(count: int, **fields: Any) -> list[JobSpec]:
    """Describe new jobs."""
    ids = CHANCE.ids(SYSTEM_CLOCK.now_ms(), count)
    return [JobSpec(**{"id": job_id, "type": "work", **fields}) for job_id in ids]


def shell(url: str, **options: Any) -> psycopg.Connection[Any]:
    """A plain connection that looks into our schema."""
    location = parse_url(url)
    db = psycopg.connect(location.conninfo, **{"autocommit": True, **options})
    db.execute(f'SET search_path = "{location.schema}"'.encode())
    if not db.autocommit:
        db.commit()
    return db


async def until(condition: Callable[[], Any], what: str, limit_s: float = 60) -> None:
    """Wait for a condition, at most `limit_s`."""
    give_up_at_ms = SYSTEM_CLOCK.boot_ms() + limit_s * 1000
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert SYSTEM_CLOCK.boot_ms() < give_up_at_ms, f"{what}: not within {limit_s} s"
        await asyncio.sleep(0.01)
