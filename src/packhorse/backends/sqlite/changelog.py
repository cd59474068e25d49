"""The log of changes, as transactions write it: one row each, and nothing while nobody asks (decision 19)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from ..base import CHANGES_MAX

#: What moved, in order: codes of states (0: gone), each with the ids of the jobs that came into it.
Moves = list[tuple[int, Sequence[str]]]
GONE = 0

#: The log is cut each time its count passes another so many: it has at most this and one transaction too many.
_CUT_EVERY = 1_000

_WRITE = """
INSERT INTO changes (upto, count, at_ms, moves)
SELECT coalesce((SELECT max(upto) FROM changes), 0) + ?1, ?1, ?2, ?3 RETURNING upto
"""
_CUT = "DELETE FROM changes WHERE upto <= ?"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[int, list[str]]]).decode


def is_followed(db: sqlite3.Connection, now_ms: int) -> bool:
    """Tell a transaction whether somebody asks for changes. Where nobody did for long, the log ends here."""
    found = db.execute("SELECT until_ms FROM listening").fetchone()
    if found is None:
        return False
    if now_ms <= found[0]:
        return True
    db.execute("DELETE FROM listening")
    db.execute("DELETE FROM changes")
    return False


def write(db: sqlite3.Connection, now_ms: int, moves: Moves) -> int:
    """Add what a transaction moved to the log; answers how many bytes that are."""
    packed = _encode(moves)
    count = sum(len(ids) for _, ids in moves)
    upto = db.execute(_WRITE, (count, now_ms, packed)).fetchone()[0]
    if upto // _CUT_EVERY > (upto - count) // _CUT_EVERY:
        db.execute(_CUT, (upto - CHANGES_MAX,))  # whoever is further behind begins anew
    return len(packed)


def read_moves(packed: bytes) -> list[tuple[int, list[str]]]:
    """Read what `write` packed."""
    return _decode(packed)
