"""The schema in the database: made, brought up to date, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from ...errors import ConfigurationError, SchemaMismatch
from .connection import VERSION_MIN, Connection, Location
from .script import LOCK, Store

#: The schema this version works with: the number of the last file in `schema/`. test_schema_number.
SCHEMA = 2
MIGRATIONS = Path(__file__).parent / "schema"

_EXISTS = """
SELECT to_regclass($1::text) IS NOT NULL,
    EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = to_regnamespace($2::text))
"""


async def establish(db: Connection, store: Store, location: Location) -> None:
    """See that there is a schema of ours of this version. Where there is none, the first who comes makes it."""
    if db.info.server_version < VERSION_MIN:
        found = db.info.server_version // 10_000
        raise ConfigurationError(
            f"{location.shown} is PostgreSQL {found}; packhorse needs {VERSION_MIN // 10_000} or newer"
        )
    number = await _number(db, store, location)
    if number == 0:
        await migrate(db, store, location)
        return
    _check(number, location)


async def check_schema(db: Connection, store: Store, location: Location) -> None:
    """Raise unless there is a schema of ours of this version."""
    number = await _number(db, store, location)
    if number == 0:
        raise ConfigurationError(
            f"{location.shown}: the schema {location.schema} was there and is gone; restore it, or start the "
            f"program anew"
        )
    _check(number, location)


def _check(number: int, location: Location) -> None:
    name = f"schema {location.schema} at {location.shown}"
    if number < SCHEMA:
        raise SchemaMismatch(number, SCHEMA, f"bring {name} up to date with: packhorse migrate")
    if number > SCHEMA:
        raise SchemaMismatch(number, SCHEMA, f"{name} was made by a newer packhorse; upgrade this one")


async def _number(db: Connection, store: Store, location: Location) -> int:
    """Answer the number of the schema that is there; 0: none. Raises ConfigurationError for one of another program."""
    name = f'"{location.schema}"'
    is_ours, is_used = (await _fetch(db, _EXISTS, f"{name}.version", name))[0]
    if not is_ours:
        if is_used:
            raise ConfigurationError(
                f"the schema {location.schema} at {location.shown} belongs to another program; name another one in "
                f"the URL: "
                "?schema=NAME"
            )
        return 0
    rows = await _fetch(db, store.sql("SELECT max(number) FROM packhorse.version"))
    return int(rows[0][0] or 0)


async def migrate(db: Connection, store: Store, location: Location) -> int:
    """Apply the migrations this schema lacks, all in one transaction; answers the schema's number.

    So a new store is seen whole or not at all: test_many_open_an_empty_database_at_once. Of many who do so at once one
    does, the others wait. Raises ConfigurationError without the rights to.
    """
    async with db.transaction():
        await db.execute("SET LOCAL statement_timeout = 0")
        await db.execute("SET LOCAL lock_timeout = 0")
        await _fetch(db, LOCK, store.lock_key("migrate"))
        # Read under the lock: another process may have migrated meanwhile.
        there = await _number(db, store, location)
        for number, script in migrations():
            if number > there:
                await _apply(db, store, location, number, script)
    await check_schema(db, store, location)
    return SCHEMA


async def _apply(db: Connection, store: Store, location: Location, number: int, script: str) -> None:
    try:
        if number == 1:
            await db.execute(f'CREATE SCHEMA IF NOT EXISTS "{location.schema}"')
        await db.execute(store.sql(script))
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"this user may not make the schema {location.schema} at {location.shown}; let its owner run: "
            f"CREATE SCHEMA {location.schema} AUTHORIZATION this user (or packhorse migrate), once"
        ) from error
    if number > 1:
        await _fetch(db, store.sql("UPDATE packhorse.version SET number = $1::bigint RETURNING 1"), number)


def migrations() -> list[tuple[int, str]]:
    """Answer number and text of every migration, in order."""
    return [(int(file.name[:4]), file.read_text("utf-8")) for file in sorted(MIGRATIONS.glob("[0-9]*.sql"))]


async def _fetch(db: Connection, sql: str, *params: object) -> list[tuple[Any, ...]]:
    return await (await db.execute(sql, params or None, binary=True)).fetchall()
