"""What statements read: their cost must not grow with the backlog, with the history, or with an old transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import RawCursor

from packhorse.backends.base import Keep, Settlement, WorkerInfo, queue_topic
from packhorse.backends.postgres import PostgresBackend, claiming, dropping, keeping, looking, moving, rows
from packhorse.backends.postgres.connection import parse_url
from packhorse.backends.postgres.packing import use_packing
from packhorse.backends.postgres.schema import SCHEMA, migrations
from packhorse.backends.postgres.script import QUEUES_WITH_LANES, Store
from packhorse.clock import SYSTEM_CLOCK
from packhorse.job import State
from tests.servers import with_parameter

from .helpers import new, opened, run, shell

FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)


@pytest.fixture(scope="module")
def store(database_of_this_run: str) -> Iterator[str]:
    """3,000 pending, 2,000 succeeded, 500 failed, 500 scheduled, 100 running."""
    url = with_parameter(database_of_this_run, "schema", "plans")

    async def fill() -> None:
        async with opened(url) as backend:
            for count, state in ((1_000, State.SUCCEEDED), (1_000, State.SUCCEEDED), (500, State.FAILED)):
                await backend.enqueue(new(count))
                jobs = await backend.claim(["default"], 1_000, 30_000, "w")
                await backend.settle([Settlement(id=job.id, token=job.token, state=state) for job in jobs])
            for _ in range(3):
                await backend.enqueue(new(1_000, tags=("a",)))
            await backend.enqueue(new(500, delay_ms=60_000_000))
            await backend.claim(["default"], 100, 30_000, "w")

    run(fill())
    with shell(url) as db:
        db.execute("VACUUM ANALYZE")
    try:
        yield url
    finally:
        with psycopg.connect(parse_url(url).conninfo, autocommit=True) as db:
            db.execute("DROP SCHEMA plans CASCADE")


def _plan(url: str, sql: str, values: tuple[Any, ...]) -> str:
    names = Store(parse_url(url).schema, 0, lambda _: None)
    with shell(url, cursor_factory=RawCursor, autocommit=False) as db:
        use_packing(db.adapters)
        found = db.execute(f"EXPLAIN (ANALYZE, BUFFERS) {names.sql(sql)}".encode(), values).fetchall()
        db.rollback()
    return "\n".join(row[0] for row in found)


def _pages(plan: str) -> int:
    line = next(line for line in plan.splitlines() if "Buffers" in line)
    return sum(int(part.partition("=")[2]) for part in line.split() if part.startswith(("hit=", "read=")))


def _claim(url: str, limit: int) -> tuple[str, tuple[Any, ...]]:
    names = Store(parse_url(url).schema, 0, lambda _: None)
    claim = claiming.Claim(("default",), limit, 30_000, "w")
    return claiming.TAKE, (None, *claiming.arguments(names, claim, ("default",), limit, 7))


def test_claim_reads_the_ready_index(store: str) -> None:
    plan = _plan(store, *_claim(store, 10))
    assert "Index Scan using ready on jobs" in plan
    assert "Seq Scan on jobs" not in plan
    assert _pages(plan) < 500


@pytest.mark.parametrize(
    ("sql", "values", "index"),
    [
        (moving.SUCCEED, (None, ["no"] * 50, [1] * 50, [None] * 50, "c", None), "Index Scan using jobs_id on jobs"),
        (keeping.DUE, (0, 10), "using due on jobs"),
        (keeping.HELD, (1,), "running"),
        (keeping.HOLDERS, (0,), "using running on jobs"),
        (keeping.PROBE, (None, 10**12, 10**12, 10**12), "using ended on jobs"),
        (dropping.KEPT[5], (0, 10), "using ended on jobs"),
        (rows.LOAD_BY_ID, (["no", "such"],), "jobs_id"),
        (rows.LOAD_BY_SEQ, ([1, 2],), "jobs_pkey"),
        (QUEUES_WITH_LANES, (), "using laned on jobs"),
        (looking.GET, (["no"],), "jobs_id"),
    ],
)
def test_moves_read_only_what_they_need(store: str, sql: str, values: tuple[Any, ...], index: str) -> None:
    plan = _plan(store, sql, values)
    assert index in plan, plan
    assert "Seq Scan on jobs" not in plan, plan


def test_a_claim_costs_the_same_while_an_old_transaction_is_open(postgres_url: str) -> None:
    """What was claimed since cannot be cleaned; a claim does not step over it (decision 15)."""

    async def work(backend: PostgresBackend, jobs: int) -> None:
        for _ in range(jobs // 100):
            await backend.enqueue(new(100))
            claimed = await backend.claim(["default"], 100, 30_000, "w")
            assert len(claimed) == 100
            await backend.settle([Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in claimed])

    async def pages(backend: PostgresBackend) -> int:
        with shell(postgres_url) as db:  # as if the margin had passed
            db.execute("UPDATE floors SET at_ms = 0")
        await backend.enqueue(new(20))
        await backend.tick(100, FOREVER)
        found = _pages(_plan(postgres_url, *_claim(postgres_url, 10)))
        claimed = await backend.claim(["default"], 100, 30_000, "w")
        await backend.settle([Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in claimed])
        return found

    async def main() -> None:
        async with opened(postgres_url) as backend:
            await work(backend, 200)
            with shell(postgres_url, autocommit=False) as old:
                old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                old.execute("SELECT txid_current()")
                before = await pages(backend)
                await work(backend, 4_000)
                await asyncio.sleep(4.1)  # MARGIN_MS
                after = await pages(backend)
                assert after < 3 * before, (before, after)

    run(main())


def test_a_job_that_comes_late_is_found_below_the_floor(postgres_url: str) -> None:
    """Its transaction was open for longer than the floor lags behind."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            await backend.enqueue(new(1))
            assert len(await backend.claim(["default"], 5, 30_000, "w")) == 1
            async with await psycopg.AsyncConnection.connect(backend.location.conninfo) as db:
                late = new(1)
                await backend.bind(db).enqueue(late)
                await asyncio.sleep(4.2)  # MARGIN_MS
                for _ in range(3):
                    with shell(postgres_url) as other:
                        other.execute("UPDATE floors SET at_ms = 0")
                    await backend.tick(100, FOREVER)
                assert await backend.claim(["default"], 5, 30_000, "w") == []
                await db.commit()
            assert [job.id for job in await backend.claim(["default"], 5, 30_000, "w")] == [late[0].id]

    run(main())


