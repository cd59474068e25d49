"""One connection: the URL, the driver's settings, time-outs, and what PostgreSQL's errors mean for a caller."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.rows import TupleRow

from ...errors import ConfigurationError, InvalidOption, PackhorseError, StoreFull, Unavailable
from ...settings import duration_ms
from ..opening import redact
from .packing import use_packing
from .script import DEFAULT_SCHEMA

Connection = AsyncConnection[TupleRow]

POOL_DEFAULT = 4
POOL_MAX = 100
#: What one statement may take, and with it one round trip; the wait for a lock of another is shorter.
TIMEOUT_MS_DEFAULT = 15_000
TIMEOUT_MS_MAX = 600_000
LOCK_TIMEOUT_MS = 5_000
#: How long a client of ours that was stopped in mid-transaction may keep its locks.
IDLE_MS = 5_000
CONNECT_TIMEOUT_S = 5

#: 14 is the oldest version that its makers still care for.
VERSION_MIN = 140_000

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class Location(msgspec.Struct, frozen=True):
    """What a URL says. `conninfo` is for the driver and has the password: never show it."""

    conninfo: str
    shown: str
    schema: str = DEFAULT_SCHEMA
    pool: int = POOL_DEFAULT
    timeout_ms: int = TIMEOUT_MS_DEFAULT


def parse_url(url: str) -> Location:
    """Read `postgresql://user:password@host:port/database?…`; raise ConfigurationError.

    `schema`, `pool` and `timeout` are ours, all other parameters are the driver's (libpq).
    """
    parts = urlsplit(url)
    ours: dict[str, str] = {}
    theirs = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in {"schema", "pool", "timeout"}:
            ours[name] = value
        else:
            theirs.append((name, value))
    schema = ours.get("schema", DEFAULT_SCHEMA)
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigurationError(
            f"schema={schema[:80]!r} in the URL: use 1 to 63 of the characters a-z 0-9 _, not beginning with a "
            f"digit or pg_"
        )
    pool = ours.get("pool", str(POOL_DEFAULT))
    if not (pool.isascii() and pool.isdigit() and len(pool) <= 4 and 1 <= int(pool) <= POOL_MAX):
        raise ConfigurationError(f"pool={pool[:20]!r} in the URL: use 1 to {POOL_MAX} connections")
    try:
        timeout_ms = duration_ms(ours.get("timeout", TIMEOUT_MS_DEFAULT / 1000), "timeout in the URL", TIMEOUT_MS_MAX)
    except InvalidOption as error:
        raise ConfigurationError(str(error)) from error
    # By hand: urlunsplit leaves the // out where no host is named, and libpq reads no + as a space.
    query = urlencode(theirs, quote_via=quote)
    conninfo = f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")
    try:
        psycopg.conninfo.conninfo_to_dict(conninfo)
    except psycopg.Error as error:
        # The driver's text quotes what it could not read, which may be the password.
        raise ConfigurationError(
            f"{redact(url)} cannot be read; use postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with libpq's parameters "
            "and schema, pool, timeout after a question mark"
        ) from (None if parts.password else error)
    return Location(conninfo, redact(conninfo), schema, int(pool), max(1_000, timeout_ms))


async def connect(location: Location) -> Connection:
    """Open a connection with our settings. Raises psycopg's errors; see `explain`."""
    db = await AsyncConnection.connect(
        location.conninfo,
        autocommit=True,
        cursor_factory=AsyncRawCursor,
        **_defaults(location),
    )
    try:
        use_packing(db.adapters)
        db.prepared_max = 500
        row = await (await db.execute("SELECT pg_backend_pid()", binary=True)).fetchone()
        if row is not None and row[0] == db.info.backend_pid:
            await db.execute(_SETTINGS.format(**_times(location)).encode())
        else:
            # A pooler hands every transaction to another server connection: nothing may be kept there, neither settings
            # nor prepared statements. Each transaction brings its own; see `local_settings`.
            db.prepare_threshold = None
    except BaseException:
        await db.close()
        raise
    return db


def is_pooled(db: Connection) -> bool:
    """Tell whether a pooler stands between us and the server."""
    return db.prepare_threshold is None


def _defaults(location: Location) -> dict[str, Any]:
    given = psycopg.conninfo.conninfo_to_dict(location.conninfo)
    wanted = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "packhorse",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": location.timeout_ms,
    }
    return {name: value for name, value in wanted.items() if name not in given}


