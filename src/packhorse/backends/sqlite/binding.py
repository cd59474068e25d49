"""Verbs on a connection of the caller's own to our file, as a part of its transaction."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ...clock import SYSTEM_CLOCK, pause
from ...errors import InvalidOption, Unavailable
from ...job import JobRecord, JobSpec
from ..base import Bound, Capabilities, Enqueued, Settlement, Verdict, check_batch, check_settlements, check_specs
from ..unwrapping import begun, sqlalchemy_is_async
from . import adding, filing, looking, moving
from .connection import connect, explain, primary_code
from .filing import Location
from .ops import Transaction

if TYPE_CHECKING:
    from .engine import Engine

T = TypeVar("T")

_SAVEPOINT = "packhorse"
#: Takes the write lock and changes nothing. Before anything is read: a transaction that has read what another one wrote
#: over since can never write. test_a_transaction_that_only_read_is_told_what_to_do.
_LOCK = "UPDATE queues SET paused = paused WHERE 0"

#: How often it is asked whether a transaction has ended, right after the call and later, and for how long at most.
_LOOK_S_MIN = 0.001
_LOOK_S_MAX = 0.025
_LOOK_MS_MAX = 60_000
#: The thread that asks stays this long for the next one.
_IDLE_S = 2.0


def check_connection(connection: object) -> None:
    """Refuse what is no connection this backend can use."""
    if isinstance(connection, sqlite3.Connection) or sqlalchemy_is_async(connection) is False:
        return
    raise InvalidOption(
        f"connection: a {type(connection).__module__}.{type(connection).__qualname__} cannot share its transaction "
        "with jobs in SQLite; give a sqlite3.Connection, or a SQLAlchemy Connection or Session for blocking code"
    )


class SQLiteBound(Bound):
    """A connection of Python's `sqlite3` to our file, alone or below SQLAlchemy."""

    blocking = True

    def __init__(self, engine: Engine, connection: Any, capabilities: Capabilities) -> None:
        self._engine = engine
        self._connection = connection
        self._known: sqlite3.Connection | None = None  # that it leads to our file
        self.capabilities = capabilities

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        check_specs(specs, self.capabilities)
        return self._write(lambda tx: adding.enqueue(tx, specs), len(specs)) if specs else []

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        check_settlements(settlements, self.capabilities)
        return self._write(lambda tx: moving.settle(tx, settlements), len(settlements)) if settlements else []

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        check_batch(ids)
        with _as_ours(self._db()) as db:
            try:
                return looking.get(db, ids)
            except sqlite3.Error as error:
                raise explain(error, self._engine.location) from error

    def _db(self) -> sqlite3.Connection:
        connection = self._connection
        db = connection if isinstance(connection, sqlite3.Connection) else begun(connection)
        if db is not self._known:
            self._check(db)
            self._known = db
        return db

    def _check(self, db: object) -> None:
        """Refuse a connection to another file."""
        if not isinstance(db, sqlite3.Connection):
            check_connection(db)
            return
        with _as_ours(db):
            files = {name: path for _, name, path in db.execute("PRAGMA database_list")}
        path, ours = files.get("main") or "", self._engine.location.path
        if not path or filing.identify(path) != filing.identify(ours):
            raise InvalidOption(
                f"connection: it leads to {path or 'a database in memory'}, the jobs are in {ours}; "
                "one transaction cannot cover two files: keep your tables in the file of the jobs"
            )

    def _write(self, move: Callable[[Transaction], T], items: int) -> T:
        """Do a move in a savepoint of the caller's transaction."""
        engine = self._engine
        db = self._db()
        with _as_ours(db):
            _see_transaction(db)
            db.execute(f"SAVEPOINT {_SAVEPOINT}")
            try:
                _lock(db, engine.location.path)
                tx = engine.join(db)
                answer = move(tx)
                tx.finish()
                if tx.topics:
                    engine.committing.expect(tx.topics)
            except BaseException as error:
                with suppress(sqlite3.Error):  # SQLite itself has rolled all of it back
                    db.execute(f"ROLLBACK TO {_SAVEPOINT}")
                    db.execute(f"RELEASE {_SAVEPOINT}")
                ours = explain(error, engine.location)
                if ours is error:
                    raise
                raise ours from error
            db.execute(f"RELEASE {_SAVEPOINT}")
        engine.joined(items, tx)
        return answer


