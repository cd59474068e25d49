"""Moves to and from SQLite: what is special about the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.admin_move import Move
from packhorse.backends.base import Keep, Note, Query, Rerun, Settlement, WorkerInfo
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.sqlite import SQLiteBackend, departing
from packhorse.clock import ManualClock
from packhorse.job import JobError, State, Unique

from .helpers import new, opened, run, shell
from .test_migrating import _OLD_JOBS, _make_schema_1
from .test_plans import _plan

FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)


def _rows(path: Path) -> dict[str, int]:
    """Count the rows of each table."""
    db = shell(path)
    try:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
    finally:
        db.close()


async def _fill(backend: SQLiteBackend) -> None:
    """Jobs that leave something in every table beside `jobs`."""
    parents = new(2, payload=b'"' + b"x" * 3_000 + b'"')
    await backend.enqueue(parents)
    for parent in parents:
        await backend.enqueue(new(3, after=(parent.id,), node="n", workflow="w"))
    await backend.enqueue(new(unique=Unique(key="k", for_ms=10**6))[0:1])
    failed = new(1, queue="q")
    await backend.enqueue(failed)
    (job,) = await backend.claim(["q"], 1, 30_000, "w")
    await backend.heartbeat(WorkerInfo(id="w"), 30_000, [Note(id=job.id, token=job.token, step="s", progress=0.5)])
    error = JobError(attempt=1, at_ms=1, kind="e", message="m")
    await backend.settle([Settlement(id=job.id, token=job.token, state=State.FAILED, error=error)])


def test_what_left_leaves_nothing_but_its_id_and_that_for_a_day(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            await _fill(backend)
            before = _rows(tmp_path / "a.db")
            beside = ("edges", "extras", "families", "keys", "parents", "payloads", "steps", "windows")
            assert all(before[table] for table in beside)
            moved = await Move(backend, MemoryBackend(MemoryStore(clock)), clock=clock).run()
            assert (moved.total, moved.done) == (before["jobs"], True)
            after = _rows(tmp_path / "a.db")
            assert (after["jobs"], after["edges"]) == (before["jobs"], before["edges"])
            assert not any(after[table] for table in beside if table != "edges")
            assert await backend.workflows() == []
            for _ in range(3):
                clock.advance(86_400_000)
                assert (await backend.tick(1_000, FOREVER)).dropped == 0
            after = _rows(tmp_path / "a.db")
            assert {table for table, count in after.items() if count} <= {"departures", "marks", "workers"}

    run(main())


def test_jobs_come_back_into_the_store_they_left(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            await _fill(backend)
            before = _rows(tmp_path / "a.db")
            other = MemoryBackend(MemoryStore(clock))
            await Move(backend, other, clock=clock, batch=3).run()
            await Move(other, backend, clock=clock, batch=3).run()
            after = _rows(tmp_path / "a.db")
            ours = ("arrivals", "departures", "expected", "marks", "workers")
            assert {table: count for table, count in after.items() if table not in ours} == {
                table: count for table, count in before.items() if table not in ours
            }
            assert after["expected"] == 0

    run(main())


def test_a_batch_on_its_way_survives_the_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(5))
            batch = await backend.hand_over("there", 3)
        async with opened(tmp_path / "a.db") as backend:
            assert await backend.hand_over("there", 3) == batch
        async with opened(tmp_path / "b.db") as backend:
            assert (await backend.take_over(batch)).jobs == 0
        async with opened(tmp_path / "b.db") as backend:
            assert (await backend.claim(["default"], 9, 1_000, "w")) == []
            identity = (await backend.take_over()).store
            later: Any = type(batch)(source=batch.source, number=batch.number + 1)
            assert (await backend.take_over(later)).jobs == 3
            assert len(await backend.claim(["default"], 9, 1_000, "w")) == 3
        async with opened(tmp_path / "b.db") as backend:
            assert (await backend.take_over()).store == identity

    run(main())


def test_a_store_of_schema_1_can_be_moved(tmp_path: Path) -> None:
    async def main() -> None:
        _make_schema_1(tmp_path / "a.db")
        await SQLiteBackend(f"sqlite:///{tmp_path}/a.db").migrate()
        async with opened(tmp_path / "a.db") as old, opened(tmp_path / "b.db") as target:
            moved = await Move(old, target, wait=False).run()
            assert moved.total == len(_OLD_JOBS) - 1  # one runs
            assert moved.left == {State.RUNNING: 1}
            assert (await target.queues())["a"].paused
            (holder,) = await target.enqueue(new(queue="a", unique=Unique(key="k")))
            assert holder.id == "pending"

    run(main())


def test_what_is_left_is_found_in_indexes_however_many_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(10))

    run(main())
    for sql, values in ((departing.LEFT, (3,)), (departing.ANY_LEFT, ())):
        plan = _plan(tmp_path / "a.db", sql, values)
        for step in plan.split(" | "):
            assert "jobs" not in step or "COVERING INDEX" in step, plan


def test_jobs_arrive_in_their_order_though_those_that_wait_come_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
            ids = []
            for number in range(10):
                specs = new(3)
                ids += [spec.id for spec in specs]
                await source.enqueue(specs)
                await source.enqueue(new(1, after=(ids[number],)))
            # The first comes last, but has a place since its child came.
            (job,) = await source.claim(["default"], 1, 30_000, "w")
            assert (await Move(source, target, batch=4, wait=False).run()).total == 39
            await source.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)])
            assert (await Move(source, target, batch=4).run()).done
            found = (await target.find(Query(oldest_first=True))).jobs
            assert [one.id for one in found if not one.after] == [job.id, *ids[1:]]

    run(main())


def test_revivals_that_a_rerun_left_over_are_made_before_a_batch_leaves(tmp_path: Path) -> None:
    """More children than one move may revive, and no worker that ticks."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
            (parent,) = new(queue="p")
            await source.enqueue([parent])
            for _ in range(3):
                await source.enqueue(new(1_000, after=(parent.id,)))
            (job,) = await source.claim(["p"], 1, 30_000, "w")
            await source.settle([Settlement(id=job.id, token=job.token, state=State.FAILED)])
            for _ in range(3):
                await source.tick(1_000, FOREVER)
            await source.rerun([Rerun(id=parent.id)])
            moved = await Move(source, target).run()
            assert (moved.done, moved.jobs) == (True, {State.WAITING: 3_000, State.PENDING: 1})
            (job,) = await target.claim(["p"], 1, 30_000, "w")
            await target.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)])
            for _ in range(3):
                await target.tick(1_000, FOREVER)
            assert (await target.counts())["default"].states == {State.PENDING: 3_000}

    run(main())
