"""Verbs on a connection of the caller's own to our database, as a part of its transaction: psycopg and asyncpg."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

from ...errors import ConfigurationError, InvalidOption, PackhorseError, Unavailable
from ...job import JobRecord, JobSpec
from ..base import Bound, Capabilities, Enqueued, Settlement, Verdict, check_batch, check_settlements, check_specs
from ..unwrapping import abegun, begun, sqlalchemy_is_async
from . import adding, looking, moving
from .script import Again, Rows, Script, Statement, Store, Tx

T = TypeVar("T")

_SAVEPOINT = "packhorse_bound"
#: Each time another transaction has stored the same job meanwhile, which the next try then sees.
_TRIES = 5

_DRIVERS = "psycopg 3 (Connection, AsyncConnection), asyncpg, or SQLAlchemy over one of these"


class Home(NamedTuple):
    """Which database a backend works in. `server` is empty where that may not be read."""

    server: str
    database: str


_MAY_ASK = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE'), current_database()::text"
#: Made with the files of a server, and the same on its standbys.
_SERVER = "SELECT system_identifier::text FROM pg_control_system()"
# By the catalog: to_regclass raises an error without USAGE on the schema, and that would end the caller's transaction.
_HAS_TABLES = """
SELECT coalesce((
    SELECT has_schema_privilege(n.oid, 'USAGE') FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid
    WHERE n.nspname = $1::text AND c.relname = 'jobs'
), FALSE)
"""
_ISOLATION = "SELECT current_setting('transaction_isolation')"


def find_home() -> Script[Home]:
    """Learn where a connection leads to."""
    [(may_ask, database)] = yield Statement(_MAY_ASK)
    server = (yield Statement(_SERVER))[0][0] if may_ask else ""
    return Home(server, database)


class Known:
    """Connections that were seen to lead to our tables. They are not kept alive for that."""

    def __init__(self) -> None:
        self._connections: WeakSet[Any] = WeakSet()

    def has(self, connection: Any) -> bool:
        """Tell whether this one was."""
        try:
            return connection in self._connections
        except TypeError:  # asyncpg's stand-ins for those of a pool; each is new
            return False

    def add(self, connection: Any) -> None:
        """Take note of one."""
        with suppress(TypeError):
            self._connections.add(connection)


class Join(NamedTuple):
    """What a backend gives to the connections of others."""

    store: Store
    capabilities: Capabilities
    now_ms: Callable[[], int | None]  # None: the server's clock counts
    home: Home
    shown: str  # its URL without the password
    known: Known


def bind(join: Join, connection: object) -> Bound:
    """Answer verbs for a connection. Raises InvalidOption for one of another kind."""
    is_async = sqlalchemy_is_async(connection)
    if is_async is None:
        driver = _driver_of(connection)
        if driver is None:
            raise _unknown(connection)
        is_async = driver.is_async
    return PostgresBound(join, connection, blocking=not is_async)


def _unknown(connection: object) -> InvalidOption:
    kind = type(connection)
    return InvalidOption(
        f"connection: a {kind.__module__}.{kind.__qualname__} cannot share its transaction with jobs in PostgreSQL; "
        f"give a connection of {_DRIVERS}"
    )


# ---- drivers -----------------------------------------------------------------------------------------------


class _Driver(ABC):
    """How statements reach a connection. On blocking ones nothing here ever waits for an event loop."""

    is_async = True

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    @abstractmethod
    def check(self, *, writes: bool) -> None:
        """Raise unless it can be used; to write, a transaction is open on it, or begins with the next statement."""

    @abstractmethod
    async def fetch(self, statement: Statement) -> Rows:
        """Ask, and answer the rows."""

    @abstractmethod
    async def execute(self, sql: str) -> None:
        """Do something without parameters or rows."""


class _Psycopg(_Driver):
    is_async = False

    def check(self, *, writes: bool) -> None:
        from psycopg.pq import PipelineStatus, TransactionStatus

        connection = self.connection
        status = connection.info.transaction_status
        if connection.closed or status is TransactionStatus.UNKNOWN:
            raise Unavailable("connection: it is closed; give one that is open and in a transaction")
        if status is TransactionStatus.INERROR:
            raise _failed_before()
        if writes and status is TransactionStatus.IDLE and connection.autocommit:
            raise _no_transaction("with connection.transaction(): ...")
        if connection.pgconn.pipeline_status != PipelineStatus.OFF:
            raise InvalidOption("connection: it is in pipeline mode, where no error can be undone; leave that first")

    def cursor(self) -> Any:
        """Make a cursor that knows nothing of what the caller has set, and packs as the statements expect."""
        from psycopg import RawCursor
        from psycopg.rows import tuple_row

        from .packing import use_packing

        cursor = RawCursor(self.connection, row_factory=tuple_row)
        use_packing(cursor.adapters)
        return cursor

    async def fetch(self, statement: Statement) -> Rows:
        with self.cursor() as cursor:
            cursor.execute(statement.sql, statement.params or None, binary=True)
            return cursor.fetchall() if cursor.description else []

    async def execute(self, sql: str) -> None:
        with self.cursor() as cursor:
            cursor.execute(sql)


class _AsyncPsycopg(_Psycopg):
    is_async = True

    def cursor(self) -> Any:
        from psycopg import AsyncRawCursor
        from psycopg.rows import tuple_row

        from .packing import use_packing

        cursor = AsyncRawCursor(self.connection, row_factory=tuple_row)
        use_packing(cursor.adapters)
        return cursor

    async def fetch(self, statement: Statement) -> Rows:
        async with self.cursor() as cursor:
            await cursor.execute(statement.sql, statement.params or None, binary=True)
            return await cursor.fetchall() if cursor.description else []

    async def execute(self, sql: str) -> None:
        async with self.cursor() as cursor:
            await cursor.execute(sql)


class _Asyncpg(_Driver):
    def check(self, *, writes: bool) -> None:
        if self.connection.is_closed():
            raise Unavailable("connection: it is closed; give one that is open and in a transaction")
        if writes and not self.connection.is_in_transaction():
            raise _no_transaction("async with connection.transaction(): ...")

    async def fetch(self, statement: Statement) -> Rows:
        return [tuple(row) for row in await self.connection.fetch(statement.sql, *statement.params)]

    async def execute(self, sql: str) -> None:
        await self.connection.execute(sql)


def _driver_of(connection: object) -> _Driver | None:
    """Answer how to speak to a connection. Who has one has imported its driver: none is imported for the question."""
    kinds: tuple[tuple[str, str, type[_Driver]], ...] = (
        ("psycopg", "Connection", _Psycopg),
        ("psycopg", "AsyncConnection", _AsyncPsycopg),
        ("asyncpg", "Connection", _Asyncpg),
        ("asyncpg.pool", "PoolConnectionProxy", _Asyncpg),
    )
    for module, name, driver in kinds:
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(connection, getattr(loaded, name)):
            return driver(connection)
    return None


def _no_transaction(how: str) -> InvalidOption:
    return InvalidOption(
        f"connection: no transaction is open on it, so nobody would commit the job; begin one first, e.g. {how}"
    )


def _failed_before() -> Unavailable:
    return Unavailable("connection: its transaction has failed already; roll it back")


async def home_of(connection: Any) -> Home:
    """Learn where a connection of psycopg for async code leads to."""
    return await _drive(_AsyncPsycopg(connection), find_home())


# ---- verbs -------------------------------------------------------------------------------------------------


class PostgresBound(Bound):
    """A connection of the caller's to our database."""

    def __init__(self, join: Join, connection: Any, *, blocking: bool) -> None:
        self.blocking = blocking
        self.capabilities = join.capabilities
        self._join = join
        self._connection = connection
        self._turn = asyncio.Lock()  # async code may call twice at once: savepoints must not cross

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        check_specs(specs, self.capabilities)
        if not specs:
            return []
        return await self._run(lambda tx: adding.enqueue(tx, specs), keys=_has_keys(specs))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        check_settlements(settlements, self.capabilities)
        if not settlements:
            return []
        keys = any(_has_keys(one.follow_ups) for one in settlements)
        return await self._run(lambda tx: moving.settle(tx, settlements), keys=keys)

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        check_batch(ids)
        return await self._run(lambda tx: looking.get(tx, ids), writes=False)

    async def _run(self, make: Callable[[Tx], Script[T]], *, keys: bool = False, writes: bool = True) -> T:
        async with self._turn:
            return await self._run_alone(make, keys=keys, writes=writes)

    async def _run_alone(self, make: Callable[[Tx], Script[T]], *, keys: bool, writes: bool) -> T:
        driver = await self._driver()
        driver.check(writes=writes)
        try:
            await self._check(driver, keys=keys)
            if not writes:
                return await _drive(driver, make(self._tx()))
            for _ in range(_TRIES):
                with suppress(Again):
                    return await self._in_savepoint(driver, make)
        except PackhorseError:
            raise
        except Exception as error:
            ours = _explain(error, self._join.shown)
            if ours is None:
                raise
            raise ours from error
        raise Unavailable("connection: others store the same jobs at the same time; roll back and try again")

    def _tx(self) -> Tx:
        return Tx(self._join.store, self._join.now_ms(), is_bound=True)

    async def _in_savepoint(self, driver: _Driver, make: Callable[[Tx], Script[T]]) -> T:
        """Run a script so that its failure is undone and harms nothing else: an error ends a whole transaction here."""
        await driver.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            answer = await _drive(driver, make(self._tx()))
        except BaseException:
            with suppress(Exception):  # the connection is lost, and the transaction with it
                await driver.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
                await driver.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            raise
        await driver.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        return answer

    async def _driver(self) -> _Driver:
        connection = self._connection
        if sqlalchemy_is_async(connection) is not None:
            connection = begun(connection) if self.blocking else await abegun(connection)
        driver = _driver_of(connection)
        if driver is None or driver.is_async is self.blocking:
            raise _unknown(connection)
        return driver

    async def _check(self, driver: _Driver, *, keys: bool) -> None:
        """Refuse another store, once for each connection, and keys in a transaction that cannot judge them."""
        join = self._join
        if not join.known.has(driver.connection):
            home = await _drive(driver, find_home())
            is_elsewhere = bool(home.server and join.home.server) and home.server != join.home.server
            if is_elsewhere or home.database != join.home.database:
                where = f"the database {home.database!r}" + (" of another server" if is_elsewhere else "")
                raise InvalidOption(f"connection: it leads to {where}; the jobs are in {join.shown}, connect to that")
            if not (await driver.fetch(Statement(_HAS_TABLES, (join.store.schema,))))[0][0]:
                raise InvalidOption(
                    f"connection: its user sees no tables in the schema {join.store.schema}; grant it USAGE on the "
                    "schema and all rights on its tables and sequences"
                )
            join.known.add(driver.connection)
        if keys and (isolation := (await driver.fetch(Statement(_ISOLATION)))[0][0]) != "read committed":
            # It looks into the past: who took the key since it began could not be seen, and both would have it.
            raise InvalidOption(
                f"unique: not in a transaction that is {isolation!r}; use READ COMMITTED, or enqueue after the commit"
            )


