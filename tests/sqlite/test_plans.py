"""What each statement reads: cost must not grow with the backlog."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from packhorse.backends.base import Query, Settlement
from packhorse.backends.sqlite import SQLiteBackend, claiming, dropping, keeping, looking, moving, rows
from packhorse.backends.sqlite import engine as engine_module
from packhorse.chance import CHANCE
from packhorse.job import JobSpec, State

from .helpers import new, opened, run, shell, succeeded


def _plan(path: Path, sql: str, values: Any) -> str:
    db = shell(path)
    try:
        return " | ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values))
    finally:
        db.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 pending, 1,000 succeeded, 500 failed, 500 scheduled."""
    path = tmp_path_factory.mktemp("plans") / "a.db"

    async def fill() -> None:
        async with opened(path) as backend:
            for count, state in ((1_000, State.SUCCEEDED), (500, State.FAILED)):
                await backend.enqueue(new(count))
                jobs = await backend.claim(["default"], 1_000, 30_000, "w")
                await backend.settle([Settlement(id=job.id, token=job.token, state=state) for job in jobs])
            for _ in range(3):
                await backend.enqueue(new(1_000, tags=("a",)))
            await backend.enqueue(new(500, delay_ms=60_000))

    run(fill())
    return path


def test_claim_reads_the_ready_index(store: Path) -> None:
    plan = _plan(store, claiming.TAKE, ("default", 10))
    assert "USING INDEX ready (queue=?)" in plan
    assert "TEMP B-TREE" not in plan


def test_claim_costs_the_same_whatever_the_backlog(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            db = backend._engine._db
            assert db is not None
            steps: list[int] = []
            for size in (100, 20_000):
                while (await _pending(backend)) < size:
                    await backend.enqueue(new(min(1_000, size)))
                ticks = 0

                def count() -> int:
                    nonlocal ticks
                    ticks += 1
                    return 0

                db.set_progress_handler(count, 10)
                assert len(await backend.claim(["default"], 50, 30_000, "w")) == 50
                db.set_progress_handler(None, 0)
                steps.append(ticks)
            assert steps[1] <= steps[0] * 1.2, steps

    run(main())


async def _pending(backend: SQLiteBackend) -> int:
    found = await backend.counts()
    return found["default"].states.get(State.PENDING, 0) if found else 0


@pytest.mark.parametrize(
    ("sql", "values", "index"),
    [
        (keeping.NEXT_DUE, (), "COVERING INDEX due"),
        (keeping.HOLDERS, (0,), "COVERING INDEX running (worker>?)"),
        (dropping.KEPT, (5, 0, 10), "COVERING INDEX ended (state=? AND children=? AND finished_at_ms<?)"),
        (keeping.DUE, (0, 10), "INDEX due (due_at_ms<?)"),
        (keeping._PROMOTE, ("[]",), "INTEGER PRIMARY KEY"),
        (keeping._HELD, (0,), "INDEX running (worker=?)"),
        (moving._SUCCEED, (0, "[]", 0), "sqlite_autoindex_jobs_1 (id=?)"),
        (rows._SAVE, ("[]",), "INTEGER PRIMARY KEY"),
        (rows._LOAD_BY_ID, ("[]",), "sqlite_autoindex_jobs_1 (id=?)"),
        (looking._WORKERS, (0,), "COVERING INDEX running (worker=?)"),
    ],
)
def test_moves_read_only_what_they_need(store: Path, sql: str, values: Any, index: str) -> None:
    plan = _plan(store, sql, values)
    assert index in plan
    assert "SCAN jobs |" not in plan + " |", plan


def test_counts_reads_indexes_only(store: Path) -> None:
    plan = _plan(store, looking.COUNTS, ())
    for index in ("ready", "laned", "due", "running", "ended", "listed"):
        assert f"jobs USING COVERING INDEX {index}" in plan
    assert plan.count("COVERING") == 6


class _Recorder:
    """A connection that writes down the plan of all it is asked."""

    def __init__(self, path: Path) -> None:
        self.db = shell(path)
        self.plans: list[str] = []

    def execute(self, sql: str, values: Any = ()) -> Any:
        self.plans.append(" | ".join(row[3] for row in self.db.execute(f"EXPLAIN QUERY PLAN {sql}", values)))
        return self.db.execute(sql, values)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(states=(State.FAILED,)), "USING COVERING INDEX listed"),
        (
            Query(states=(State.FAILED,), cursor="700", oldest_first=True),
            "USING COVERING INDEX listed (state=? AND seq>?)",
        ),
        (Query(states=(State.SCHEDULED, State.RUNNING)), "COVERING INDEX due"),
        (Query(), "INTEGER PRIMARY KEY"),
        (Query(tag="a", queue="default", cursor="3000"), "INTEGER PRIMARY KEY (rowid<?)"),
    ],
)  # fmt: skip
def test_find_walks_in_order_and_sorts_nothing(store: Path, query: Query, index: str) -> None:
    recorder = _Recorder(store)
    page = looking.find(recorder, query)  # type: ignore[arg-type]
    recorder.db.close()
    assert page.jobs
    assert any(index in plan for plan in recorder.plans), recorder.plans
    if "due" not in index:
        assert not any("TEMP B-TREE" in plan for plan in recorder.plans), recorder.plans


def test_find_of_a_rare_match_ends_and_misses_none(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "WINDOW", 50)

    async def main() -> None:
        async with opened(store) as backend:
            for oldest_first in (False, True):
                for states in ((), (State.FAILED,), (State.PENDING,), (State.SUCCEEDED, State.FAILED, State.SCHEDULED)):
                    ids: list[str] = []
                    cursor = None
                    while True:
                        page = await backend.find(
                            Query(states=states, oldest_first=oldest_first, limit=7, cursor=cursor, type="t")
                        )
                        ids += [job.id for job in page.jobs]
                        cursor = page.next
                        if cursor is None:
                            break
                    wanted = {(): 5_000, (State.FAILED,): 500, (State.PENDING,): 3_000}.get(states, 2_000)
                    assert (len(ids), len(set(ids))) == (wanted, wanted)

    run(main())


def test_the_wal_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random ids on purpose: each touches a page of its own."""
    monkeypatch.setattr(engine_module, "CHECKPOINT_PAGES", 400)
    monkeypatch.setattr(engine_module, "BUDGET_PAGES_MIN", 50)
    largest = 0

    async def main() -> None:
        nonlocal largest
        async with opened(tmp_path / "a.db", "?synchronous=normal") as backend:
            for _ in range(60):
                specs = [JobSpec(id=f"{CHANCE.below(1 << 60):x}", type="t", payload=b"x" * 200) for _ in range(100)]
                await backend.enqueue(specs)
                jobs = await backend.claim(["default"], 100, 30_000, "w")
                await backend.settle([succeeded(job) for job in jobs])
                await asyncio.gather(*[backend.enqueue(new(delay_ms=60_000)) for _ in range(10)])
                largest = max(largest, (tmp_path / "a.db-wal").stat().st_size)

    run(main())
    assert largest <= 4 * 400 * 4_096, largest
