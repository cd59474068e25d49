"""Harnesses for the backends that packhorse brings."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from ...backends.memory import MemoryBackend
from ...backends.memory_store import MemoryStore
from ...backends.opening import open_backend
from ...chance import secret_hex
from ...clock import SYSTEM_CLOCK, ManualClock
from .harness import Harness, OwnConnection


class MemoryHarness(Harness):
    """A new store in this process."""

    def __init__(self, kind: type[MemoryBackend] = MemoryBackend) -> None:
        clock = ManualClock()
        self.store = MemoryStore(clock)
        super().__init__(lambda: kind(self.store), clock)

    def drop_workers(self) -> None:
        self.store.workers.clear()


class SQLiteHarness(Harness):
    """A new file. Its directory is removed afterwards."""

    def __init__(self, path: Path, clock: ManualClock) -> None:
        super().__init__(lambda: open_backend(f"sqlite:///{path}", clock), clock)
        self.path = path

    def drop_workers(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM workers")

    async def make_connection(self) -> OwnConnection:
        return SQLiteConnection(self.path)

    async def clean(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)


class SQLiteConnection:
    """A connection in autocommit mode."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self.raw: object = self._db

    async def begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        self._db.execute("COMMIT")

    async def rollback(self) -> None:
        self._db.execute("ROLLBACK")

    async def close(self) -> None:
        self._db.close()


class RedisHarness(Harness):
    """New keys on a server, under a prefix of their own. They are removed afterwards.

    On a clock moved by hand, unless `server_clock` leaves all to the server's own.
    """

    def __init__(self, url: str, *, server_clock: bool = False) -> None:
        from ...backends.redis.location import parse_url

        self.prefix = f"{parse_url(url).prefix[:48]}.{secret_hex(4)}"
        self.url = f"{url}{'&' if '?' in url else '?'}prefix={self.prefix}"
        clock = None if server_clock else ManualClock()
        super().__init__(lambda: open_backend(self.url, clock or SYSTEM_CLOCK), clock)

    def drop_workers(self) -> None:
        with closing(self._driver()) as driver:
            driver.delete(f"{{{self.prefix}}}:leases", f"{{{self.prefix}}}:workers")

    def keys(self) -> list[str]:
        """Answer the names of all keys of the store, without the prefix."""
        start = f"{{{self.prefix}}}:"
        with closing(self._driver()) as driver:
            return sorted(key.decode().removeprefix(start) for key in driver.scan_iter(f"{start}*", count=1_000))

    async def clean(self) -> None:
        keys = [f"{{{self.prefix}}}:{name}" for name in self.keys()]
        with closing(self._driver()) as driver:
            for start in range(0, len(keys), 1_000):
                driver.delete(*keys[start : start + 1_000])

    def _driver(self) -> Any:
        """Answer a blocking client of the same server."""
        from redis import Redis, RedisCluster, Sentinel
        from redis.cluster import ClusterNode

        from ...backends.redis.location import parse_url

        location = parse_url(self.url)
        options = {**location.options, "socket_timeout": 10, "socket_connect_timeout": 10}
        if location.kind == "cluster":
            del options["db"]
            node: Any = ClusterNode  # the driver gives it no types
            return RedisCluster(startup_nodes=[node(*host) for host in location.hosts], **options)
        if location.kind == "sentinel":
            sentinel: Any = Sentinel
            return sentinel(list(location.hosts)).master_for(location.master, **options)
        if location.kind == "unix":
            return Redis(unix_socket_path=location.path, **options)
        host, port = location.hosts[0]
        return Redis(host=host, port=port, **options)


class PostgresHarness(Harness):
    """A schema of its own, made by the first case that is run in it and emptied after each.

    With `manual_clock` the store goes by the harness's clock, else by the server's.
    """

    def __init__(self, url: str, *, manual_clock: bool = True) -> None:
        clock = ManualClock() if manual_clock else None
        super().__init__(lambda: open_backend(url, clock or SYSTEM_CLOCK), clock)
        self.url = url

    def drop_workers(self) -> None:
        self._execute("DELETE FROM workers; DELETE FROM leases")

    async def make_connection(self) -> OwnConnection:
        return await PostgresConnection.connect(self.url)

    async def clean(self) -> None:
        self._execute(
            "DO $$ DECLARE t text; BEGIN FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = current_schema() "
            "AND tablename <> 'version' LOOP EXECUTE format('DELETE FROM %I', t); END LOOP; END $$"
        )

    def _execute(self, sql: str) -> None:
        import psycopg

        from ...backends.postgres.connection import parse_url

        location = parse_url(self.url)
        with psycopg.connect(location.conninfo, autocommit=True) as db:
            db.execute(f"SET search_path = {location.schema}")
            db.execute(sql.encode())


class PostgresConnection:
    """A connection of psycopg in autocommit mode, for async code."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.raw: object = db

    @classmethod
    async def connect(cls, url: str) -> Self:
        """Connect to the database of a store."""
        import psycopg

        from ...backends.postgres.connection import parse_url

        return cls(await psycopg.AsyncConnection.connect(parse_url(url).conninfo, autocommit=True))

    async def begin(self) -> None:
        await self._db.execute("BEGIN")

    async def commit(self) -> None:
        await self._db.execute("COMMIT")

    async def rollback(self) -> None:
        await self._db.execute("ROLLBACK")

    async def close(self) -> None:
        await self._db.close()
