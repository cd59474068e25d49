"""Unique keys: who holds one, asked under the write lock by whoever wants it, so that no move has to free any."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from ...job import JobSpec
from ..stored import UNTIL_IT_ENDS, Holder, Slot, mask_of, to_json
from .ops import Transaction
from .rows import numbers

HOLDERS = """
SELECT CAST(json_group_array(json_array(
    k.no, k.queue, k.key, j.seq, j.id, j.state, j.created_at_ms, coalesce(w.for_ms, 0), w.states
)) AS BLOB)
FROM json_each(?) AS m CROSS JOIN keys AS k ON k.queue = m.value ->> 0 AND k.key = m.value ->> 1
CROSS JOIN jobs AS j ON j.seq = k.holder LEFT JOIN windows AS w ON w.seq = j.seq
"""
_decode_holders = msgspec.json.Decoder(list[Holder]).decode

TAKE = """
INSERT INTO keys (queue, key, holder)
SELECT m.value ->> 0, m.value ->> 1, j.seq FROM json_each(?) AS m CROSS JOIN jobs AS j ON j.id = m.value ->> 2
"""
# Those that ended are forgotten: they come back by a rerun only, which takes the key anew.
FORGET = """
DELETE FROM keys WHERE no IN (
    SELECT k.no FROM json_each(?) AS m CROSS JOIN keys AS k ON k.queue = m.value ->> 0 AND k.key = m.value ->> 1
    CROSS JOIN jobs AS j ON j.seq = k.holder WHERE j.state >= 5 OR j.id = m.value ->> 2
)
"""
_LEAVE = "DELETE FROM keys WHERE queue = ? AND key = ? AND holder = ?"

_WINDOWS = """
INSERT INTO windows (seq, for_ms, states)
SELECT j.seq, m.value ->> 1, m.value ->> 2 FROM json_each(?) AS m CROSS JOIN jobs AS j ON j.id = m.value ->> 0
"""

_KEYS_OF = """
SELECT json_group_array(json_array(queue, unique_key)) FROM jobs
WHERE seq IN (SELECT value FROM json_each(?)) AND unique_key IS NOT NULL
"""
FREE = """
DELETE FROM keys
WHERE (queue, key) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))
AND +holder IN (SELECT value FROM json_each(?))
"""


def find_takers(db: sqlite3.Connection, slots: Sequence[Slot]) -> dict[Slot, list[Holder]]:
    """Answer who took each of `slots`, the last one last: one of them holds it, or none."""
    takers: dict[Slot, list[Holder]] = {}
    if slots:
        found = _decode_holders(db.execute(HOLDERS, (to_json(slots).decode(),)).fetchone()[0])
        for one in sorted({one.no: one for one in found}.values(), key=lambda one: one.no):
            takers.setdefault((one.queue, one.key), []).append(one)
    return takers


def find_holders(db: sqlite3.Connection, slots: Sequence[Slot], now_ms: int) -> dict[Slot, Holder]:
    """Answer who holds each of `slots` now; what is free is not in the answer."""
    return {
        slot: one for slot, takers in find_takers(db, slots).items() for one in takers if one.holds(now_ms)
    }  # the last that does


def take(tx: Transaction, slots: Iterable[tuple[str, str, str]]) -> None:
    """Give keys to stored jobs, in this order: queue, key and id of each."""
    wanted = list(slots)
    if wanted:
        taken = to_json(wanted).decode()
        tx.db.execute(FORGET, (taken,))
        tx.db.execute(TAKE, (taken,))


def leave(tx: Transaction, queue: str, key: str, seq: int) -> None:
    """Let a job go from the key of a queue that it leaves."""
    tx.db.execute(_LEAVE, (queue, key, seq))


def free(tx: Transaction, seqs: Sequence[int]) -> None:
    """Free the keys of jobs that are about to be dropped."""
    wanted = numbers(seqs)
    slots = tx.db.execute(_KEYS_OF, (wanted,)).fetchone()[0]
    if slots != "[]":
        tx.db.execute(FREE, (slots, wanted))


def keep_rules(tx: Transaction, specs: Iterable[JobSpec]) -> None:
    """Store by what rule new jobs hold their keys, where that is not the usual one."""
    rules = [
        (spec.id, spec.unique.for_ms, mask_of(spec.unique.states))
        for spec in specs
        if spec.unique is not None and (spec.unique.for_ms or spec.unique.states != UNTIL_IT_ENDS)
    ]
    if rules:
        tx.db.execute(_WINDOWS, (to_json(rules).decode(),))
