"""The connections of a backend, and scripts run on them: each in one transaction, done again where it collided.

Every step is bounded in time. A caller that is cancelled leaves its script running to its end: it is done or not done.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import psycopg
from psycopg import pq

from ...chance import CHANCE
from ...clock import SYSTEM_CLOCK
from ...errors import ConfigurationError, PackhorseError
from .connection import (
    LOCAL_SETTINGS,
    Connection,
    Location,
    connect,
    explain,
    is_collision,
    is_pooled,
    is_spoilt,
    local_settings,
)
from .script import Again, Rows, Script, Statement

T = TypeVar("T")

#: How often a script is run again that collided with another transaction.
TRIES_MAX = 8
_PAUSE_MS = 5.0
#: What the client waits longer than the server is told to.
_GRACE_MS = 2_000
#: A connection that was not needed for so long is closed when another is given back: who does little keeps one.
_IDLE_MS = 5_000

# Whatever the database's default is: what waited for a lock has to see what the other one did.
_BEGIN = Statement("BEGIN ISOLATION LEVEL READ COMMITTED")


class Pool:
    """A few connections to one server, opened when they are first needed."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._idle: list[tuple[Connection, int]] = []  # and since when, the longest first
        self._slots = asyncio.Semaphore(location.pool)
        self._urgent = asyncio.Semaphore(1)
        self._open = False
        self._pid = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._local = Statement(LOCAL_SETTINGS, local_settings(location))
        self._step_s = (location.timeout_ms + _GRACE_MS) / 1000

    def open(self) -> None:
        """Take scripts from now on."""
        self._open = True
        self._pid = os.getpid()

    @property
    def is_open(self) -> bool:
        """Tell whether scripts are taken."""
        return self._open

    async def close(self) -> None:
        """Finish what is under way, then disconnect. Idempotent."""
        self._open = False
        while self._tasks:
            await asyncio.wait(list(self._tasks), timeout=self._step_s)
        while self._idle:
            await self._idle.pop()[0].close()

    def start(
        self,
        script: Callable[[], Script[T]],
        abandoned: Callable[[T], None] | None = None,
        *,
        urgent: bool = False,
    ) -> asyncio.Future[T]:
        """Run a script in a task of its own; `abandoned` is told its answer where the caller went away meanwhile.

        What is `urgent` has one connection beyond the others, so that no call that waits for a lock delays it.
        """
        if not self._open:
            raise ConfigurationError("this backend is not open; call open() first")
        if os.getpid() != self._pid:
            raise ConfigurationError(
                "this backend was opened before the process forked, and connections cannot be shared; make a new one "
                "in the child"
            )
        task = asyncio.get_running_loop().create_task(self.run(script, urgent=urgent))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        outer = asyncio.shield(task)
        if abandoned is not None:
            task.add_done_callback(lambda done: _tell(done, outer, abandoned))
        return outer

    async def run(self, script: Callable[[], Script[T]], *, urgent: bool = False) -> T:
        """Run a script here; raises errors of ours."""
        async with self._urgent if urgent else self._slots:
            for tries in range(TRIES_MAX):
                db: Connection | None = None
                try:
                    db = await self._take()
                    answer = await _Run(self, db).through(script())
                    self._give(db)
                    return answer
                except BaseException as error:
                    if db is not None:
                        await self._recover(db, error)
                    if not isinstance(error, Again) and not is_collision(error):
                        raise self.explained(error)  # noqa: B904  # it names its cause
                    if tries == TRIES_MAX - 1:
                        raise explain(_collision(error), self.location) from error
                await asyncio.sleep(CHANCE.uniform(0, _PAUSE_MS * (tries + 1)) / 1000)
        raise AssertionError("unreachable")

    def explained(self, error: BaseException) -> BaseException:
        """Answer what a caller is told of an error."""
        return error if isinstance(error, PackhorseError) else explain(error, self.location)

    async def _take(self) -> Connection:
        while self._idle:
            db, _ = self._idle.pop()
            if not db.closed and not _has_news(db):
                return db
            await _close(db)
        async with asyncio.timeout(self._step_s):
            return await connect(self.location)

    def _give(self, db: Connection) -> None:
        if not self._open:
            self._leave(db)
            return
        now_ms = SYSTEM_CLOCK.boot_ms()
        while self._idle and now_ms - self._idle[0][1] > _IDLE_MS:
            self._leave(self._idle.pop(0)[0])
        self._idle.append((db, now_ms))

    def _leave(self, db: Connection) -> None:
        task = asyncio.get_running_loop().create_task(_close(db))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _recover(self, db: Connection, error: BaseException) -> None:
        """After an error: only a connection that is known to be out of any transaction is used again."""
        if is_spoilt(error):  # then the others are too
            while self._idle:
                self._leave(self._idle.pop()[0])
        if isinstance(error, (TimeoutError, asyncio.CancelledError)) or db.closed or is_spoilt(error):
            await _close(db)
            return
        try:
            with _deadline(db, self._step_s):
                if db.info.transaction_status is not pq.TransactionStatus.IDLE:
                    await db.execute("ROLLBACK")
        except Exception:  # whatever it was, the connection is not worth more
            await _close(db)
            return
        self._give(db)