def _has_keys(specs: Sequence[JobSpec]) -> bool:
    return any(spec.unique is not None for spec in specs)


async def _drive(driver: _Driver, script: Script[T]) -> T:
    """Run a script on a connection."""
    try:
        statement = next(script)
        while True:
            for one in statement.ahead:
                await driver.fetch(one)
            statement = script.send(await driver.fetch(statement))
    except StopIteration as end:
        answer: T = end.value
        return answer
    finally:
        script.close()


def _explain(error: Exception, shown: str) -> PackhorseError | None:
    """Turn an error of either driver into one of ours; None: it is the caller's to understand."""
    code = getattr(error, "sqlstate", None) or ""
    text = " ".join(str(error).split())[:300]
    match code:
        case "40001" | "40P01":
            return Unavailable(f"{shown}: another transaction was quicker ({text}); roll back and try it again")
        case "55P03" | "57014":
            return Unavailable(
                f"{shown}: {text}; roll back and try again later. pg_stat_activity shows who holds it up"
            )
        case "25P02":
            return _failed_before()
        case "25006":
            return InvalidOption("connection: its transaction is read only; give one that may write")
        case "3F000" | "42P01" | "42703" | "42883":
            return ConfigurationError(f"{shown}: its tables are of another version ({text}); run: packhorse migrate")
        case "42501":
            return ConfigurationError(
                f"{shown}: {text}; grant the connection's user all rights on the tables and sequences of packhorse"
            )
    if code[:2] in {"08", "53", "57", "58"} or isinstance(error, OSError) or (not code and _is_operational(error)):
        return Unavailable(f"{shown}: the connection is lost ({text}); its transaction is not committed, do it again")
    return None


def _is_operational(error: Exception) -> bool:
    psycopg = sys.modules.get("psycopg")
    return psycopg is not None and isinstance(error, psycopg.OperationalError)
