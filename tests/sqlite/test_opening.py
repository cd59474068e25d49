"""Opening: what is made, with which permissions, and what is refused with which remedy."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import sqlite3
import stat
import tempfile
from pathlib import Path

import pytest

from packhorse.backends.opening import open_backend
from packhorse.backends.sqlite import SQLiteBackend
from packhorse.errors import ConfigurationError, PackhorseError, SchemaMismatch

from .helpers import count_jobs, new, opened, run, shell, unique


async def _open_and_close(url: str) -> None:
    backend = SQLiteBackend(url)
    try:
        await backend.open()
    finally:
        await backend.close()


# ---- URLs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://:memory:"])
def test_no_file_points_to_memory(url: str) -> None:
    with pytest.raises(ConfigurationError, match="memory://"):
        SQLiteBackend(url)


def test_two_slashes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="three slashes"):
        SQLiteBackend("sqlite://jobs.db")


def test_unknown_option_names_the_allowed_ones() -> None:
    with pytest.raises(ConfigurationError, match="busy_timeout and synchronous"):
        SQLiteBackend("sqlite:///jobs.db?timeout=3")


@pytest.mark.parametrize("query", ["synchronous=off", "synchronous=", "busy_timeout=soon", "busy_timeout=-1"])
def test_bad_option_values_are_refused(query: str) -> None:
    with pytest.raises(ConfigurationError):
        SQLiteBackend(f"sqlite:///jobs.db?{query}")


def test_options_are_used(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db", "?synchronous=normal&busy_timeout=250ms") as backend:
            assert backend.location.busy_ms == 250
            db = backend._engine._db
            assert db is not None
            assert db.execute("PRAGMA synchronous").fetchone()[0] == 1

    run(main())


def test_default_is_wal_and_full(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            db = backend._engine._db
            assert db is not None
            assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
            assert db.execute("PRAGMA mmap_size").fetchone()[0] == 0

    run(main())


def test_relative_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        await _open_and_close("sqlite:///relative.db")
        await _open_and_close("sqlite:///a%23b%3Fc%20d%25.db")

    run(main())
    assert (tmp_path / "relative.db").exists()
    assert (tmp_path / "a#b?c d%.db").exists()


# ---- the first start ---------------------------------------------------------------------------------------


def test_opening_makes_the_file_and_opening_twice_is_harmless(tmp_path: Path) -> None:
    async def main() -> None:
        backend = open_backend(f"sqlite:///{tmp_path}/a.db")
        await asyncio.gather(backend.open(), backend.open())
        await backend.open()
        await backend.enqueue(new())
        await backend.close()
        await backend.close()
        await backend.open()
        assert (await backend.counts())["default"].states
        await backend.close()

    run(main())


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    run(_open_and_close(f"sqlite:///{tmp_path}/a.db"))
    assert count_jobs(tmp_path / "a.db") == 0


def test_verbs_before_open_say_so(tmp_path: Path) -> None:
    async def main() -> None:
        backend = SQLiteBackend(f"sqlite:///{tmp_path}/a.db")
        with pytest.raises(ConfigurationError, match="not open"):
            await backend.enqueue(new())
        with pytest.raises(ConfigurationError, match="not open"):
            await backend.counts()
        await backend.close()

    run(main())
    assert not (tmp_path / "a.db").exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_all_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """C27."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new())
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
            assert modes == dict.fromkeys(["a.db", "a.db-wal", "a.db-shm", "a.db-wake"], 0o600)

    before = os.umask(umask)
    try:
        run(main())
    finally:
        os.umask(before)