def test_an_idle_worker_asks_little(postgres_url: str) -> None:
    """At most 5 commands a second in all: a claim and a tick a second, a heartbeat now and then, and the listener."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            asked = 0

            async def counted(self: Any, statement: Any, ask: Any = None) -> Any:
                nonlocal asked
                asked += 1 + len(statement.ahead)
                return await real(self, statement)

            from packhorse.backends.postgres import pool

            real = pool._Run._ask
            pool._Run._ask = counted  # type: ignore[method-assign]
            try:
                with backend.watch([queue_topic("default")]):
                    await backend.heartbeat(WorkerInfo(id="w"), 30_000)
                    began_ms = SYSTEM_CLOCK.boot_ms()
                    for _ in range(3):
                        assert await backend.claim(["default"], 5, 30_000, "w") == []
                        await backend.tick(100, FOREVER)
                        await asyncio.sleep(1)
                    seconds = (SYSTEM_CLOCK.boot_ms() - began_ms) / 1000
            finally:
                pool._Run._ask = real  # type: ignore[method-assign]
            assert asked <= 5 * seconds

    run(main())


def test_schema_number() -> None:
    assert [number for number, _ in migrations()] == list(range(1, SCHEMA + 1))


def test_what_was_stored_behind_its_time_is_found_by_the_look_at_everything(postgres_url: str) -> None:
    """A transaction that waited for a lock: nothing in `late` tells of its job."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            await backend.enqueue(new(2))
            assert len(await backend.claim(["default"], 1, 30_000, "w")) == 1
            with shell(postgres_url) as db:
                db.execute("UPDATE floors SET at_ms = 0")
                db.execute("UPDATE jobs SET rank = rank - 60000 WHERE state = 3")
                await backend.tick(100, FOREVER)
                db.execute("UPDATE floors SET floor = floor + 10000000")  # as if it had come after that tick
                assert await backend.claim(["default"], 5, 30_000, "w") == []
                db.execute("UPDATE floors SET at_ms = 0, whole_at_ms = 0")
                await backend.tick(100, FOREVER)
            assert len(await backend.claim(["default"], 5, 30_000, "w")) == 1

    run(main())
