"""Changes, as those see them who ask (decision 19).

What a transaction moved is told from its commit on, and transactions are not committed in any order that a number could
have. So a cursor is a snapshot: new is what it does not see. Statements that move jobs write that down themselves, with
the function `tell` of the schema.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

from ..base import CHANGES_KEPT_MS, CHANGES_MAX, Change, Changes
from ..following import CURSOR_CHARS_MAX, RENEW_MS, is_to_renew, new_log
from ..stored import STATES
from .script import NOW, Rows, Script, Statement, Store

T = TypeVar("T")

#: How long the first who asks waits for transactions that began before; who is still open then is a gap at its commit.
_BEGIN_MS = 1_000
_BEGIN_STEP_MS = 10
#: Rows of a log that nobody reads any more which one tick removes.
_FORGOTTEN_MAX = 10_000

# What a snapshot does not see, without a look at anything else: in a range from its oldest transaction on would be all
# the rows that were removed since that began, as long as it is open. test_a_look_reads_only_what_is_new.
# Between, though nothing is above: of a range with one end the planner expects a third of all rows.
_SINCE = """(
    SELECT c.* FROM packhorse.changes AS c
    WHERE c.xid BETWEEN pg_snapshot_xmax({0}) AND '9000000000000000000'::xid8
    UNION ALL
    SELECT c.* FROM packhorse.changes AS c WHERE c.xid = ANY(ARRAY(SELECT pg_snapshot_xip({0})))
)"""

LOOK = f"""
WITH facts AS MATERIALIZED (
    SELECT {NOW.format("$1")} AS now_ms, pg_current_snapshot() AS here, l.log, l.until_ms, l.generation,
        l.began IS NOT NULL AND NOT l.is_over AS has_begun,
        EXISTS (SELECT 1 FROM unnest(l.began) AS x WHERE NOT pg_visible_in_snapshot(x, pg_current_snapshot())) AS waits,
        EXISTS (SELECT 1 FROM unnest(l.began) AS x WHERE NOT pg_visible_in_snapshot(x, $3::text::pg_snapshot)
            AND pg_visible_in_snapshot(x, pg_current_snapshot()) AND pg_xact_status(x) = 'committed') AS has_lost
    FROM (SELECT 1) AS one LEFT JOIN packhorse.listening AS l ON TRUE LIMIT 1
), fresh AS MATERIALIZED (
    SELECT c.* FROM facts AS f CROSS JOIN LATERAL {_SINCE.format("$3::text::pg_snapshot")} AS c WHERE f.log = $2::text
), told AS (
    SELECT coalesce(sum(count), 0)::bigint AS count FROM fresh
)
SELECT f.now_ms, f.here::text, f.log, f.until_ms, f.generation, f.waits, f.has_lost, f.has_begun,
    told.count, c.at_ms, c.ids, c.states
FROM facts AS f CROSS JOIN told LEFT JOIN fresh AS c ON told.count <= {CHANGES_MAX}
ORDER BY c.no
"""

_LISTEN = f"""
INSERT INTO packhorse.listening AS l (log, until_ms, generation, old, young, young_at_ms)
SELECT $2::text, f.now_ms + {CHANGES_KEPT_MS + RENEW_MS}, 0, pg_current_snapshot(), pg_current_snapshot(), f.now_ms
FROM (SELECT {NOW.format("$1")} AS now_ms) AS f
ON CONFLICT (one) DO UPDATE SET log = excluded.log, until_ms = excluded.until_ms, began = NULL,
    generation = excluded.generation, young = excluded.young, young_at_ms = excluded.young_at_ms, is_over = FALSE
