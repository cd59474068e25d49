"""Settle, inside a transaction: a shortcut for what is plain, and the way for everything else."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Sequence

from ...job import TERMINAL, State
from ..base import DUE_TOPIC, Settlement, Verdict, job_topic, landing, queue_topic
from ..stored import CODES, RUNNING, SUCCEEDED, Row, read_token, to_json
from . import families
from .adding import add
from .ops import Redo, Transaction
from .rows import insert_chunks, load_by_id, save

# By id, never through the index of running jobs, which one worker may fill.
_SUCCEED = f"""
UPDATE jobs INDEXED BY sqlite_autoindex_jobs_1
SET state = {SUCCEEDED}, finished_at_ms = ?, worker = NULL, token = NULL, parked_at_ms = NULL
WHERE id IN (SELECT value FROM json_each(?)) AND state = {RUNNING} AND token = ?
"""

WITH_CHILDREN = """
SELECT j.seq FROM json_each(?) AS m CROSS JOIN jobs AS j ON j.id = m.value WHERE j.children = 1
"""


def settle_many(tx: Transaction, calls: list[Sequence[Settlement]]) -> list[list[Verdict]]:
    """End the attempts of several calls, plain successes in one statement for each claim. Redo if any is stale."""
    plain: list[Settlement] = []
    other: list[Settlement] = []
    for settlements in calls:
        for settlement in settlements:
            (plain if _is_plain(settlement) else other).append(settlement)
    total = len(plain) + len(other)
    if len({one.id for settlements in calls for one in settlements}) < total or (other and len(calls) > 1):
        raise Redo  # in the order of the calls, for the first of two settlements counts
    _succeed(tx, plain)
    families.serve(tx)
    if not other:
        return [[Verdict.APPLIED] * len(settlements) for settlements in calls]
    verdicts = iter(settle(tx, other))
    return [[Verdict.APPLIED if _is_plain(one) else next(verdicts) for one in calls[0]]]


def _is_plain(settlement: Settlement) -> bool:
    return (
        settlement.state is State.SUCCEEDED
        and settlement.error is None
        and not settlement.follow_ups
        and not settlement.refund
        and not settlement.park
    )


def _succeed(tx: Transaction, plain: list[Settlement]) -> None:
    by_claim: dict[str, list[str]] = {}
    results: list[tuple[str, bytes]] = []
    topics = tx.topics
    for settlement in plain:
        by_claim.setdefault(settlement.token, []).append(settlement.id)
        if settlement.result is not None:
            results.append((settlement.id, settlement.result))
        topics.add("job:" + settlement.id)
    for token, ids in by_claim.items():
        number = read_token(token)
        if number is None:
            raise Redo
        tx.settles = True
        if tx.db.execute(_SUCCEED, (tx.now_ms, to_json(ids).decode(), number)).rowcount != len(ids):
            raise Redo
        if tx.followed:
            tx.tell(SUCCEEDED, ids)
    # Errors of earlier attempts and progress may be there: only the result is written over.
    insert_chunks(
        tx.db,
        "INSERT INTO extras (seq, result) VALUES {} ON CONFLICT (seq) DO UPDATE SET result = excluded.result",
        results,
        places="((SELECT seq FROM jobs WHERE id = ?), ?)",
    )
    tx.pages += sum(len(result) for _, result in results) // 4_096
    if tx.families and plain:
        settled = to_json([settlement.id for settlement in plain]).decode()
        tx.ended += [seq for (seq,) in tx.db.execute(WITH_CHILDREN, (settled,)).fetchall()]


def settle(tx: Transaction, settlements: Sequence[Settlement]) -> list[Verdict]:
    """End attempts of any kind, one after the other on the rows in memory, then written at once."""
    rows = load_by_id(tx.db, [settlement.id for settlement in settlements])
    verdicts = []
    for settlement in settlements:
        row = rows.get(settlement.id)
        token = read_token(settlement.token)
        if row is None or token is None or row.state != RUNNING or row.token != token:
            verdicts.append(Verdict.STALE)
            continue
        _apply(tx, row, settlement)
        verdicts.append(Verdict.APPLIED)
        if settlement.follow_ups:
            save(tx, rows.values())  # first, for it may free the unique key of a follow-up
            add(tx, settlement.follow_ups)
    save(tx, rows.values())
    families.serve(tx)
    return verdicts


def _apply(tx: Transaction, row: Row, settlement: Settlement) -> None:
    row.let_go()
    tx.settles = True
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
