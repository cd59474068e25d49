"""Schema versions."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from packhorse.backends.sqlite import SQLiteBackend, connection
from packhorse.errors import ConfigurationError, SchemaMismatch

from .helpers import new, opened, run, shell


@pytest.fixture
def schema_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on packhorse has a second migration."""

    def upgrade() -> None:
        directory = tmp_path / "schema"
        shutil.copytree(connection.MIGRATIONS, directory)
        (directory / "0002_more.sql").write_text(
            "-- two statements; one has a ; in it\nALTER TABLE jobs ADD COLUMN colour TEXT DEFAULT 'a;b';\n"
            "CREATE INDEX colours ON jobs (colour);\n"
        )
        monkeypatch.setattr(connection, "MIGRATIONS", directory)
        monkeypatch.setattr(connection, "SCHEMA", 2)

    monkeypatch.setattr(connection, "upgrade", upgrade, raising=False)


def _upgrade() -> None:
    connection.upgrade()  # type: ignore[attr-defined]


def test_schema_number() -> None:
    numbers = [number for number, _ in connection.migrations()]
    assert numbers == list(range(1, connection.SCHEMA + 1))


def test_open_never_migrates_and_migrate_does(tmp_path: Path, schema_2: None) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as old:
            await old.enqueue(new(5))
        _upgrade()
        backend = SQLiteBackend(f"sqlite:///{tmp_path}/a.db")
        with pytest.raises(SchemaMismatch, match="packhorse migrate") as caught:
            await backend.open()
        assert (caught.value.found, caught.value.wanted) == (1, 2)
        assert await backend.migrate() == 2
        assert await backend.migrate() == 2
        await backend.open()
        assert len(await backend.claim(["default"], 10, 30_000, "w")) == 5
        await backend.close()

    run(main())


def test_migrating_beside_a_running_backend(tmp_path: Path, schema_2: None) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as running:
            await running.enqueue(new(5))
            _upgrade()
            others = [SQLiteBackend(f"sqlite:///{tmp_path}/a.db") for _ in range(5)]
            working = asyncio.gather(*[running.enqueue(new()) for _ in range(50)])
            assert await asyncio.gather(*[other.migrate() for other in others]) == [2] * 5
            await working
            assert len(await running.claim(["default"], 100, 30_000, "w")) == 55

    run(main())


def test_migrate_makes_a_new_store_of_the_newest_schema(tmp_path: Path, schema_2: None) -> None:
    _upgrade()

    async def main() -> None:
        backend = SQLiteBackend(f"sqlite:///{tmp_path}/a.db")
        assert await backend.migrate() == 2
        await backend.open()
        await backend.close()

    run(main())


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, schema_2: None) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db"):
            pass
        _upgrade()
        with (connection.MIGRATIONS / "0002_more.sql").open("a") as script:
            script.write("CREATE TABLE jobs (id);\n")
        with pytest.raises(Exception, match="already exists"):
            await SQLiteBackend(f"sqlite:///{tmp_path}/a.db").migrate()

    run(main())
    db = shell(tmp_path / "a.db")
    assert db.execute("PRAGMA user_version").fetchone()[0] == 1
    assert "colour" not in [row[1] for row in db.execute("PRAGMA table_info(jobs)")]
    db.close()


def test_migrate_leaves_other_programs_alone(tmp_path: Path) -> None:
    db = shell(tmp_path / "a.db")
    db.execute("CREATE TABLE mine (id)")
    db.close()
    with pytest.raises(ConfigurationError, match="another program"):
        run(SQLiteBackend(f"sqlite:///{tmp_path}/a.db").migrate())