WHERE l.until_ms < excluded.young_at_ms OR l.is_over
"""
# Once the row is committed. Whoever writes jobs later sees it; who did before and is not at its end holds a lock on the
# table, and what it has moved so far is perhaps not written down.
_BEGIN = """
UPDATE packhorse.listening SET began = ARRAY(
    SELECT x FROM pg_snapshot_xip(pg_current_snapshot()) AS x
    WHERE EXISTS (
        SELECT 1 FROM pg_locks AS own JOIN pg_locks AS on_jobs USING (virtualtransaction)
        WHERE own.locktype = 'transactionid' AND own.transactionid = x::xid AND own.granted
            AND on_jobs.locktype = 'relation' AND on_jobs.relation = 'packhorse.jobs'::regclass
            AND on_jobs.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND on_jobs.mode = 'RowExclusiveLock' AND on_jobs.granted
    )
)
WHERE began IS NULL
"""
# Cut at the same time: what the snapshot of the cut before sees, if that is old, or if there is more since than anybody
# is told. Every cursor since then sees all of it.
RENEW = f"""
WITH facts AS MATERIALIZED (
    SELECT {NOW.format("$1")} AS now_ms
), mine AS MATERIALIZED (
    SELECT l.log, l.old, l.young, f.now_ms,
        l.young_at_ms + {CHANGES_KEPT_MS} < f.now_ms OR l.young_at_ms > f.now_ms
        OR {CHANGES_MAX} < (SELECT sum(c.count) FROM {_SINCE.format("l.young")} AS c) IS TRUE AS cuts
    FROM facts AS f JOIN packhorse.listening AS l ON l.log = $2::text AND l.until_ms >= f.now_ms AND NOT l.is_over
    FOR UPDATE OF l SKIP LOCKED
), gone AS (
    DELETE FROM packhorse.changes WHERE no IN (
        SELECT c.no FROM mine AS m CROSS JOIN LATERAL {_SINCE.format("m.old")} AS c
        WHERE m.cuts AND pg_visible_in_snapshot(c.xid, m.young)
    )
)
UPDATE packhorse.listening AS l
SET until_ms = m.now_ms + {CHANGES_KEPT_MS + RENEW_MS}, generation = l.generation + m.cuts::integer,
    old = CASE WHEN m.cuts THEN l.young ELSE l.old END,
    young = CASE WHEN m.cuts THEN pg_current_snapshot() ELSE l.young END,
    young_at_ms = CASE WHEN m.cuts THEN m.now_ms ELSE l.young_at_ms END
