"""What PostgreSQL's part of the doctor asks: the server's settings, its tables' health, and who is in between."""

from __future__ import annotations

from typing import Any

from ...chance import secret_hex
from ...clock import Clock
from ...wording import age, quantity
from ..checkup import DEAD_WORKER, DURABILITY, Checkup, Finding, Line, clock_finding, good_if
from .connection import VERSION_MIN, Connection, is_pooled

PROMISE = {
    Line.ACKNOWLEDGED: "committed",
    Line.SERVER_KILL: "yes",
    Line.POWER_CUT: "yes",
    Line.DEAD_WORKER: DEAD_WORKER,
    Line.ORDER: "best effort: strict for one claimer, about so for several",
}

#: Below these, workers that start or reconnect are turned away soon.
CONNECTIONS_LEFT_MIN = 10
#: While a transaction is open no dead row that is younger can be removed.
OLDEST_MS_MAX = 600_000
#: More dead than live rows, and not just a few: vacuum does not keep up or is held up.
DEAD_ROWS_MIN = 100_000
LISTEN_S = 2.0

_SETTINGS = """
SELECT name, setting FROM pg_settings
WHERE name IN ('server_version', 'server_version_num', 'fsync', 'full_page_writes', 'synchronous_commit',
    'synchronous_standby_names', 'autovacuum', 'default_transaction_read_only', 'max_connections',
    'superuser_reserved_connections')
"""
_STATE = """
SELECT pg_is_in_recovery(),
    to_regclass(format('%I.version', $1::text)) IS NOT NULL,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
    (SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start) * 1000), 0)::bigint
        FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'),
    (SELECT count(*) FROM pg_prepared_xacts WHERE prepared < now() - interval '10 minutes'),
    (SELECT count(*) FILTER (WHERE sync_state = 'async') FROM pg_stat_replication)
"""
_ROWS = """
SELECT coalesce(sum(n_live_tup), 0)::bigint, coalesce(sum(n_dead_tup), 0)::bigint
FROM pg_stat_user_tables WHERE schemaname = $1::text
"""
_CLOCK = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"


async def checkup(connection: Connection, schema: str, clock: Clock) -> Checkup:
    """Ask a server by a connection in autocommit mode. Raises what the driver raises."""
    settings: dict[str, str] = dict(await _ask(connection, _SETTINGS))
    ((standby, made, clients, oldest_ms, prepared, asynchronous),) = await _ask(connection, _STATE, schema)
    before_ms = clock.now_ms()
    ((server_ms,),) = await _ask(connection, _CLOCK)
    findings = [
        _version(settings),
        clock_finding(server_ms, before_ms, clock.now_ms()),
        *_durability(settings, asynchronous),
        _writable(standby, settings),
        *_vacuum(settings, oldest_ms, prepared, *(await _ask(connection, _ROWS, schema))[0]),
        _connections(settings, clients),
    ]
    if not standby:
        findings.append(await _listens(connection))
    if not made:
        what = f"there is no schema {schema} with our tables yet"
        findings.append(good_if(False, "schema", "none", what, "make it: packhorse migrate", warn=True))
    return Checkup(promise=PROMISE, findings=tuple(findings), ready=made and not standby)


async def _ask(connection: Connection, sql: str, *params: object) -> list[tuple[Any, ...]]:
    # Never prepared: behind a pooler the next statement may meet another connection.
    cursor = await connection.execute(sql, params or None, prepare=False)
    return await cursor.fetchall() if cursor.description is not None else []


def _version(settings: dict[str, str]) -> Finding:
    new = int(settings["server_version_num"]) >= VERSION_MIN
    return good_if(new, "PostgreSQL", settings["server_version"], "too old for packhorse", "14 or newer")


