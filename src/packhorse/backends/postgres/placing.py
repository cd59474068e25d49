"""Where a job that becomes pending waits: its rank, and the lane of its type where that is limited.

Nothing here makes anybody wait for another's transaction, which may be a user's and long: lanes that got a job are told
of in `shown`, ranks behind their time in `late`, both only added to; a front is moved by whoever gets its lock at once.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from ...job import AGEING_MS, fair_turn, rank
from ...limits import lane_of

if TYPE_CHECKING:
    from .script import Tx

#: A claim begins this long before now in each priority (see floors in the schema): what becomes pending later than this
#: after its turn, or in a transaction that may take longer, is told of in `late`.
MARGIN_MS = 4_000
_LATE_MS = MARGIN_MS // 2

#: Below every rank.
LOWEST = -(1 << 62)

#: Where a look for pending jobs of queue `q.queue` and priority `p.priority` begins; see floors and late in the schema.
FLOOR = f"""least(
    coalesce((SELECT o.floor FROM packhorse.floors AS o WHERE o.queue = q.queue AND o.priority = p.priority), {LOWEST}),
    (SELECT min(l.rank) FROM packhorse.late AS l WHERE l.queue = q.queue AND l.priority = p.priority),
    {{now_ms}} - {MARGIN_MS} + p.priority * {AGEING_MS}::bigint
)"""

# For each queue: whether a keyed job is pending, and how far its keys have come.
_FRONTS = """
SELECT q.queue, (SELECT front_ms FROM packhorse.fronts AS f WHERE f.queue = q.queue),
    EXISTS (SELECT 1 FROM packhorse.jobs AS j WHERE j.state = 3 AND j.key IS NOT NULL AND j.queue = q.queue)
FROM unnest($1::text[]) AS q (queue)
"""
LASTS = """
SELECT k.queue, k.key, k.priority, (
    SELECT j.rank FROM packhorse.jobs AS j
    WHERE j.state = 3 AND j.key IS NOT NULL AND j.queue = k.queue AND j.key = k.key AND j.priority = k.priority
    ORDER BY j.rank DESC LIMIT 1
)
FROM unnest($1::text[], $2::text[], $3::smallint[]) AS k (queue, key, priority)
"""
_SHOW = """
INSERT INTO packhorse.shown (queue, lane, type, head)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
"""
_SET_FRONTS = """
INSERT INTO packhorse.fronts (queue, front_ms)
SELECT m.queue, m.front_ms FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS m (queue, front_ms, lock)
WHERE pg_try_advisory_xact_lock(m.lock)
ON CONFLICT (queue) DO UPDATE SET front_ms = excluded.front_ms
"""
# One that is as low and young will do; nobody else takes it away within its time (see keeping.py).
_ADD_LATE = """
INSERT INTO packhorse.late (queue, priority, rank, at_ms)
SELECT m.queue, m.priority, m.rank, $4::bigint
FROM unnest($1::text[], $2::smallint[], $3::bigint[]) AS m (queue, priority, rank)
WHERE NOT EXISTS (
    SELECT 1 FROM packhorse.late AS l
    WHERE l.queue = m.queue AND l.priority = m.priority AND l.rank <= m.rank AND l.at_ms > $4::bigint - $5::bigint
        AND l.at_ms <= $4::bigint
)
"""

_Keyed = tuple[str, str, int]


class Places:
    """The places given out in one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._fronts: dict[str, int | None] = {}
        self._lasts: dict[_Keyed, int | None] = {}
        self._set: dict[str, int] = {}
        self._lanes: dict[tuple[str, str], tuple[str, int]] = {}  # (queue, lane) → type, best rank given out
        self._late: dict[tuple[str, int], int] = {}  # (queue, priority) → lowest rank behind its time

    def know(self, keyed: Iterable[tuple[str, str | None, int]]) -> Generator[Any, Any, None]:
        """Learn what `of` has to know of jobs with keys: queue, key and priority of each."""
        wanted = [one for one in dict.fromkeys(keyed) if one[1] is not None and one not in self._lasts]
        if not wanted:
            return
        ask = self._tx.ask
        queues = list({queue for queue, _, _ in wanted} - set(self._fronts))
        if queues:
            rows = yield from ask(_FRONTS, queues)
            # A front that was never set, because whoever did had not committed, is wherever the next one stands.
            self._fronts.update((queue, front_ms if pending else None) for queue, front_ms, pending in rows)
        rows = yield from ask(LASTS, [one[0] for one in wanted], [one[1] for one in wanted], [one[2] for one in wanted])
        for queue, key, priority, last in rows:
            self._lasts[queue, key, priority] = None if last is None else last - priority * AGEING_MS

    def of(self, queue: str, job_type: str, key: str | None, priority: int, ready_at_ms: int) -> tuple[int, str | None]:
        """Answer rank and lane of one more job that becomes pending."""
        turn_ms = ready_at_ms if key is None else self._turn(queue, key, priority, ready_at_ms)
        place = rank(turn_ms, priority)
        limited = self._tx.limited
        lane = lane_of(job_type, key, limited) if limited else None
        if lane is not None:
            self.show(queue, lane, job_type, place)
        elif self._tx.is_bound or turn_ms < self._tx.now_ms - _LATE_MS:
            self._note_late(queue, priority, place)
        return place, lane

    def _turn(self, queue: str, key: str, priority: int, ready_at_ms: int) -> int:
        name = (queue, key, priority)
        front_ms, last_ms = self._fronts[queue], self._lasts[name]
        turn_ms = fair_turn(ready_at_ms, front_ms, last_ms)
        if front_ms is None:
            self._fronts[queue] = self._set[queue] = turn_ms
        self._lasts[name] = turn_ms if last_ms is None else max(last_ms, turn_ms)
        return turn_ms

    def _note_late(self, queue: str, priority: int, place: int) -> None:
        known = self._late.get((queue, priority))
        if known is None or place < known:
            self._late[queue, priority] = place

    def open(self, queue: str, priority: int, place: int) -> None:
        """Note a job that leaves its lane with the rank it has, for claims to find it where they no longer look."""
        if place - priority * AGEING_MS < self._tx.now_ms - _LATE_MS:
            self._note_late(queue, priority, place)

    def show(self, queue: str, lane: str, job_type: str, place: int) -> None:
        """Note a job in a lane; only lanes by key are kept account of, there is one other for each type."""
        if lane[-1] == ":" and len(lane) == len(job_type) + 1:
            return
        seen = self._lanes.get((queue, lane))
        if seen is None or place < seen[1]:
            self._lanes[queue, lane] = (job_type, place)

    def write(self) -> Generator[Any, Any, None]:
        """Write down what was noted. At the end, and before lanes are read."""
        ask = self._tx.ask
        if self._set:
            queues = sorted(self._set)
            locks = [self._tx.store.lock_key("front", queue) for queue in queues]
            yield from ask(_SET_FRONTS, queues, [self._set[queue] for queue in queues], locks)
            self._set.clear()
        if self._lanes:
            shown = [(queue, lane, *rest) for (queue, lane), rest in self._lanes.items()]
            yield from ask(_SHOW, *columns(shown))
            self._lanes.clear()
        if self._late:
            late = [(*name, place) for name, place in self._late.items()]
            young_ms = 0 if self._tx.is_bound else _LATE_MS
            yield from ask(_ADD_LATE, *columns(late), self._tx.now_ms, young_ms)
            self._late.clear()


def columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Turn rows into columns; there is at least one row."""
    return [list(column) for column in zip(*rows, strict=True)]
