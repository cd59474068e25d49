"""Connections: their settings, the schema and its migrations, and what SQLite's errors mean for a caller."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ...chance import CHANCE
from ...clock import SYSTEM_CLOCK, pause
from ...errors import ConfigurationError, PackhorseError, SchemaMismatch, StoreFull, Unavailable
from . import filing
from .filing import Location, sqlite_uri

T = TypeVar("T")

#: The schema this version works with: the number of the last file in `schema/`. test_schema_number.
SCHEMA = 5
#: "phjq" in the header of the file, so that `file` and we know whose it is.
APPLICATION_ID = 0x70686A71
MIGRATIONS = Path(__file__).parent / "schema"

#: STRICT (3.37) and ->> (3.38). Debian 12 has 3.40, Ubuntu 22.04 has 3.37 but Python builds bring newer ones.
SQLITE_MIN = (3, 38, 0)

#: Pages in memory, KiB. Claim and settle of a batch touch the same few hundred pages; more gained nothing
#: at 1,000,000 pending (bench, 2026-11-22), and a process is to stay under 50 MB.
CACHE_KIB = 8_000

#: What a WAL that grew past this is cut back to when it starts over. Normally it stays below; see engine.py.
WAL_BYTES_KEPT = 64 * 1024 * 1024

#: While another process holds the write lock. One write there takes about 1 ms, so the first tries are quick;
#: later ones are spread so that 50 waiting processes do not spend a core on asking.
WAIT_MS_FIRST = 0.3
WAIT_MS_MAX = 5.0


def connect(location: Location, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection to a file that exists, with our settings."""
    if location.path in filing.inherited:
        raise ConfigurationError(
            f"{location.path}: this process was forked while its parent had been busy in that file for too long, and "
            "what it wrote there could be lost; fork again, or start it as a program of its own"
        )
    # timeout=0: SQLite's own waiting sleeps up to 100 ms; see `patiently`.
    db = sqlite3.connect(
        sqlite_uri(location.path),
        uri=True,
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=128,
    )
    try:
        for setting in _settings(location, read_only=read_only):
            # Some of them read the file, which is locked while another process turns it to WAL or recovers it.
            patiently(lambda setting=setting: db.execute(f"PRAGMA {setting}"), location.busy_ms)  # type: ignore[misc]  # mypy cannot type a lambda with defaults
    except BaseException:
        db.close()
        raise
    return db


def _settings(location: Location, *, read_only: bool) -> list[str]:
    settings = [
        # Only Engine._checkpoint makes checkpoints. No mmap ever: it is unsafe beside other writers (FAILURES A).
        "wal_autocheckpoint=0",
        "mmap_size=0",
        f"synchronous={location.synchronous}",
        f"cache_size=-{CACHE_KIB}",
        f"journal_size_limit={WAL_BYTES_KEPT}",
        "temp_store=MEMORY",
        "trusted_schema=OFF",
        # Deleted jobs are overwritten where that costs no extra I/O; Debian's default (ON) writes every freed page.
        "secure_delete=FAST",
    ]
    if sys.platform == "darwin":  # there, fsync alone does not reach the disk
        settings.append("fullfsync=ON")
    if read_only:
        # Not mode=ro: such a connection cannot bring the WAL of a crashed process back.
        settings.append("query_only=ON")
    return settings


def patiently(action: Callable[[], T], busy_ms: int, moving: threading.Lock | None = None) -> T:
    """Repeat `action` while another process is in its way, for at most `busy_ms`; then raise what it raised.

    `moving`, which the caller holds, is let go between two tries.
    """
    give_up_at_ms = SYSTEM_CLOCK.boot_ms() + busy_ms
    wait_ms = WAIT_MS_FIRST
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY or SYSTEM_CLOCK.boot_ms() >= give_up_at_ms:
                raise
        if moving is not None:
            moving.release()
        try:
            pause(CHANCE.uniform(wait_ms / 2, wait_ms) / 1000)
        finally:
            if moving is not None:
                moving.acquire()
        wait_ms = min(WAIT_MS_MAX, wait_ms * 1.1)