class _Run:
    """One script on one connection."""

    def __init__(self, pool: Pool, db: Connection) -> None:
        self._db = db
        self._step_s = pool._step_s  # noqa: SLF001  # of the same file
        self._local = pool._local if is_pooled(db) else None  # noqa: SLF001
        self._is_begun = False

    async def through(self, script: Script[T]) -> T:
        try:
            statement = next(script)
            while True:
                try:
                    rows = await self._ask(statement)
                except Exception as error:
                    script.throw(error)  # it may want to undo something of its own; no script answers an error
                    raise
                statement = script.send(rows)
        except StopIteration as end:
            if self._is_begun:
                with _deadline(self._db, self._step_s):
                    await self._db.execute("COMMIT")
            return cast(T, end.value)
        finally:
            script.close()

    async def _ask(self, statement: Statement) -> Rows:
        ahead = list(statement.ahead)
        first = not self._is_begun
        commits = first and statement.last
        if first and self._local is not None:
            ahead.insert(0, self._local)
        # What goes in one message is one transaction; behind a pooler of an isolation that others have set.
        is_whole = commits and self._local is not None
        if first and (not commits or is_whole):
            ahead.insert(0, _BEGIN)
        with _deadline(self._db, self._step_s):
            if not ahead:
                return await _execute(self._db, statement)
            async with self._db.pipeline():
                for one in ahead:
                    await self._db.execute(one.sql, one.params or None)
                cursor = await self._db.execute(statement.sql, statement.params or None, binary=True)
                if is_whole:
                    await self._db.execute("COMMIT")
        self._is_begun = not commits
        return await cursor.fetchall() if cursor.description else []


async def _execute(db: Connection, statement: Statement) -> Rows:
    cursor = await db.execute(statement.sql, statement.params or None, binary=True)
    return await cursor.fetchall() if cursor.description else []


@contextmanager
def _deadline(db: Connection, seconds: float) -> Iterator[None]:
    """Cut a connection whose server does not answer in time; raises TimeoutError.

    Not asyncio.timeout: on cancellation the driver first asks the same server, for seconds, to cancel the query.
    """
    late = False

    def cut() -> None:
        nonlocal late
        late = True
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(db.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(seconds, cut)
    try:
        yield
    except psycopg.Error as error:
        if late:
            raise TimeoutError(f"no answer within {seconds:g} s") from error
        raise
    finally:
        timer.cancel()


def _has_news(db: Connection) -> bool:
    """Tell whether an idle connection has something to read: mostly that the server has closed it."""
    poller = select.poll()
    poller.register(db.fileno(), select.POLLIN | select.POLLPRI)
    return bool(poller.poll(0))


async def _close(db: Connection) -> None:
    with suppress(Exception):
        await db.close()


def _collision(error: BaseException) -> BaseException:
    return error if isinstance(error, psycopg.Error) else psycopg.errors.SerializationFailure("jobs of the same ids")


def _tell(done: asyncio.Task[T], outer: asyncio.Future[T], abandoned: Callable[[T], None]) -> None:
    if outer.cancelled() and not done.cancelled() and done.exception() is None:
        abandoned(done.result())
