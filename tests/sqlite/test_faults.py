"""Locks, full disks, files that go away, forks: nothing half written, a clear word, and on again afterwards."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from packhorse.backends.sqlite.connection import explain
from packhorse.backends.sqlite.filing import Location
from packhorse.clock import SYSTEM_CLOCK
from packhorse.errors import ConfigurationError, PackhorseError, StoreFull, Unavailable

from .helpers import count_jobs, new, opened, run, shell

# ---- locks -------------------------------------------------------------------------------------------------


def test_a_lock_of_another_program_is_waited_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            other = shell(tmp_path / "a.db")
            other.execute("BEGIN IMMEDIATE")
            started_at_ms = SYSTEM_CLOCK.boot_ms()
            asyncio.get_running_loop().call_later(0.4, other.execute, "ROLLBACK")
            await backend.enqueue(new())
            assert SYSTEM_CLOCK.boot_ms() - started_at_ms >= 350
            other.close()
        assert count_jobs(tmp_path / "a.db") == 1

    run(main())


def test_a_lock_beyond_the_busy_timeout_is_unavailable_and_stores_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db", "?busy_timeout=200ms") as backend:
            other = shell(tmp_path / "a.db")
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match=r"locked by another program for 0\.2 s"):
                await backend.enqueue(new())
            assert await backend.get(["x"]) == [None], "readers do not wait for writers"
            other.execute("ROLLBACK")
            other.close()
            assert count_jobs(tmp_path / "a.db") == 0
            await backend.enqueue(new())
        assert count_jobs(tmp_path / "a.db") == 1

    run(main())


def test_a_long_read_stops_no_writer(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(10))
            started, go_on = threading.Event(), threading.Event()

            def look(db: sqlite3.Connection, _now_ms: int) -> int:
                rows = db.execute("SELECT id FROM jobs")
                rows.fetchone()  # the snapshot is open from here
                started.set()
                assert go_on.wait(60)
                return len(rows.fetchall())

            reading = asyncio.ensure_future(backend._engine.read(look))
            await asyncio.to_thread(started.wait, 20)
            for _ in range(20):
                await backend.enqueue(new(10))
            assert not reading.done()
            go_on.set()
            assert await reading == 9, "it saw what was there when it began"

    run(main())


# ---- the disk ----------------------------------------------------------------------------------------------


def test_a_full_disk_stores_nothing_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(5))
            db = backend._engine._db
            assert db is not None
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(StoreFull, match="free some space"):
                await backend.enqueue(new(500, payload=b"x" * 900))
            with pytest.raises(StoreFull, match="free some space"):
                await backend.enqueue([*new(1), *new(3, payload=b"x" * 50_000)])
            assert count_jobs(tmp_path / "a.db") == 5
            db.execute("PRAGMA max_page_count = 1000000")
            await backend.enqueue(new(500, payload=b"x" * 900))
            assert count_jobs(tmp_path / "a.db") == 505
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"

    run(main())


def test_a_full_disk_harms_only_the_calls_that_need_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(5))
            db = backend._engine._db
            assert db is not None
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 1}")
            other = shell(tmp_path / "a.db")
            other.execute("BEGIN IMMEDIATE")
            tasks = [
                asyncio.create_task(backend.enqueue(specs))
                for specs in (new(), [*new(3), *new(1, payload=b"x" * 200_000)], new())
            ]
            await asyncio.sleep(0.01)
            other.execute("ROLLBACK")
            other.close()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(answer) for answer in answers] == [list, StoreFull, list]
        assert count_jobs(tmp_path / "a.db") == 7

    run(main())


@pytest.mark.parametrize("how", ["deleted", "replaced", "cut"])
def test_a_file_that_goes_away_is_noticed_before_anything_is_acknowledged(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.db"

    async def main() -> None:
        async with opened(path) as backend:
            await backend.enqueue(new())
            await backend.counts()
            path.rename(tmp_path / "kept.db")
            if how == "replaced":
                shutil.copy(tmp_path / "kept.db", path)
            elif how == "cut":
                path.touch()
            before = path.stat().st_size if path.exists() else None
            for verb in (backend.enqueue(new()), backend.claim(["default"], 1, 30_000, "w"), backend.counts()):
                with pytest.raises(ConfigurationError, match="deleted or replaced while in use"):
                    await verb
            with pytest.raises(ConfigurationError, match="deleted or replaced"):
                await backend.open()
            after = path.stat().st_size if path.exists() else None
            assert after == before, "nothing was made in its place"

    run(main())


def test_a_file_that_comes_back_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def main() -> None:
        async with opened(path) as backend:
            await backend.enqueue(new())
            for name in ("a.db", "a.db-wal", "a.db-shm"):
                (tmp_path / name).rename(tmp_path / f"{name}.away")
            with pytest.raises(ConfigurationError):
                await backend.enqueue(new())
            for name in ("a.db", "a.db-wal", "a.db-shm"):
                if (tmp_path / f"{name}.away").exists():
                    (tmp_path / f"{name}.away").rename(tmp_path / name)
            await backend.enqueue(new())
            assert (await backend.counts())["default"].states

    run(main())


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def fill() -> None:
        async with opened(path) as backend:
            await backend.enqueue(new(1_000))

    async def use() -> None:
        async with opened(path) as backend:
            await backend.enqueue(new(1_000))
            await backend.counts()

    run(fill())
    content = bytearray(path.read_bytes())
    content[4_096:] = b"\xff" * (len(content) - 4_096)
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        run(use())


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (sqlite3.SQLITE_BUSY, Unavailable, "locked"),
        (sqlite3.SQLITE_FULL, StoreFull, "free some space"),
        (sqlite3.SQLITE_IOERR | 4 << 8, Unavailable, "system's log"),
        (sqlite3.SQLITE_READONLY, ConfigurationError, "permissions"),
        (sqlite3.SQLITE_READONLY_DBMOVED, ConfigurationError, "deleted or replaced"),
        (sqlite3.SQLITE_CANTOPEN, ConfigurationError, "cannot be opened"),
        (sqlite3.SQLITE_CORRUPT, ConfigurationError, "damaged"),
        (sqlite3.SQLITE_NOTADB, ConfigurationError, "not a SQLite database"),
    ],
)
def test_every_error_says_what_to_do_on_one_line(code: int, kind: type[PackhorseError], words: str) -> None:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    ours = explain(error, Location("/srv/a.db"))
    assert type(ours) is kind
    assert words in str(ours)
    assert "\n" not in str(ours)
    assert ours.__cause__ is error


# ---- durability --------------------------------------------------------------------------------------------

_ACKNOWLEDGE = """
import asyncio, os, sys
from packhorse.backends.sqlite import SQLiteBackend
from packhorse.job import JobSpec