FROM mine AS m WHERE l.log = m.log
"""

#: A condition on the time: what was written down is read by nobody any more, and is still there.
IS_OVER = f"""EXISTS (
    SELECT 1 FROM packhorse.listening WHERE until_ms + {2 * RENEW_MS} < {{now_ms}} AND NOT is_over
)"""
# A log that begins meanwhile is not harmed: its rows are newer than what this statement sees, and whoever begins it has
# changed the row that this one would.
FORGET = f"""
WITH gone AS (
    DELETE FROM packhorse.changes WHERE no IN (SELECT no FROM packhorse.changes ORDER BY no LIMIT {_FORGOTTEN_MAX})
    AND {IS_OVER.format(now_ms="$1::bigint")}
    RETURNING no
)
UPDATE packhorse.listening SET is_over = TRUE
WHERE until_ms + {2 * RENEW_MS} < $1::bigint AND (SELECT count(*) FROM gone) < {_FORGOTTEN_MAX}
"""


# ---- cursors -------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """How far somebody has followed."""

    log: str
    generation: int
    snapshot: str


_PLACE = re.compile(r"([0-9a-f]{16})\.([0-9]{1,15})\.([0-9]{1,18}):([0-9]{1,18}):([0-9,]*)", re.ASCII)


def write_place(place: Place) -> str:
    """Write a cursor."""
    return f"{place.log}.{place.generation}.{place.snapshot}"


def read_place(cursor: str) -> Place | None:
    """Read a cursor; None for any text that is none. The server is shown nothing that it would raise an error for."""
    found = _PLACE.fullmatch(cursor) if len(cursor) <= CURSOR_CHARS_MAX else None
    if found is None:
        return None
    log, generation, low, high, between = found.groups()
    numbers = between.split(",") if between else []
    if not all(number.isdigit() and len(number) <= 18 for number in numbers):
        return None
    bounds = [int(low), *map(int, numbers), int(high)]
    is_rising = all(one < other for one, other in pairwise(bounds[1:]))
    if bounds[0] < 3 or not is_rising or bounds[0] > bounds[1]:  # numbers below 3 mean something else to the server
        return None
    return Place(log, int(generation), cursor.split(".", 2)[2])


# ---- asking --------------------------------------------------------------------------------------------------


class Asks(Protocol):
    """Runs a script and answers what it came to."""

    def __call__(self, script: Callable[[], Script[T]]) -> Awaitable[T]:
        """Run one."""


class Found(NamedTuple):
    """What a look found, in one snapshot."""

    rows: Rows
    now_ms: int
    here: str
    log: str | None
    listens_until_ms: int
    generation: int
    waits: bool  # transactions are open that may have moved jobs before they could see that somebody asks,
    lost: bool  # or were committed since the cursor
    begun: bool
    total: int  # of changes since the cursor

    @property
    def is_followed(self) -> bool:
        """Tell whether all is written down."""
        return self.log is not None and self.begun and self.now_ms <= self.listens_until_ms

    @property
    def cursor(self) -> str:
        """The cursor to go on from."""
        return write_place(Place(self.log or "", self.generation, self.here))

    def since(self, place: Place) -> Changes:
        """Answer what was told since a place, or a gap."""
        is_known = place.log == self.log and self.generation - 1 <= place.generation <= self.generation
        if not is_known or self.lost or self.total > CHANGES_MAX:
            return Changes([], self.cursor, gap=True)
        return Changes([change for row in self.rows for change in _changes(*row[9:])], self.cursor)


def _changes(at_ms: int | None, ids: Sequence[str] | None, codes: Sequence[int]) -> list[Change]:
    if at_ms is None or ids is None:  # the row of a look that found none
        return []
    if len(codes) == 1:
        state = STATES.get(codes[0])
        return [Change(job_id, state, at_ms) for job_id in ids]
    return [Change(job_id, STATES.get(code), at_ms) for job_id, code in zip(ids, codes, strict=True)]


class Following:
    """What one backend asks of the log."""

    def __init__(self, store: Store, ask: Asks, now_ms: Callable[[], int | None]) -> None:
        self._store = store
        self._ask = ask
        self._now_ms = now_ms

    async def changes(self, cursor: str | None) -> Changes:
        """Answer what changed since a cursor, and have it written down that somebody asks."""
        place = read_place(cursor) if cursor is not None else None
        found = await self._look(place)
        if not found.is_followed:
            await self._begin()
            return Changes([], await self._start(), gap=cursor is not None)
        if is_to_renew(found.listens_until_ms, found.now_ms):
            await self._tell(RENEW, found.log)
        if cursor is None:
            return Changes([], await self._start())
        return found.since(place) if place is not None else Changes([], found.cursor, gap=True)

    async def _begin(self) -> None:
        """Have changes written down from now on, by all transactions but those that are noted as open before."""
        await self._tell(_LISTEN, new_log())
        statement = Statement(self._store.sql(_BEGIN), last=True)
        await self._ask(lambda: _run(statement))

    async def _start(self) -> str:
        """Answer a cursor after which all is told, but for what those transactions moved that take their time."""
        found = await self._look(None)
        for _ in range(_BEGIN_MS // _BEGIN_STEP_MS):
            if not found.waits:
                break
            await asyncio.sleep(_BEGIN_STEP_MS / 1000)
            found = await self._look(None)
        return found.cursor

    async def _look(self, place: Place | None) -> Found:
        log, snapshot = (place.log, place.snapshot) if place is not None else (None, None)
        statement = Statement(self._store.sql(LOOK), (self._now_ms(), log, snapshot), last=True)
        rows = await self._ask(lambda: _run(statement))
        now_ms, here, found_log, until_ms, generation, waits, lost, begun, total = rows[0][:9]
        return Found(rows, now_ms, here, found_log, until_ms or 0, generation or 0, waits, lost, begun, total)

    async def _tell(self, sql: str, *params: Any) -> None:
        statement = Statement(self._store.sql(sql), (self._now_ms(), *params), last=True)
        await self._ask(lambda: _run(statement))


def _run(statement: Statement) -> Script[Rows]:
    return (yield statement)
