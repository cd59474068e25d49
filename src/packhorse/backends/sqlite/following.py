"""Changes, as those see them who ask: who looks only reads, and now and then notes that somebody asks (decision 19)."""

from __future__ import annotations

import sqlite3

import msgspec

from ..base import CHANGES_MAX, Change, Changes
from ..following import is_to_renew, new_log, read_mark, until_ms, write_mark
from ..stored import STATES
from .changelog import read_moves
from .ops import Transaction

_FOLLOWED = "SELECT log, until_ms, coalesce((SELECT max(upto) FROM changes), 0) FROM listening"
READ = "SELECT count, at_ms, moves FROM changes WHERE upto > ? AND upto <= ? ORDER BY upto"


class Look(msgspec.Struct, frozen=True):
    """What a reader found: the answer (None: nobody asks yet), and whether it has to be noted that somebody does."""

    answer: Changes | None
    renew: bool = False


def look(db: sqlite3.Connection, now_ms: int, cursor: str | None) -> Look:
    """Read what was told since a cursor."""
    found = db.execute(_FOLLOWED).fetchone()
    if found is None:
        return Look(None)
    log, listens_until_ms, last = found
    return Look(_since(db, log, last, cursor), is_to_renew(listens_until_ms, now_ms))


def _since(db: sqlite3.Connection, log: str, last: int, cursor: str | None) -> Changes:
    here = write_mark(log, last)
    if cursor is None:
        return Changes([], here)
    mark = read_mark(cursor)
    if mark is None or mark.log != log or not 0 <= last - mark.upto <= CHANGES_MAX:
        return Changes([], here, gap=True)
    rows = db.execute(READ, (mark.upto, last)).fetchall() if last > mark.upto else []
    if sum(count for count, _, _ in rows) != last - mark.upto:  # cut meanwhile, or no count that was ever answered
        return Changes([], here, gap=True)
    return Changes(
        [
            Change(job_id, STATES.get(code), at_ms)
            for _, at_ms, moves in rows
            for code, ids in read_moves(moves)
            for job_id in ids
        ],
        here,
    )


def listen(tx: Transaction, _: None) -> str:
    """Note that somebody asks; answers the cursor of now. All later transactions are told of."""
    found = tx.db.execute(_FOLLOWED).fetchone()
    if found is not None:  # perhaps out of date, but then nobody has moved anything since
        tx.db.execute("UPDATE listening SET until_ms = ?", (until_ms(tx.now_ms),))
        return write_mark(found[0], found[2])
    log = new_log()
    tx.db.execute("INSERT INTO listening (log, until_ms) VALUES (?, ?)", (log, until_ms(tx.now_ms)))
    tx.forget_followers()
    return write_mark(log, 0)
