"""What the tests of the SQLite backend share."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from packhorse.backends.base import Settlement
from packhorse.backends.sqlite import SQLiteBackend
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK, Clock
from packhorse.job import Claimed, JobSpec, State, Unique

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], limit_s: float = 100) -> T:
    """Run a test's body, for at most `limit_s`."""

    async def bounded() -> T:
        return await asyncio.wait_for(main, limit_s)

    return asyncio.run(bounded())


@asynccontextmanager
async def opened(path: Path, options: str = "", clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[SQLiteBackend]:
    """A backend on `path`, closed at the end."""
    backend = SQLiteBackend(f"sqlite:///{path}{options}", clock)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


def new(count: int = 1, **fields: Any) -> list[JobSpec]:
    """Specs with new ids."""
    return [JobSpec(**{"id": job_id, "type": "t", **fields}) for job_id in CHANCE.ids(SYSTEM_CLOCK.now_ms(), count)]


def unique(key: str, on_conflict: str = "existing") -> Unique:
    return Unique(key=key, on_conflict=on_conflict)


def succeeded(job: Claimed, **fields: Any) -> Settlement:
    return Settlement(id=job.id, token=job.token, state=State.SUCCEEDED, **fields)


def shell(path: Path) -> sqlite3.Connection:
    """A foreign program's connection."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)


def count_jobs(path: Path) -> int:
    db = shell(path)
    try:
        return int(db.execute("SELECT count(*) FROM jobs").fetchone()[0])
    finally:
        db.close()


async def until(condition: Callable[[], bool], what: str, limit_s: float = 60) -> None:
    """Wait for a condition, at most `limit_s`."""
    give_up_at_ms = SYSTEM_CLOCK.boot_ms() + limit_s * 1000
    while not condition():
        assert SYSTEM_CLOCK.boot_ms() < give_up_at_ms, f"{what}: not within {limit_s} s"
        await asyncio.sleep(0.002)