@contextmanager
def _as_ours(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Make rows and text what our statements expect, for as long as they run."""
    factories = db.row_factory, db.text_factory
    db.row_factory, db.text_factory = None, str
    try:
        yield db
    finally:
        db.row_factory, db.text_factory = factories


def _see_transaction(db: sqlite3.Connection) -> None:
    """See that a transaction is open: the one that `sqlite3` itself would begin now, if the caller leaves it that."""
    if db.in_transaction:
        return
    # Python 3.12 has `autocommit`; where it is not its LEGACY value (-1), `isolation_level` says nothing.
    if db.isolation_level is None or getattr(db, "autocommit", -1) != -1:
        raise InvalidOption(
            "connection: no transaction is open on it, and in autocommit mode nobody would commit it; "
            'begin one first: connection.execute("BEGIN IMMEDIATE")'
        )
    db.execute(f"BEGIN {db.isolation_level}")


def _lock(db: sqlite3.Connection, path: str) -> None:
    try:
        db.execute(_LOCK)
    except sqlite3.OperationalError as error:
        if primary_code(error) not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise
        raise Unavailable(
            f"{path}: another transaction writes, or has written since this one began to read; roll back, try again, "
            "and begin transactions that enqueue or settle with BEGIN IMMEDIATE, which waits for its turn as long as "
            "the connection's timeout says"
        ) from error


class Committing:
    """Rings when transactions that are not ours have ended: until then nobody can see what they enqueued.

    Such a transaction holds the write lock, so the next commit to the file is its own; `PRAGMA data_version` tells of
    it on any other connection. After a rollback it is somebody else's, and the ring a false one.
    """

    def __init__(self, location: Location, ring: Callable[[set[str]], None]) -> None:
        self._location = location
        self._ring = ring
        self.forget()

    def forget(self) -> None:
        """Begin anew: at first, and in a forked child, to which neither the connection nor the thread belongs."""
        self.lock = threading.Lock()
        self._asked = threading.Event()
        self._db: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None
        self._version = 0
        self._topics: set[str] = set()
        self._give_up_ms = 0

    def expect(self, topics: set[str]) -> None:
        """Ring for `topics` after the end of the transaction that runs in this thread and holds the write lock."""
        late: set[str] = set()
        with self.lock, suppress(sqlite3.Error):  # a hint only: waiters poll as well
            if self._db is None:
                with filing.OPENING:
                    self._db = connect(self._location, read_only=True)
            version = _read_version(self._db)
            if version != self._version:
                late = self._take()  # of one that has ended since the last look
            self._version = version
            self._topics |= topics
            self._give_up_ms = SYSTEM_CLOCK.boot_ms() + _LOOK_MS_MAX
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="packhorse-sqlite-committing", daemon=True)
                self._thread.start()
        self._asked.set()
        if late:
            self._ring(late)

    def _take(self) -> set[str]:
        topics, self._topics = self._topics, set()
        return topics

    def _watch(self) -> None:
        while True:
            if not self._asked.wait(_IDLE_S) and self._leave():
                return
            self._asked.clear()
            look_s = _LOOK_S_MIN
            while topics := self._look():
                if topics is not _NOT_YET:
                    self._ring(topics)
                    break
                pause(look_s)
                look_s = min(_LOOK_S_MAX, look_s * 1.2)

    def _look(self) -> set[str]:
        """Answer what to ring for; nothing where somebody else has rung, and `_NOT_YET`."""
        with self.lock:
            if not self._topics:
                return set()
            try:
                version = self._version if self._db is None else _read_version(self._db)
            except sqlite3.Error:
                version = -1
            if version == self._version and SYSTEM_CLOCK.boot_ms() < self._give_up_ms:
                return _NOT_YET
            return self._take()

    def _leave(self) -> bool:
        with self.lock:
            if self._asked.is_set():
                return False
            self._thread = None
            self._close()
            return True

    def before_fork(self) -> None:
        """Close the connection. Without it nobody can tell what is committed, so the next look rings."""
        self._give_up_ms = 0
        self._close()

    def close(self) -> None:
        """Let the connection go. What was not rung for, waiters find by polling."""
        with self.lock:
            self._topics = set()
            self._close()

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    @property
    def connection(self) -> sqlite3.Connection | None:
        """The connection that asks."""
        return self._db


_NOT_YET = {"not yet"}


def _read_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA data_version").fetchone()[0])