async def main():
    backend = SQLiteBackend("sqlite:///" + sys.argv[1])
    await backend.open()
    for n in range(20):
        os.write(2, b"ASKED")
        await backend.enqueue([JobSpec(id=str(n), type="t")])
        os.write(2, b"ACKNOWLEDGED")
    await backend.close()

asyncio.run(main())
"""


def test_every_acknowledged_enqueue_was_synced_first(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        assert os.environ.get("CI") != "true", "strace is needed in CI"
        pytest.skip("strace is not installed")
    log = tmp_path / "strace.log"
    subprocess.run(
        [strace, "-f", "-y", "-e", "trace=fdatasync,fsync,write", "-o", log, sys.executable, "-c", _ACKNOWLEDGE,
         tmp_path / "a.db"],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    asked, synced, acknowledged = False, False, 0
    for line in log.read_text().splitlines():
        if '"ASKED"' in line:
            asked, synced = True, False
        elif asked and re.search(r"f(data)?sync(\(\d+<.*a\.db-wal>\)| resumed).*= 0", line):
            synced = True
        elif '"ACKNOWLEDGED"' in line:
            assert synced, f"enqueue {acknowledged} was acknowledged before the disk had it"
            acknowledged += 1
    assert acknowledged == 20


# ---- fork --------------------------------------------------------------------------------------------------

_FORK = """
import asyncio, gc, os, sys, threading
from packhorse.backends import still
from packhorse.backends.sqlite import SQLiteBackend
from packhorse.errors import ConfigurationError
from packhorse.job import JobSpec

PATH, STANDS_STILL = os.path.realpath(sys.argv[1]), sys.argv[2] == "still"
URL = "sqlite:///" + PATH
backend = SQLiteBackend(URL)

def descriptors():
    if not os.path.isdir("/proc/self/fd"):
        return None
    return [os.path.realpath("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd")].count(PATH)

async def before():
    await backend.open()
    await backend.enqueue([JobSpec(id="parent 1", type="t")])
    await backend.counts()

async def in_child():
    for use in (lambda: backend.enqueue([JobSpec(id="x", type="t")]), backend.counts, backend.open):
        try:
            await use()
        except ConfigurationError as error:
            assert "fork" in str(error)
        else:
            raise SystemExit("the child could use the parent's connection")
    await backend.close()
    own = SQLiteBackend(URL)
    try:
        await own.open()
        await own.enqueue([JobSpec(id="child", type="t")])
    except ConfigurationError as error:
        assert not STANDS_STILL and "start it as a program of its own" in str(error), error
    else:
        assert STANDS_STILL
    await own.close()

async def after():
    assert STANDS_STILL or os.path.exists(PATH + "-wal"), "the child removed the WAL"
    await backend.enqueue([JobSpec(id="parent 2", type="t")])
    print(*(await backend.counts())["default"].states.values())
    await backend.close()

asyncio.run(before())
if not STANDS_STILL:  # the writer is in the middle of something, and longer than a fork waits
    still.WAIT_MS_MAX = 100
    backend._engine._writing.acquire()
child = os.fork()
if child == 0:
    assert descriptors() in (None, 0) or not STANDS_STILL, "the child has the parent's connections"
    asyncio.run(in_child())
    del backend
    gc.collect()
    assert descriptors() != 0 or STANDS_STILL, "the child closed the connection"
    # and then the interpreter ends as it always does, freeing all it can
else:
    if not STANDS_STILL:
        backend._engine._writing.release()
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
    asyncio.run(after())
"""


@pytest.mark.parametrize("writer", ["still", "busy"])
def test_a_forked_child_neither_uses_nor_closes_the_connections(tmp_path: Path, writer: str) -> None:
    """It has none, if the writer stands still soon enough; else nothing of it goes to that file."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORK, tmp_path / "a.db", writer],
        timeout=60, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("3" if writer == "still" else "2")
    db = shell(tmp_path / "a.db")
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    db.close()


def test_a_killed_process_loses_nothing_acknowledged(tmp_path: Path) -> None:
    script = _ACKNOWLEDGE.replace("    await backend.close()", "    os.kill(os.getpid(), 9)")
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.db"], timeout=60, check=False, capture_output=True
    )
    assert done.returncode == -9
    assert count_jobs(tmp_path / "a.db") == 20