def test_the_side_file_follows_no_symlink(tmp_path: Path) -> None:
    """C27."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.db-wake").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigurationError, match=r"a\.db-wake"):
        run(_open_and_close(f"sqlite:///{tmp_path}/a.db"))
    assert (tmp_path / "victim").read_text() == "precious"


def _open_and_enqueue(path: Path, barrier: object, answers: object) -> None:
    async def main() -> str:
        backend = SQLiteBackend(f"sqlite:///{path}")
        await backend.open()
        answer = await backend.enqueue(new(unique=unique("once")))
        await backend.close()
        return answer[0].id

    barrier.wait(60)  # type: ignore[attr-defined]
    try:
        answers.put(asyncio.run(main()))  # type: ignore[attr-defined]
    except PackhorseError as error:
        answers.put(repr(error))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fifty_processes_open_and_enqueue_the_same_unique_key_at_once(tmp_path: Path) -> None:
    """B33, and the race of first starts: one schema, one job, one id for all."""
    fork = multiprocessing.get_context("fork")
    barrier, answers = fork.Barrier(50), fork.SimpleQueue()
    path = tmp_path / "a.db"
    children = [fork.Process(target=_open_and_enqueue, args=(path, barrier, answers)) for _ in range(50)]
    for child in children:
        child.start()
    ids = {answers.get() for _ in children}
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len(ids) == 1, ids
    assert count_jobs(path) == 1
    assert {file.name for file in tmp_path.iterdir()} == {"a.db", "a.db-wake"}


# ---- what is refused ---------------------------------------------------------------------------------------


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="mkdir -p"):
        run(_open_and_close(f"sqlite:///{tmp_path}/no/a.db"))


def test_directory_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a directory"):
        run(_open_and_close(f"sqlite:///{tmp_path}"))


def test_not_a_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("dear diary, " * 1_000)
    with pytest.raises(ConfigurationError, match="not a SQLite database"):
        run(_open_and_close(f"sqlite:///{tmp_path}/a.db"))
    assert (tmp_path / "a.db").read_text().startswith("dear diary")


def test_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    db = shell(tmp_path / "a.db")
    db.execute("CREATE TABLE jobs (id)")
    db.close()
    before = (tmp_path / "a.db").read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        run(_open_and_close(f"sqlite:///{tmp_path}/a.db"))
    assert (tmp_path / "a.db").read_bytes() == before


def test_newer_schema(tmp_path: Path) -> None:
    run(_open_and_close(f"sqlite:///{tmp_path}/a.db"))
    db = shell(tmp_path / "a.db")
    db.execute("PRAGMA user_version = 999")
    db.close()
    with pytest.raises(SchemaMismatch, match="upgrade") as caught:
        run(_open_and_close(f"sqlite:///{tmp_path}/a.db"))
    assert caught.value.found == 999


def test_a_deleted_database_with_its_wal_left_is_not_created_anew(tmp_path: Path) -> None:
    (tmp_path / "a.db-wal").write_bytes(b"committed jobs")
    with pytest.raises(ConfigurationError, match="put it back"):
        run(_open_and_close(f"sqlite:///{tmp_path}/a.db"))
    assert not (tmp_path / "a.db").exists()


@pytest.mark.parametrize("case", ["file", "directory", "empty directory"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_read_only_file_or_directory(case: str) -> None:
    """In a child that is not root, for root may write anything."""
    directory = Path(tempfile.mkdtemp(prefix="packhorse-test-"))
    path = directory / "a.db"
    if case != "empty directory":
        run(_open_and_close(f"sqlite:///{path}"))
    if os.getuid() == 0:
        for file in (directory, *directory.iterdir()):
            os.chown(file, 65_534, 65_534)
    if case == "file":
        path.chmod(0o400)
    else:
        directory.chmod(0o500)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = "opened"
        try:
            if os.getuid() == 0:
                os.setgid(65_534)
                os.setuid(65_534)
            asyncio.run(_open_and_close(f"sqlite:///{path}"))
        except ConfigurationError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(write_end, said.encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    said = os.read(read_end, 10_000).decode()
    os.close(read_end)
    directory.chmod(0o700)
    shutil.rmtree(directory)
    assert "access" in said or "permissions" in said, said


def test_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 30, 0))
    with pytest.raises(ConfigurationError, match="too old"):
        run(_open_and_close(f"sqlite:///{tmp_path}/a.db"))