def primary_code(error: BaseException) -> int:
    """Answer SQLite's result code without its details; 0 for errors that are not SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


# ---- schema ------------------------------------------------------------------------------------------------


def establish(db: sqlite3.Connection, location: Location) -> None:
    """See that the file is ours and of our schema. An empty file becomes a store, whoever of many comes first.

    Raises ConfigurationError for other programs' files and SchemaMismatch for other versions.
    """
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        wanted = ".".join(map(str, SQLITE_MIN))
        raise ConfigurationError(f"SQLite {sqlite3.sqlite_version} is too old; packhorse needs {wanted} or newer")
    if _is_empty(db, location):
        _set_wal(db, location)
        patiently(lambda: _fill(db), location.busy_ms)
    check_schema(db, location)
    _set_wal(db, location)


def _is_empty(db: sqlite3.Connection, location: Location) -> bool:
    owner, version = _header(db, location)
    if owner or version:
        return False
    return bool(patiently(lambda: db.execute("SELECT count(*) = 0 FROM sqlite_master").fetchone()[0], location.busy_ms))


def _header(db: sqlite3.Connection, location: Location) -> tuple[int, int]:
    def read() -> tuple[int, int]:
        return db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]

    return patiently(read, location.busy_ms)


def check_schema(db: sqlite3.Connection, location: Location) -> None:
    """Raise unless the file is ours and has the schema of this version."""
    owner, found = _header(db, location)
    _check_owner(owner, location)
    if found < SCHEMA:
        raise SchemaMismatch(found, SCHEMA, f"bring {location.path} up to date with: packhorse migrate")
    if found > SCHEMA:
        raise SchemaMismatch(found, SCHEMA, f"{location.path} was made by a newer packhorse; upgrade this one")


def _check_owner(owner: int, location: Location) -> None:
    if owner != APPLICATION_ID:
        raise ConfigurationError(f"{location.path} is the database of another program; name another file")


def _set_wal(db: sqlite3.Connection, location: Location) -> None:
    mode = patiently(lambda: db.execute("PRAGMA journal_mode=WAL").fetchone()[0], location.busy_ms)
    if mode != "wal":
        raise ConfigurationError(
            f"{location.path} cannot use write-ahead logging (it stays in {mode!r}); "
            "is it on a network file system? Move it to a local disk"
        )


def _fill(db: sqlite3.Connection) -> None:
    """Make the newest schema in one transaction, so that no opener ever sees an older one in between."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:  # nobody was quicker
            for number, script in migrations():
                _apply(db, number, script)
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def migrate(location: Location) -> int:
    """Apply the migrations this file lacks, each in a transaction of its own; answers the schema's number."""
    with filing.OPENING:
        filing.prepare(location.path)
        db = connect(location)
    try:
        if _is_empty(db, location):
            establish(db, location)
        _check_owner(_header(db, location)[0], location)
        for number, script in migrations():
            patiently(lambda: db.execute("BEGIN IMMEDIATE"), location.busy_ms)
            try:
                # Read again under the lock: another process may be migrating too.
                if db.execute("PRAGMA user_version").fetchone()[0] < number:
                    _apply(db, number, script)
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        check_schema(db, location)
        return SCHEMA
    finally:
        db.close()


def migrations() -> list[tuple[int, str]]:
    """Answer number and text of every migration, in order."""
    return [(int(file.name[:4]), file.read_text("utf-8")) for file in sorted(MIGRATIONS.glob("[0-9]*.sql"))]


def _apply(db: sqlite3.Connection, number: int, script: str) -> None:
    for statement in _statements(script):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={number:d}")


def _statements(script: str) -> Iterator[str]:
    # Not executescript(): it would commit the transaction that the version was checked in.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


# ---- errors ------------------------------------------------------------------------------------------------


def explain(error: BaseException, location: Location) -> BaseException:
    """Turn an error of SQLite into one of ours that says what to do; others come back as they are."""
    if not isinstance(error, sqlite3.Error) or isinstance(error, sqlite3.ProgrammingError):
        return error
    path = location.path
    code = primary_code(error)
    ours: PackhorseError
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        ours = Unavailable(
            f"{path} was locked by another program for {location.busy_ms / 1000:g} s; find it with: fuser -v {path}"
        )
    elif code == sqlite3.SQLITE_FULL:
        ours = StoreFull(f"no room for {path}: free some space on its disk; nothing of this call was stored")
    elif getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_DBMOVED:
        ours = filing.gone(path)
    elif code == sqlite3.SQLITE_READONLY:
        ours = ConfigurationError(f"{path} cannot be written; check its permissions and those of its directory")
    elif code == sqlite3.SQLITE_NOTADB:
        ours = ConfigurationError(f"{path} is not a SQLite database; name another file")
    elif code == sqlite3.SQLITE_CORRUPT:
        ours = ConfigurationError(
            f"{path} is damaged ({error}); restore it from a backup, or try: sqlite3 {path} .recover"
        )
    elif code == sqlite3.SQLITE_CANTOPEN:
        ours = ConfigurationError(f"{path} cannot be opened; check that it is there and may be read and written")
    elif code == sqlite3.SQLITE_IOERR:
        ours = Unavailable(f"the disk of {path} failed ({error}); see the system's log")
    else:
        return error
    ours.__cause__ = error
    return ours
