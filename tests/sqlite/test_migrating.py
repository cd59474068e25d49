"""Schema versions."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest

from packhorse.backends.base import Keep, Query, Rerun, Steered
from packhorse.backends.sqlite import SQLiteBackend, connection
from packhorse.errors import ConfigurationError, SchemaMismatch
from packhorse.job import State, Unique

from .helpers import new, opened, run, shell

NOW, NEXT = connection.SCHEMA, connection.SCHEMA + 1


@pytest.fixture
def next_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once `_upgrade` is called packhorse has one more migration."""

    def upgrade() -> None:
        directory = tmp_path / "schema"
        shutil.copytree(connection.MIGRATIONS, directory)
        (directory / f"{NEXT:04}_more.sql").write_text(
            "-- two statements; one has a ; in it\nALTER TABLE jobs ADD COLUMN colour TEXT DEFAULT 'a;b';\n"
            "CREATE INDEX colours ON jobs (colour);\n"
        )
        monkeypatch.setattr(connection, "MIGRATIONS", directory)
        monkeypatch.setattr(connection, "SCHEMA", NEXT)

    monkeypatch.setattr(connection, "upgrade", upgrade, raising=False)


def _upgrade() -> None:
    connection.upgrade()  # type: ignore[attr-defined]


def test_schema_number() -> None:
    numbers = [number for number, _ in connection.migrations()]
    assert numbers == list(range(1, connection.SCHEMA + 1))


def test_open_never_migrates_and_migrate_does(tmp_path: Path, next_schema: None) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as old:
            await old.enqueue(new(5))
        _upgrade()
        backend = SQLiteBackend(f"sqlite:///{tmp_path}/a.db")
        with pytest.raises(SchemaMismatch, match="packhorse migrate") as caught:
            await backend.open()
        assert (caught.value.found, caught.value.wanted) == (NOW, NEXT)
        assert await backend.migrate() == NEXT
        assert await backend.migrate() == NEXT
        await backend.open()
        assert len(await backend.claim(["default"], 10, 30_000, "w")) == 5
        await backend.close()

    run(main())


def test_migrating_beside_a_running_backend(tmp_path: Path, next_schema: None) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as running:
            await running.enqueue(new(5))
            _upgrade()
            others = [SQLiteBackend(f"sqlite:///{tmp_path}/a.db") for _ in range(5)]
            working = asyncio.gather(*[running.enqueue(new()) for _ in range(50)])
            assert await asyncio.gather(*[other.migrate() for other in others]) == [NEXT] * 5
            await working
            assert len(await running.claim(["default"], 100, 30_000, "w")) == 55

    run(main())


def test_migrate_makes_a_new_store_of_the_newest_schema(tmp_path: Path, next_schema: None) -> None:
    _upgrade()

    async def main() -> None:
        backend = SQLiteBackend(f"sqlite:///{tmp_path}/a.db")
        assert await backend.migrate() == NEXT
        await backend.open()
        await backend.close()

    run(main())


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, next_schema: None) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db"):
            pass
        _upgrade()
        with (connection.MIGRATIONS / f"{NEXT:04}_more.sql").open("a") as script:
            script.write("CREATE TABLE jobs (id);\n")
        with pytest.raises(Exception, match="already exists"):
            await SQLiteBackend(f"sqlite:///{tmp_path}/a.db").migrate()

    run(main())
    db = shell(tmp_path / "a.db")
    assert db.execute("PRAGMA user_version").fetchone()[0] == NOW
    assert "colour" not in [row[1] for row in db.execute("PRAGMA table_info(jobs)")]
    db.close()


def test_migrate_leaves_other_programs_alone(tmp_path: Path) -> None:
    db = shell(tmp_path / "a.db")
    db.execute("CREATE TABLE mine (id)")
    db.close()
    with pytest.raises(ConfigurationError, match="another program"):
        run(SQLiteBackend(f"sqlite:///{tmp_path}/a.db").migrate())


#: id, state, unique key, queue, finished_at_ms
_OLD_JOBS = (
    ("pending", 3, "k", "a", None),
    ("running", 4, "l", "a", None),
    ("ended", 5, "m", "a", 1_000),
    ("elsewhere", 2, "k", "b", None),
    ("failed", 6, None, "a", 1_000),
    ("cancelled", 7, "k", "a", 1_000),
)


def _make_schema_1(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    number, script = connection.migrations()[0]
    connection._apply(db, number, script)
    db.executemany(
        "INSERT INTO jobs (id, type, queue, state, rank, due_at_ms, created_at_ms, priority, max_attempts, timeout_ms, "
        "payload, unique_key, finished_at_ms) VALUES (?1, 't', ?4, ?2, 1, 1, 1, 5, 3, 1, x'7b7d', ?3, ?5)",
        [(name, state, key, queue, ended) for name, state, key, queue, ended in _OLD_JOBS],
    )
    db.execute("INSERT INTO queues (name, paused) VALUES ('a', 1)")
    db.close()


def test_jobs_and_keys_of_schema_1_go_on(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    _make_schema_1(path)

    async def main() -> None:
        assert await SQLiteBackend(f"sqlite:///{path}").migrate() == NOW
        async with opened(path) as backend:
            assert sorted(job.id for job in (await backend.find(Query())).jobs) == sorted(job[0] for job in _OLD_JOBS)
            assert (await backend.counts())["a"].states == {
                State.PENDING: 1,
                State.RUNNING: 1,
                State.SUCCEEDED: 1,
                State.FAILED: 1,
                State.CANCELLED: 1,
            }
            keys = [("a", "k"), ("a", "l"), ("a", "m"), ("b", "k")]
            specs = [new(queue=queue, unique=Unique(key=key))[0] for queue, key in keys]
            answers = await backend.enqueue(specs)
            assert [answer.id for answer in answers] == ["pending", "running", specs[2].id, "elsewhere"]
            assert await backend.rerun([Rerun(id="cancelled"), Rerun(id="failed")]) == [Steered.CONFLICT, Steered.DONE]
            child = new(after=("running",))[0]
            await backend.enqueue([child])
            assert await backend.retire("nobody", "") == []
            assert (await backend.tick(100, Keep(succeeded_ms=0, cancelled_ms=0))).dropped == 2
            assert (await backend.get([child.id]))[0] is not None

    run(main())


def test_migrations_change_nothing_that_a_new_store_has_not(tmp_path: Path) -> None:
    _make_schema_1(tmp_path / "old.db")
    run(SQLiteBackend(f"sqlite:///{tmp_path}/old.db").migrate())
    run(SQLiteBackend(f"sqlite:///{tmp_path}/new.db").migrate())
    schemas = []
    for name in ("old.db", "new.db"):
        db = shell(tmp_path / name)
        schemas.append(db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall())
        db.close()
    assert schemas[0] == schemas[1]
