"""Settle: one statement for plain successes, and the way for everything else."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Sequence

from ...job import TERMINAL, State
from ..base import DUE_TOPIC, Settlement, Verdict, job_topic, landing, queue_topic
from ..stored import CODES, RUNNING, SUCCEEDED, Row, read_token
from . import families
from .adding import add
from .placing import columns
from .rows import IS_RUNNING, load_by_id, save
from .script import NOW, Script, Statement, Store, Tx

# SKIP LOCKED: somebody's open transaction may hold one of them (a child that is being tied to it, a settlement of its
# handler), and the others of the batch must not wait for that. What is not taken here goes the way of everything else,
# as does a job that has children to tell.
SUCCEED = f"""
WITH settled AS MATERIALIZED (
    SELECT j.seq, m.result
    FROM unnest($2::text[], $3::bigint[], $4::bytea[]) AS m (id, token, result) CROSS JOIN LATERAL (
        SELECT j.seq FROM packhorse.jobs AS j
        WHERE j.id = m.id AND {IS_RUNNING} AND j.token = m.token AND j.children = 0
        LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
    ) AS j
), done AS (
    UPDATE packhorse.jobs AS j
    SET state = {SUCCEEDED}, finished_at_ms = {NOW.format("$1")}, worker = NULL, token = NULL, parked_at_ms = NULL,
        result = settled.result
    FROM settled WHERE j.seq = settled.seq
    RETURNING j.id, j.lane IS NOT NULL AS has_lane, j.finished_at_ms
), heard AS (
    SELECT pg_notify($5::text, $6::text) WHERE $6::text IS NOT NULL AND EXISTS (SELECT 1 FROM done)
)
SELECT count(*), bool_or(has_lane), (SELECT count(*) FROM heard),
    CASE WHEN count(*) < cardinality($2::text[]) THEN array_agg(id) END,
    CASE WHEN count(*) > 0 THEN packhorse.tell(array_agg(id), '{{{SUCCEEDED}}}', max(finished_at_ms)) END
FROM done
"""


def is_plain(settlement: Settlement) -> bool:
    """Tell whether a settlement is nothing but a success."""
    return (
        settlement.state is State.SUCCEEDED
        and settlement.error is None
        and not settlement.follow_ups
        and not settlement.refund
        and not settlement.park
        and read_token(settlement.token) is not None
        and "\0" not in settlement.id
    )


def succeed(
    store: Store, now_ms: int | None, plain: Sequence[Settlement], payload: str | None = None
) -> Script[tuple[set[str], bool]]:
    """Settle plain successes of different jobs, and tell others `payload`.

    Answers which it settled, and whether limits may let others start.
    """
    rows = [(one.id, read_token(one.token), one.result) for one in plain]
    sql = store.sql(SUCCEED)
    found = yield Statement(sql, (now_ms, *columns(rows), store.channel, payload), last=True)
    count, has_lane, _, ids, _ = found[0]
    return ({one.id for one in plain} if count == len(plain) else set(ids or ())), bool(has_lane)


def settle(tx: Tx, settlements: Sequence[Settlement]) -> Script[list[Verdict]]:
    """End attempts of any kind, one after the other on the rows in memory, then written at once."""
    verdicts = yield from _settle(tx, settlements, only_free=False)
    return [verdict or Verdict.STALE for verdict in verdicts]


def settle_free(tx: Tx, settlements: Sequence[Settlement]) -> Script[list[Verdict | None]]:
    """Settle what nobody else has locked; None: it was locked, or is not there."""
    return (yield from _settle(tx, settlements, only_free=True))


def _settle(tx: Tx, settlements: Sequence[Settlement], *, only_free: bool) -> Script[list[Verdict | None]]:
    yield from tx.begin()
    rows = yield from load_by_id(tx, {settlement.id for settlement in settlements}, only_free=only_free)
    verdicts: list[Verdict | None] = []
    for settlement in settlements:
        row = rows.get(settlement.id)
        if row is None:
            verdicts.append(None)
            continue
        token = read_token(settlement.token)
        if token is None or row.state != RUNNING or row.token != token:
            verdicts.append(Verdict.STALE)
            continue
        _apply(tx, row, settlement)
        verdicts.append(Verdict.APPLIED)
        if settlement.follow_ups:
            yield from save(tx, rows.values())  # first, for it may free the unique key of a follow-up
            yield from add(tx, settlement.follow_ups)
    yield from save(tx, rows.values())
    yield from families.serve(tx)
    yield from tx.finish()
    return verdicts


def _apply(tx: Tx, row: Row, settlement: Settlement) -> None:
    row.let_go()
    tx.settles = tx.settles or row.lane is not None
    if settlement.error is not None:
        row.add_error(settlement.error)
    if settlement.refund:
        row.attempt -= 1
    if not settlement.park:
        row.parked_at_ms = None
    elif row.parked_at_ms is None:
        row.parked_at_ms = tx.now_ms
    state = landing(settlement, bool(row.cancel))
    if state in TERMINAL:
        if settlement.result is not None:
            row.result = settlement.result
            row.extras_dirty = True
        row.end(CODES[state], tx.now_ms)
        tx.topics.add(job_topic(row.id))
    else:
        row.start_over(settlement.delay_ms, tx)
        tx.topics.add(queue_topic(row.queue) if settlement.delay_ms <= 0 else DUE_TOPIC)