# jit: it costs 100 ms for one of our longer statements and can gain nothing in any.
_SETTINGS = (
    "SET statement_timeout = {statement_ms}; SET lock_timeout = {lock_ms}; "
    "SET idle_in_transaction_session_timeout = {idle_ms}; SET jit = off; "
    "SET default_transaction_isolation = 'read committed'"
)
LOCAL_SETTINGS = """
SELECT set_config('statement_timeout', $1::text, TRUE), set_config('lock_timeout', $2::text, TRUE),
    set_config('idle_in_transaction_session_timeout', $3::text, TRUE), set_config('jit', 'off', TRUE)
"""


def _times(location: Location) -> dict[str, int]:
    return {"statement_ms": location.timeout_ms, "lock_ms": _lock_ms(location), "idle_ms": IDLE_MS}


def _lock_ms(location: Location) -> int:
    return min(LOCK_TIMEOUT_MS, location.timeout_ms * 2 // 3)


def local_settings(location: Location) -> tuple[str, ...]:
    """Answer the parameters of `LOCAL_SETTINGS`."""
    return tuple(str(ms) for ms in _times(location).values())


# ---- errors ------------------------------------------------------------------------------------------------

_DEADLOCK = {"40001", "40P01"}
#: A migration changed a table under a prepared statement, or a pooler has hidden itself.
_STATEMENT_LOST = {"0A000", "26000", "42P05"}


def is_collision(error: BaseException) -> bool:
    """Tell whether a transaction was undone because of another one and can just be done again."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _DEADLOCK | _STATEMENT_LOST


def is_spoilt(error: BaseException) -> bool:
    """Tell whether what a connection has prepared is of no use any more."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _STATEMENT_LOST


def is_lock_wait(error: BaseException) -> bool:
    """Tell whether an explained error means that an open transaction of somebody holds what was wanted."""
    cause = error.__cause__
    return isinstance(cause, psycopg.Error) and cause.sqlstate == "55P03"


def explain(error: BaseException, location: Location) -> BaseException:
    """Turn an error of the driver or server into one of ours that says what to do; others come back as they are."""
    if isinstance(error, TimeoutError):
        ours: PackhorseError = Unavailable(
            f"{location.shown} did not answer within {location.timeout_ms / 1000:g} s; what was asked may have been "
            f"done"
        )
    elif isinstance(error, psycopg.Error):
        found = _explain(error, error.sqlstate or "", location)
        if found is None:
            return error
        ours = found
    elif isinstance(error, OSError):
        ours = Unavailable(f"{location.shown} cannot be reached ({error}); is the server running?")
    else:
        return error
    ours.__cause__ = error
    return ours


def _explain(error: psycopg.Error, code: str, location: Location) -> PackhorseError | None:
    shown = location.shown
    text = " ".join(str(error).split())[:300]
    if code in _DEADLOCK:
        return Unavailable(f"{shown}: others kept moving the same jobs; nothing of this call was done, try again")
    if code in _STATEMENT_LOST:
        return Unavailable(f"{shown}: its tables are being changed; nothing of this call was done, try again")
    if code == "55P03":
        return Unavailable(
            f"{shown}: an open transaction has held what this call needs for {_lock_ms(location) / 1000:g} s; "
            f"nothing was "
            "done. pg_stat_activity shows transactions that stay open"
        )
    if code in {"57014", "25P03"}:
        return Unavailable(f"{shown} took longer than {location.timeout_ms / 1000:g} s; nothing of this call was done")
    if code == "25006":
        return Unavailable(f"{shown} takes no writes (a standby, or set to be read only); name the primary in the URL")
    if code in {"3F000", "42P01", "42703", "42883"}:
        return ConfigurationError(
            f"{shown}: the tables of packhorse in schema {location.schema} are gone or of another version ({text}); "
            "restore them, or run: packhorse migrate"
        )
    if code == "22021":
        return InvalidOption("an id, name or key has a NUL character; PostgreSQL cannot keep that in text")
    if code == "42501":
        return ConfigurationError(f"{shown}: {text}; grant this user USAGE on the schema and all rights on its tables")
    if code in {"3D000", "28000", "28P01"}:
        return ConfigurationError(f"{shown}: {text}; check database, user and password in the URL")
    if code[:2] in {"08", "53", "57", "58"} or isinstance(error, psycopg.OperationalError):
        if not code and "password" in text:
            return ConfigurationError(f"{shown}: the server refused the user or password of the URL ({_safe(error)})")
        if not code and "does not exist" in text:
            return ConfigurationError(f"{shown}: {_safe(error)}; create it, or name another in the URL")
        kind = StoreFull if code == "53100" else Unavailable  # its disk is full
        return kind(f"{shown} is not available: {_safe(error)}")
    return None


def _safe(error: psycopg.Error) -> str:
    """Write an error on one line. libpq's texts name host, user and database, never the password."""
    return " ".join(str(error).split())[:300]
