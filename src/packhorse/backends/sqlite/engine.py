"""The two threads of a backend: one writes, one reads, and the event loop never waits for the disk.

The writer takes all that was asked meanwhile into one transaction, so callers share one COMMIT, which is
one fsync. It answers only after COMMIT returned. The reader has a connection of its own: a long listing
stops nobody.

Why the SQL of this package moves whole batches in single statements, as JSON, and not row by row: Python
gives the interpreter lock away around every step of a statement, and a thread that gives it away beside a
busy event loop gets it back after 5 ms. Row by row, 1,000 rows took 3 s beside a busy loop; in single
statements 0.09 s (bench, 2026-11-22). test_batches_take_few_statements guards it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

from ...chance import secret_hex
from ...clock import Clock
from ...errors import ConfigurationError, PackhorseError
from ...inherited import leave_alone
from ..still import stand_still_for_forks
from . import filing
from .binding import Committing
from .connection import check_schema, connect, establish, explain, patiently, primary_code
from .filing import Location
from .ops import WRITE, Call, Hints, Op, Redo, Transaction, answer, outcome_of, run_op
from .wake import Wake

#: Items in one transaction: about 40 ms of work, what a caller may have to wait for others of its process.
GROUP_ITEMS_MAX = 2_000

#: Pages that the WAL is to have when a checkpoint is made: 4,000 are 16 MB. Fewer means more fsyncs of the
#: main file, more means longer pauses and a slower start after a crash.
CHECKPOINT_PAGES = 4_000
#: We only guess what we write, and others write too; so each checkpoint corrects the guess, within these bounds.
BUDGET_PAGES_MIN = 500
BUDGET_PAGES_MAX = 20_000
#: How long a checkpoint waits for other writers. Without waiting, one of four busy processes hardly ever got to it.
CHECKPOINT_BUSY_MS = 1_000


class Engine:
    """The connections to one file and the threads that use them."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.location = location
        self.clock = clock
        self.wake = Wake(lambda: self.read(_data_version))
        self._lock = threading.Lock()
        # Held while the thread is in SQLite: a child forked in the middle of something could not use that.
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._writes: SimpleQueue[Op | Call] | None = None  # there is a thread exactly while this is set
        self._reads: SimpleQueue[Call] | None = None
        self._identity: filing.Identity | None = None
        self._db: sqlite3.Connection | None = None
        self._checkpointer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._pages = 0  # written since the last checkpoint, roughly
        self._budget = CHECKPOINT_PAGES // 2  # of such pages until the next one
        # 62 bits that nobody else starts from, then counted up: a token names one claim for ever.
        self._token = int(secret_hex(8), 16) >> 2
        self._hints = Hints()
        self.rate_limited = self._hints.rate_limited.counts
        self._forked = False
        self.committing = Committing(location, self._ring)
        stand_still_for_forks(self)

    # ---- asked from an event loop ----------------------------------------------------------------------

    async def open(self) -> None:
        """Start the writer and let it connect. Opening twice is harmless."""
        self._refuse_fork()
        with self._lock:
            if self._writes is None:
                self._writes = SimpleQueue()
                _start(self._write_loop, self._writes, "packhorse-sqlite-writer")
            writes = self._writes
        call = Call(self._connect)
        writes.put(call)
        try:
            await call.future
        except BaseException:
            await self.close()
            raise
        if self.wake.bells.are_hung:
            self.wake.start()

    async def close(self) -> None:
        """Finish what was asked, then disconnect. Idempotent."""
        if self._forked:
            return
        with self._lock:
            writes, self._writes = self._writes, None
            reads, self._reads = self._reads, None
        self.wake.stop()
        self.committing.close()
        for requests, action in ((reads, self._disconnect_reader), (writes, self._disconnect)):
            if requests is not None:
                last = Call(action, last=True)
                requests.put(last)
                await asyncio.shield(last.future)

    @property
    def is_open(self) -> bool:
        """Tell whether operations are taken."""
        return self._writes is not None

    def post(self, op: Op) -> asyncio.Future[Any]:
        """Hand an operation to the writer."""
        self._refuse_fork()
        writes = self._writes
        if writes is None:
            raise ConfigurationError("this backend is not open; call open() first")
        writes.put(op)
        return op.future

    def read(self, look: Callable[[sqlite3.Connection, int], Any]) -> asyncio.Future[Any]:
        """Hand a look to the reader, which starts when it is first needed."""
        self._refuse_fork()
        if self._writes is None:
            raise ConfigurationError("this backend is not open; call open() first")
        with self._lock:
            if self._reads is None:
                self._reads = SimpleQueue()
                _start(self._read_loop, self._reads, "packhorse-sqlite-reader")
            reads = self._reads
        call = Call(lambda: self._look(look))
        reads.put(call)
        return call.future

    # ---- asked from any thread, about a transaction on a connection of its caller's ------------------------

    def join(self, db: sqlite3.Connection) -> Transaction:
        """Answer what operations work with on a connection that is not ours, and holds the write lock."""
        self._refuse_fork()
        if self._identity is None:
            raise ConfigurationError("this backend is not open; call open() first")
        self._check_identity()
        return Transaction(db, self.clock.now_ms(), self._new_token, self._hints)

    def joined(self, items: int, tx: Transaction) -> None:
        """Take note of what was written there."""
        self._pages += _pages(items, tx)

    def _ring(self, topics: set[str]) -> None:
        self.wake.tell_others()
        self.wake.bells.ring(topics)

    def _refuse_fork(self) -> None:
        if self._forked:
            raise ConfigurationError(
                "this backend was opened before the process forked, and SQLite connections do not survive that; "
                "make a new one in the child"
            )

    # ---- in the writer thread --------------------------------------------------------------------------

    def _write_loop(self, requests: SimpleQueue[Op | Call]) -> None:
        while True:
            ops: list[Op] = []
            items = 0
            request: Op | Call = requests.get()
            while isinstance(request, Op):
                ops.append(request)
                items += request.items
                if items >= GROUP_ITEMS_MAX or requests.empty():
                    break
                request = requests.get()
            with self._writing:
                if ops:
                    self._write(ops)
                if isinstance(request, Call):
                    answer([request], [outcome_of(request.action)])
            if isinstance(request, Call) and request.last:
                return

    def _write(self, ops: list[Op]) -> None:
        """Do all of `ops` in one transaction and answer them."""
        ops = [op for op in ops if not op.future.cancelled()]
        topics: set[str] = set()
        pages = 0
        try:
            outcomes = self._probe(ops)
            if outcomes is None:
                outcomes, topics, pages = self._commit(ops)
            self._check_identity()
        except Exception as error:  # whatever it was: nobody may wait for ever
            if _breaks_connection(error):
                self._drop_connection()
            outcomes = [explain(error, self.location) for _ in ops]
            topics = set()
        if topics:
            self.wake.tell_others()
        answer(ops, outcomes)
        if topics:
            self.wake.bells.ring(topics)
        self._pages += pages
        if self._pages >= self._budget:
            self._checkpoint()

    def _probe(self, ops: list[Op]) -> list[Any] | None:
        """Answer `ops` without a transaction if none of them has anything to write, else None."""
        if not all(op.probe for op in ops):
            return None
        now_ms = self.clock.now_ms()
        outcomes = []
        for op in ops:
            outcome = patiently(partial(self._probe_one, op, now_ms), self.location.busy_ms, self._writing)
            if outcome is WRITE:
                return None
            outcomes.append(outcome)
        return outcomes

    def _probe_one(self, op: Op, now_ms: int) -> Any:
        assert op.probe is not None
        return op.probe(self._connection(), now_ms, op.args)

    def _commit(self, ops: list[Op]) -> tuple[list[Any], set[str], int]:
        """First all together without savepoints, which cost; if anything does not go smoothly, one by one."""
        try:
            return self._together(ops)
        except Redo:
            pass
        except Exception as error:
            if len(ops) == 1 or _breaks_connection(error) or primary_code(error) == sqlite3.SQLITE_BUSY:
                raise
        return self._one_by_one(ops)

    def _together(self, ops: list[Op]) -> tuple[list[Any], set[str], int]:
        tx = self._begin()
        try:
            outcomes: list[Any] = []
            start = 0
            while start < len(ops):
                many = ops[start].many
                end = start + 1
                while many is not None and end < len(ops) and ops[end].many is many:
                    end += 1
                if many is not None:
                    outcomes += many(tx, [op.args for op in ops[start:end]])
                else:
                    outcomes.append(run_op(ops[start], tx))
                start = end
                if start < len(ops):
                    tx.next_op()
            tx.finish()
            tx.db.execute("COMMIT")
        finally:
            _roll_back(tx.db)
        return outcomes, tx.topics, _pages(sum(op.items for op in ops), tx)

    def _one_by_one(self, ops: list[Op]) -> tuple[list[Any], set[str], int]:
        """Each in a savepoint: what fails harms no neighbour."""
        tx = self._begin()
        topics: set[str] = set()
        outcomes: list[Any] = []
        try:
            for op in ops:
                saved = tx.save("one")
                tx.topics = set()
                try:
                    outcomes.append(op.run(tx, op.args))
                    topics |= tx.topics
                except Exception as error:
                    if _breaks_connection(error) or not tx.db.in_transaction:
                        raise
                    tx.roll_back("one", saved)
                    outcomes.append(explain(error, self.location))
                tx.next_op()
                tx.db.execute("RELEASE one")
            tx.topics = topics
            tx.finish()
            tx.db.execute("COMMIT")
        finally:
            _roll_back(tx.db)
        return outcomes, topics, _pages(sum(op.items for op in ops), tx)

    def _begin(self) -> Transaction:
        db = patiently(self._begin_on, self.location.busy_ms, self._writing)
        return Transaction(db, self.clock.now_ms(), self._new_token, self._hints)

    def _begin_on(self) -> sqlite3.Connection:
        """Answer the connection, on which a transaction has begun.

        IMMEDIATE always: one that reads first and writes later fails at once when another process wrote in between,
        however long the busy timeout.
        """
        db = self._connection()  # each time: a fork may have closed the one before
        db.execute("BEGIN IMMEDIATE")
        return db

    def _new_token(self) -> int:
        self._token += 1
        return self._token

    # ---- connections -----------------------------------------------------------------------------------

    def _connect(self) -> None:
        """In the writer thread: open the file, making it if there is none and there never was one."""
        if self._db is not None:
            self._check_identity()
            return
        location = self.location
        try:
            with filing.OPENING:
                if self._identity is None:
                    filing.prepare(location.path)
                else:
                    self._check_identity()
                db = connect(location)
            try:
                if self._identity is None:
                    establish(db, location)
                    self._identity = filing.identify(location.path)
                else:  # never a new schema where there was one: a file cut to nothing is not a new store
                    check_schema(db, location)
                self.wake.open(location.path)
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as error:
            raise explain(error, location) from error
        self._db = db

    def _connection(self) -> sqlite3.Connection:
        """Answer the writer's connection, opening it again if an error made us drop it."""
        if self._db is None:
            self._connect()
        assert self._db is not None
        return self._db

    def _check_identity(self) -> None:
        """Raise if the path no longer names the file we write to: what we commit there, nobody would ever see.

        2 us a transaction, so it is done after every COMMIT and before anything is acknowledged.
        """
        if filing.identify(self.location.path) != self._identity:
            raise filing.gone(self.location.path)

    def _drop_connection(self) -> None:
        """After an error that may have left a connection in any state: the next operation opens a new one."""
        for db in (self._checkpointer, self._db):
            if db is not None:
                with suppress(sqlite3.Error):
                    db.close()
        self._checkpointer = self._db = None

    def _disconnect(self) -> None:
        self._drop_connection()
        self._identity = None
        self.wake.close()

    def _checkpoint(self) -> None:
        """Move the WAL's pages into the file, so that the WAL can start over instead of growing.

        SQLite before 3.51.3 can lose pages when a checkpoint and a write that restarts the WAL meet (FAILURES A,
        "WAL-reset"). So nobody may write meanwhile: this thread holds the write lock on its own connection and
        lets a second one do the checkpoint; every packhorse process does the same, none checkpoints otherwise.
        """
        if self._db is None:
            return
        try:
            db = patiently(self._begin_on, CHECKPOINT_BUSY_MS, self._writing)
        except (sqlite3.OperationalError, PackhorseError):
            return  # after the next transaction we try again
        try:
            if self._checkpointer is None:
                with filing.OPENING:
                    self._checkpointer = connect(self.location)
            _, length, _ = self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            guess = self._budget * CHECKPOINT_PAGES // max(1, length)
            self._budget = min(max(guess, BUDGET_PAGES_MIN), BUDGET_PAGES_MAX)
        except sqlite3.Error:
            pass  # nothing is lost: the pages stay in the WAL, and the next write will say what is wrong
        finally:
            self._pages = 0
            _roll_back(db)

    # ---- in the reader thread --------------------------------------------------------------------------

    def _read_loop(self, requests: SimpleQueue[Call]) -> None:
        while True:
            calls = [requests.get()]
            while not calls[-1].last and not requests.empty():
                calls.append(requests.get())
            with self._reading:
                answer(calls, [None if call.future.cancelled() else outcome_of(call.action) for call in calls])
            if calls[-1].last:
                return

    def _look(self, look: Callable[[sqlite3.Connection, int], Any]) -> Any:
        try:
            found = patiently(lambda: look(self._look_on(), self.clock.now_ms()), self.location.busy_ms, self._reading)
            self._check_identity()
            return found
        except PackhorseError:
            raise
        except Exception as error:
            self._disconnect_reader()
            raise explain(error, self.location) from error

    def _look_on(self) -> sqlite3.Connection:
        """Answer the reader's connection, opening it if there is none: at first, after an error and after a fork."""
        if self._reader is None:
            self._check_identity()
            with filing.OPENING:
                self._reader = connect(self.location, read_only=True)
        return self._reader

    def _disconnect_reader(self) -> None:
        if self._reader is not None:
            with suppress(sqlite3.Error):
                self._reader.close()
            self._reader = None

    # ---- fork ------------------------------------------------------------------------------------------

    def locks(self) -> list[threading.Lock]:
        """Answer what a fork waits for: all that may be in SQLite on a connection of ours."""
        return [self._writing, self._reading, self.committing.lock]

    def before_fork(self) -> None:
        """Close all connections; this process opens them again when it needs them.

        SQLite in a child that has a connection of its parent's believes in locks that only the parent holds. What the
        child opens for itself then takes none, and once the parent closes, the WAL that the child writes to is removed:
        jobs that were acknowledged would be gone.
        """
        self._drop_connection()
        self._disconnect_reader()
        self.committing.before_fork()

    def after_fork_in_child(self) -> None:
        """Begin anew.

        A connection that the fork could not wait for has no locks here: it may be neither used nor closed, and no other
        of this process to that file can be right.
        """
        ours = (self._db, self._checkpointer, self._reader, self.committing.connection)
        if any(db is not None for db in ours):
            leave_alone(ours)
            filing.inherited.add(self.location.path)
        self._forked = True
        self._db = self._checkpointer = self._reader = None
        self._writes = self._reads = None
        self._lock = threading.Lock()
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self.committing.forget()
        self.wake.after_fork_in_child()


#: 0: not an error of SQLite.
_HARMLESS = {
    0,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_ERROR,
}


def _data_version(db: sqlite3.Connection, _now_ms: int) -> int:
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def _start(target: Callable[[Any], None], requests: object, name: str) -> None:
    # A daemon: a program that forgets close() still ends. What was not answered was not promised.
    threading.Thread(target=target, args=(requests,), name=name, daemon=True).start()


def _breaks_connection(error: BaseException) -> bool:
    """Tell errors after which only a new connection is trusted from those of one operation."""
    return isinstance(error, ConfigurationError) or primary_code(error) not in _HARMLESS


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        with suppress(sqlite3.Error):  # a broken connection is dropped by whoever sees the first error
            db.execute("ROLLBACK")


def _pages(items: int, tx: Transaction) -> int:
    """Estimate the WAL pages a transaction wrote; test_the_wal_stays_bounded checks the sum."""
    return 4 + items // 8 + tx.pages
