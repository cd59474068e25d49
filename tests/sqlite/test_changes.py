"""The log of changes in the file: what it costs, what stays of it, and what is not told because it was undone."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from packhorse.backends.base import CHANGES_KEPT_MS, CHANGES_MAX
from packhorse.backends.following import RENEW_MS
from packhorse.backends.sqlite import SQLiteBackend, changelog, connection, following
from packhorse.clock import ManualClock
from packhorse.job import JobSpec, State

from .helpers import new, opened, run, shell, succeeded, unique, until
from .test_writing import _claim, locked, traced


def _rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(shell(path)) as db:
        return db.execute(sql).fetchall()


async def _told(backend: SQLiteBackend, cursor: str) -> list[tuple[str, State | None]]:
    found = await backend.changes(cursor)
    assert not found.gap
    return [(change.id, change.state) for change in found.changes]


def test_nothing_is_written_down_while_nobody_asks(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            with traced(backend) as said:
                await backend.enqueue(new(100))
                await backend.settle([succeeded(job) for job in await _claim(backend)])
            assert not [statement for statement in said if "changes" in statement]
        assert _rows(tmp_path / "a.db", "SELECT * FROM changes") == []

    run(main())


def test_each_transaction_is_one_row_whatever_it_moved(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.changes()
            with locked(tmp_path / "a.db"):  # so that all are asked before any is done
                tasks = [asyncio.create_task(backend.enqueue(new(10))) for _ in range(20)]
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            groups = _rows(tmp_path / "a.db", "SELECT count FROM changes")
            assert len(groups) <= 3
            assert sum(count for (count,) in groups) == 200
            with traced(backend) as said:
                await backend.settle([succeeded(job) for job in await _claim(backend, 200)])
            assert len([statement for statement in said if "INSERT INTO changes" in statement]) == 2

    run(main())


def test_what_a_savepoint_undid_is_not_told(tmp_path: Path) -> None:
    """Calls of one transaction that fail harm no neighbour, and are not told of."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(unique=unique("k")))
            cursor = (await backend.changes()).cursor
            good, again, last = new(2), new(), new(3)
            calls = [
                good,
                again,
                again,
                [*new(2), *new(unique=unique("k", "refuse"))],
                [*new(2), JobSpec(id="lone \udc80", type="t")],
                last,
            ]
            with locked(tmp_path / "a.db"):
                tasks = [asyncio.create_task(backend.enqueue(specs)) for specs in calls]
                await asyncio.sleep(0.01)
            await asyncio.gather(*tasks, return_exceptions=True)
            wanted = [(spec.id, State.PENDING) for spec in (*good, *again, *last)]
            assert await _told(backend, cursor) == wanted

    run(main())


def test_who_asks_writes_at_most_now_and_then(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            cursor = (await backend.changes()).cursor
            with traced(backend) as said:
                for _ in range(95):
                    clock.advance(RENEW_MS // 100)
                    cursor = (await backend.changes(cursor)).cursor
                assert said == []
                for _ in range(10):
                    clock.advance(RENEW_MS // 100)
                    await backend.changes(cursor)
                await until(lambda: "COMMIT" in said, "it is noted that somebody asks")
                assert said.count("COMMIT") == 1

    run(main())


def test_who_looked_before_the_note_was_written_writes_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            cursor = (await backend.changes()).cursor
            clock.advance(RENEW_MS + 1)
            read = backend._engine.read
            is_late = asyncio.Event()

            async def late(look: Any) -> Any:
                found = await read(look)
                await is_late.wait()
                return found

            with traced(backend) as said:
                with monkeypatch.context() as patch:
                    patch.setattr(backend._engine, "read", late)
                    looks = [asyncio.create_task(backend.changes(cursor)) for _ in range(2)]
                    await asyncio.sleep(0)
                await backend.changes(cursor)  # writes the note
                looks.append(asyncio.create_task(backend.changes(cursor)))
                await until(lambda: "COMMIT" in said, "it is noted that somebody asks")
                is_late.set()
                await asyncio.gather(*looks)
                await backend.counts()
                assert said.count("BEGIN IMMEDIATE") == 1

    run(main())


def test_who_asks_waits_for_no_write_lock(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            cursor = (await backend.changes()).cursor
            clock.advance(2 * RENEW_MS)
            with locked(tmp_path / "a.db"):
                async with asyncio.timeout(60):  # the lock is held until it is over
                    for _ in range(5):
                        cursor = (await backend.changes(cursor)).cursor
            [spec] = new()
            await backend.enqueue([spec])
            assert await _told(backend, cursor) == [(spec.id, State.PENDING)]
            [(until_ms,)] = _rows(tmp_path / "a.db", "SELECT until_ms FROM listening")
            assert until_ms >= clock.now_ms() + CHANGES_KEPT_MS

    run(main())


def test_the_log_goes_with_the_first_write_after_nobody_asked_for_long(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            cursor = (await backend.changes()).cursor
            await backend.enqueue(new(10))
            clock.advance(CHANGES_KEPT_MS + RENEW_MS + 1)
            async with opened(tmp_path / "a.db", clock=clock) as other:
                await other.enqueue(new(1))
            for table in ("listening", "changes"):
                assert _rows(tmp_path / "a.db", f"SELECT * FROM {table}") == []
            assert (await backend.changes(cursor)).gap

    run(main())


def test_a_clock_that_is_set_forward_and_back_hides_no_change(tmp_path: Path) -> None:
    """C: a writer that did not write down what it moved has removed the row that says all is written down."""

    async def main() -> None:
        clock = ManualClock()
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            cursor = (await backend.changes()).cursor
            clock.jump(10 * CHANGES_KEPT_MS)
            await backend.enqueue(new(1))
            clock.jump(-10 * CHANGES_KEPT_MS)
            assert (await backend.changes(cursor)).gap

    run(main())


def test_the_log_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.changes()
            for _ in range(3 * CHANGES_MAX // 1_000):
                await backend.enqueue(new(1_000))
            [(kept,)] = _rows(tmp_path / "a.db", "SELECT sum(count) FROM changes")
            assert CHANGES_MAX <= kept <= CHANGES_MAX + 3_000

    run(main())


def test_rows_that_are_missing_are_a_gap(tmp_path: Path) -> None:
    """Whoever removed them: an operator, or a copy of the file that was put back."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            cursor = (await backend.changes()).cursor
            for _ in range(3):
                await backend.enqueue(new(2))
            with closing(shell(tmp_path / "a.db")) as db:
                db.execute("DELETE FROM changes WHERE upto = 4")
            found = await backend.changes(cursor)
            assert (found.changes, found.gap) == ([], True)
            assert not (await backend.changes(found.cursor)).gap

    run(main())


def test_changes_are_found_by_their_count(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.changes()

    run(main())
    for sql, values in ((following.READ, (1, 2)), (changelog._CUT, (1,))):
        plan = _rows_of_plan(tmp_path / "a.db", sql, values)
        assert "USING INTEGER PRIMARY KEY" in plan, plan


def _rows_of_plan(path: Path, sql: str, values: Any) -> str:
    with closing(shell(path)) as db:
        return " | ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values))


def test_a_file_of_schema_4_tells_changes_once_it_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    for number, script in connection.migrations()[:4]:
        connection._apply(db, number, script)
    db.close()

    async def main() -> None:
        assert await SQLiteBackend(f"sqlite:///{path}").migrate() == connection.SCHEMA
        async with opened(path) as backend:
            cursor = (await backend.changes()).cursor
            [spec] = new()
            await backend.enqueue([spec])
            assert await _told(backend, cursor) == [(spec.id, State.PENDING)]

    run(main())
