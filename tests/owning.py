"""Connections as users have them, of every kind that can share its transaction with jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

SQLITE = ("sqlite3", "sqlalchemy-sqlite", "sqlalchemy-sqlite-session")
POSTGRES_BLOCKING = ("psycopg", "sqlalchemy-psycopg", "sqlalchemy-psycopg-session")
POSTGRES_ASYNC = (
    "psycopg-async",
    "asyncpg",
    "sqlalchemy-psycopg-async",
    "sqlalchemy-asyncpg",
    "sqlalchemy-asyncpg-session",
)


class Own:
    """A connection in a transaction: `raw` is what packhorse is given."""

    def __init__(self, raw: Any, *, is_async: bool, text: Any = str) -> None:
        self.raw = raw
        self.is_async = is_async
        self._text = text

    async def execute(self, sql: str) -> Any:
        done = self.raw.execute(self._text(sql))
        return await done if self.is_async else done

    async def commit(self) -> None:
        await self._end("commit")

    async def rollback(self) -> None:
        await self._end("rollback")

    async def _end(self, how: str) -> None:
        done = getattr(self.raw, how)()
        if self.is_async:
            await done


class OwnAsyncpg(Own):
    def __init__(self, raw: Any, transaction: Any) -> None:
        super().__init__(raw, is_async=True)
        self._transaction = transaction

    async def _end(self, how: str) -> None:
        await getattr(self._transaction, how)()


def connect(kind: str, url: str) -> Any:
    """Connect in blocking code, with a driver that begins by itself: sqlite3 or psycopg."""
    if kind == "sqlite3":
        return sqlite3.connect(url.removeprefix("sqlite:///"))
    import psycopg

    return psycopg.connect(url.partition("?")[0])


@asynccontextmanager
async def own(kind: str, url: str) -> AsyncIterator[Own]:
    """Connect and begin. What is neither committed nor rolled back is lost with the connection."""
    driver, _, rest = kind.partition("-")
    if driver == "sqlalchemy":
        async with _sqlalchemy(rest, url) as one:
            yield one
    elif driver == "sqlite3":
        with closing(connect(kind, url)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield Own(db, is_async=False)
    elif kind == "asyncpg":
        import asyncpg

        connection = await asyncpg.connect(url.partition("?")[0])
        transaction = connection.transaction()
        await transaction.start()
        try:
            yield OwnAsyncpg(connection, transaction)
        finally:
            connection.terminate()
    elif rest == "async":
        import psycopg

        connection = await psycopg.AsyncConnection.connect(url.partition("?")[0])
        try:
            yield Own(connection, is_async=True)
        finally:
            await connection.close()
    else:
        with closing(connect(kind, url)) as connection:
            yield Own(connection, is_async=False)


@asynccontextmanager
async def _sqlalchemy(kind: str, url: str) -> AsyncIterator[Own]:
    import sqlalchemy
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import NullPool

    driver, _, rest = kind.partition("-")
    url = url.partition("?")[0]
    if driver != "sqlite":
        url = f"postgresql+{driver}://{url.partition('://')[2]}"
    if driver == "asyncpg" or rest == "async":
        engine = create_async_engine(url, poolclass=NullPool)
        async with AsyncSession(engine) if rest == "session" else engine.connect() as one:
            yield Own(one, is_async=True, text=sqlalchemy.text)
        await engine.dispose()
    else:
        engine = sqlalchemy.create_engine(url, poolclass=NullPool)
        with Session(engine) if rest == "session" else engine.connect() as one:
            yield Own(one, is_async=False, text=sqlalchemy.text)
        engine.dispose()