def _durability(settings: dict[str, str], asynchronous: int) -> list[Finding]:
    commit = settings["synchronous_commit"]
    return [
        good_if(
            settings["fsync"] == "on",
            "fsync",
            settings["fsync"],
            "commits are left to the operating system: a power cut may take them, or damage the whole database",
            "fsync = on in postgresql.conf",
            breaks=[Line.POWER_CUT],
        ),
        good_if(
            settings["full_page_writes"] == "on",
            "full_page_writes",
            settings["full_page_writes"],
            "a page that was half written at a power cut cannot be repaired",
            "full_page_writes = on in postgresql.conf",
            breaks=[Line.POWER_CUT],
        ),
        good_if(
            commit != "off",
            "synchronous_commit",
            commit,
            "a commit is acknowledged before it is written: a crash of the server takes the last ones",
            "ALTER SYSTEM SET synchronous_commit = on, and look at the settings of this role and database",
            breaks=DURABILITY,
        ),
        good_if(
            asynchronous == 0 or bool(settings["synchronous_standby_names"]),
            "replicas",
            f"{asynchronous} asynchronous" if asynchronous else "none that lags behind",
            "they may lack the last commits: a failover to one takes acknowledged jobs back",
            "name synchronous_standby_names, or accept it for failovers",
            warn=True,
        ),
    ]


def _writable(standby: bool, settings: dict[str, str]) -> Finding:
    read_only = settings["default_transaction_read_only"] == "on"
    return good_if(
        not standby and not read_only,
        "takes writes",
        "no, a standby" if standby else "no, read-only by default" if read_only else "yes",
        "nothing can be enqueued, claimed or settled here",
        "name the primary in the URL, e.g. with target_session_attrs=read-write"
        if standby
        else "ALTER DATABASE … RESET default_transaction_read_only, or that of the role",
        breaks=[Line.ACKNOWLEDGED],
    )


def _vacuum(settings: dict[str, str], oldest_ms: int, prepared: int, live: int, dead: int) -> list[Finding]:
    return [
        good_if(
            settings["autovacuum"] == "on",
            "autovacuum",
            settings["autovacuum"],
            "each job leaves dead rows behind; unless they are removed every call gets slower",
            "autovacuum = on in postgresql.conf",
            warn=True,
        ),
        good_if(
            dead < max(DEAD_ROWS_MIN, live),
            "dead rows",
            f"{dead:,} beside {quantity(live, 'live one')}",
            "vacuum does not keep up, or something keeps it from removing them",
            "end old transactions; then VACUUM the tables of our schema",
            warn=True,
        ),
        good_if(
            oldest_ms <= OLDEST_MS_MAX and not prepared,
            "oldest transaction",
            f"{prepared} prepared and forgotten" if prepared else age(oldest_ms),
            "what has died since it began cannot be removed; claims get slower meanwhile",
            "find it in pg_stat_activity or pg_prepared_xacts, and end it",
            warn=True,
        ),
    ]


def _connections(settings: dict[str, str], clients: int) -> Finding:
    limit = int(settings["max_connections"]) - int(settings["superuser_reserved_connections"])
    return good_if(
        limit - clients >= CONNECTIONS_LEFT_MIN,
        "connections left",
        f"{max(0, limit - clients)} of {limit}",
        "workers that start or reconnect are turned away",
        "raise max_connections, use a smaller pool= in the URLs, or a pooler",
        warn=True,
    )


async def _listens(connection: Connection) -> Finding:
    """Send ourselves a notification. One through a pooler may come by luck, while nobody else uses it."""
    pooled = is_pooled(connection)
    heard = False
    if not pooled:
        channel = f"packhorse_doctor_{secret_hex(8)}"
        await _ask(connection, f"LISTEN {channel}")
        await _ask(connection, f"NOTIFY {channel}")
        heard = bool([notify async for notify in connection.notifies(timeout=LISTEN_S, stop_after=1)])
    return good_if(
        heard,
        "LISTEN",
        "a pooler is in between" if pooled else "works" if heard else "does not work",
        "if that is in transaction mode, workers hear of new jobs by asking only, within their poll interval"
        if pooled
        else "workers hear of new jobs by asking only, within their poll interval",
        "for quicker starts let workers connect to the server itself",
        warn=True,
    )
