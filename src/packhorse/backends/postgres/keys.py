"""Unique keys: who holds one, asked under the key's lock by whoever wants it, so that no move has to free any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..stored import Holder, Slot
from .placing import columns
from .script import Script, Tx

_HOLDERS = """
SELECT k.no, k.queue, k.key, j.seq, j.id, j.state, j.created_at_ms, coalesce(j.unique_for_ms, 0), j.unique_states
FROM unnest($1::text[], $2::text[]) AS m (queue, key)
JOIN packhorse.keys AS k ON k.queue = m.queue AND k.key = m.key JOIN packhorse.jobs AS j ON j.seq = k.holder
"""
HOLDERS = f"{_HOLDERS} ORDER BY k.no"
# Locked, for a holder that is to be replaced must not start meanwhile.
HOLDERS_LOCKED = f"{_HOLDERS} ORDER BY j.seq FOR NO KEY UPDATE OF j"

_TAKE = """
INSERT INTO packhorse.keys (queue, key, holder)
SELECT m.queue, m.key, j.seq
FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS m (queue, key, id, no)
JOIN packhorse.jobs AS j ON j.id = m.id ORDER BY m.no
"""
# Those that ended are forgotten: they come back by a rerun only, which takes the key anew.
_FORGET = """
DELETE FROM packhorse.keys AS k
USING unnest($1::text[], $2::text[], $3::text[]) AS m (queue, key, id), packhorse.jobs AS j
WHERE k.queue = m.queue AND k.key = m.key AND j.seq = k.holder AND (j.state >= 5 OR j.id = m.id)
"""
_LEAVE = "DELETE FROM packhorse.keys WHERE queue = $1::text AND key = $2::text AND holder = $3::bigint"
FREE = """
DELETE FROM packhorse.keys AS k USING packhorse.jobs AS j
WHERE j.seq = ANY($1::bigint[]) AND j.unique_key IS NOT NULL
    AND k.queue = j.queue AND k.key = j.unique_key AND k.holder = j.seq
"""
# Of jobs that are about to be dropped, those whose key somebody's open transaction is taking over.
_HELD = """
WITH mine AS MATERIALIZED (
    SELECT k.no, j.seq FROM packhorse.jobs AS j
    JOIN packhorse.keys AS k ON k.queue = j.queue AND k.key = j.unique_key AND k.holder = j.seq
    WHERE j.seq = ANY($1::bigint[]) AND j.unique_key IS NOT NULL
), free AS MATERIALIZED (
    SELECT k.no FROM packhorse.keys AS k WHERE k.no IN (SELECT no FROM mine) FOR UPDATE SKIP LOCKED
)
SELECT seq FROM mine WHERE no NOT IN (SELECT no FROM free)
"""


def lock(tx: Tx, slots: Iterable[Slot]) -> Script[None]:
    """Wait for keys, and keep others from them until the end of the transaction."""
    yield from tx.lock(*(tx.store.lock_key("key", *slot) for slot in slots))


def find_takers(tx: Tx, slots: Iterable[Slot], *, locked: bool = False) -> Script[dict[Slot, list[Holder]]]:
    """Lock keys and answer who took each, the last one last: one of them holds it, or none.

    The lock is of the key, in a statement of its own before the look: a racer that waits for it then sees what the
    other one stored. `locked` keeps the holders from moving too.
    """
    takers: dict[Slot, list[Holder]] = {}
    wanted = list(dict.fromkeys(slots))
    if wanted:
        yield from lock(tx, wanted)
        rows = yield from tx.ask(HOLDERS_LOCKED if locked else HOLDERS, *columns(wanted))
        for one in sorted((Holder(*row) for row in rows), key=lambda one: one.no):
            takers.setdefault((one.queue, one.key), []).append(one)
    return takers


def find_holders(tx: Tx, slots: Iterable[Slot]) -> Script[dict[Slot, Holder]]:
    """Lock keys and answer who holds each now; what is free is not in the answer."""
    takers = yield from find_takers(tx, slots)
    return {slot: one for slot, found in takers.items() for one in found if one.holds(tx.now_ms)}  # the last that does


def take(tx: Tx, slots: Iterable[tuple[str, str, str]]) -> Script[None]:
    """Give keys to stored jobs, in this order: queue, key and id of each."""
    wanted = list(slots)
    if wanted:
        taken = columns(wanted)
        yield from tx.ask(_FORGET, *taken)
        yield from tx.ask(_TAKE, *taken)


def leave(tx: Tx, queue: str, key: str, seq: int) -> Script[None]:
    """Let a job go from the key of a queue that it leaves."""
    yield from tx.ask(_LEAVE, queue, key, seq)


def not_held(tx: Tx, seqs: Sequence[int]) -> Script[list[int]]:
    """Lock the keys of jobs that are about to be dropped; answers the jobs whose key nobody else has locked."""
    held = {seq for (seq,) in (yield from tx.ask(_HELD, list(seqs)))} if seqs else set()
    return [seq for seq in seqs if seq not in held]


def free(tx: Tx, seqs: Sequence[int]) -> Script[None]:
    """Free the keys of jobs that are about to be dropped."""
    yield from tx.ask(FREE, list(seqs))
