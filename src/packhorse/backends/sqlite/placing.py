"""Where a job that becomes pending waits: its rank, and the lane of its type where that is limited."""

from __future__ import annotations

import sqlite3

import msgspec

from ...job import AGEING_MS, fair_turn, rank
from ...limits import lane_of

# `msgspec` and not rows.to_json: rows imports this.
_to_json = msgspec.json.Encoder().encode
_decode_limited = msgspec.json.Decoder(list[tuple[str, bool]]).decode

_LIMITED = """
SELECT CAST(json_group_array(json_array(type, json(iif(by_key, 'true', 'false')))) AS BLOB) FROM limited WHERE live
"""
# One answer for both: whether a keyed job is pending in the queue, and how far its keys have come.
_FRONT = """
SELECT (SELECT front_ms FROM fronts WHERE queue = ?1)
WHERE EXISTS (SELECT 1 FROM jobs INDEXED BY turns WHERE state = 3 AND key IS NOT NULL AND queue = ?1)
"""
LAST = """
SELECT max(rank) FROM jobs INDEXED BY turns
WHERE state = 3 AND key IS NOT NULL AND queue = ? AND key = ? AND priority = ?
"""
_SHOW_LANES = """
INSERT INTO lanes (queue, lane, type, head)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) WHERE TRUE
ON CONFLICT (queue, lane) DO UPDATE SET head = min(head, excluded.head)
"""
_SET_FRONT = """
INSERT INTO fronts (queue, front_ms) VALUES (?, ?) ON CONFLICT (queue) DO UPDATE SET front_ms = excluded.front_ms
"""
_MOVE_FRONT = "UPDATE fronts SET front_ms = max(front_ms, ?) WHERE queue = ?"

# One step in the index for each queue that has jobs in lanes, not for each of the jobs.
_QUEUES = """
WITH RECURSIVE found (queue) AS (
    SELECT min(queue) FROM jobs INDEXED BY {0} WHERE state = 3 AND lane {1}
    UNION ALL
    SELECT (SELECT min(queue) FROM jobs INDEXED BY {0} WHERE state = 3 AND lane {1} AND queue > found.queue)
    FROM found WHERE found.queue IS NOT NULL
)
SELECT queue FROM found WHERE queue IS NOT NULL
"""
QUEUES_WITH_LANES = _QUEUES.format("laned", "IS NOT NULL")
OPEN_QUEUES = _QUEUES.format("ready", "IS NULL")


class Places:
    """The places given out in one transaction; what it needs to know of the store is read when first needed."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._limited: dict[str, bool] | None = None
        self._fronts: dict[str, int | None] = {}
        self._lasts: dict[tuple[str, str, int], int | None] = {}
        self._lanes: dict[tuple[str, str], tuple[str, int]] = {}  # (queue, lane) → type, best rank given out

    @property
    def limited(self) -> dict[str, bool]:
        """The types that have limits, True where some are by key."""
        if self._limited is None:
            self._limited = dict(_decode_limited(self._db.execute(_LIMITED).fetchone()[0]))
        return self._limited

    @limited.setter
    def limited(self, limited: dict[str, bool]) -> None:
        self._limited = limited

    def of(self, queue: str, job_type: str, key: str | None, priority: int, ready_at_ms: int) -> tuple[int, str | None]:
        """Answer rank and lane of one more job that becomes pending."""
        turn_ms = ready_at_ms if key is None else self._turn(queue, key, priority, ready_at_ms)
        place = rank(turn_ms, priority)
        limited = self.limited
        lane = lane_of(job_type, key, limited) if limited else None
        if lane is not None:
            self.show(queue, lane, job_type, place)
        return place, lane

    def _turn(self, queue: str, key: str, priority: int, ready_at_ms: int) -> int:
        if queue not in self._fronts:
            found = self._db.execute(_FRONT, (queue,)).fetchone()
            # Keyed jobs of an older schema have no front; theirs is wherever the next one stands.
            self._fronts[queue] = None if found is None else found[0] if found[0] is not None else ready_at_ms
        name = (queue, key, priority)
        if name not in self._lasts:
            last = self._db.execute(LAST, name).fetchone()[0]
            self._lasts[name] = None if last is None else last - priority * AGEING_MS
        front_ms = self._fronts[queue]
        turn_ms = fair_turn(ready_at_ms, front_ms, self._lasts[name])
        if front_ms is None:
            self._fronts[queue] = turn_ms
            self._db.execute(_SET_FRONT, (queue, turn_ms))
        last_ms = self._lasts[name]
        self._lasts[name] = turn_ms if last_ms is None else max(last_ms, turn_ms)
        return turn_ms

    def claimed(self, queue: str, turn_ms: int) -> None:
        """Note how far the keyed jobs of a queue have come."""
        self._db.execute(_MOVE_FRONT, (turn_ms, queue))

    def show(self, queue: str, lane: str, job_type: str, place: int) -> None:
        """Note a job in a lane; only lanes by key are kept account of, there is one other for each type."""
        if lane[-1] == ":" and len(lane) == len(job_type) + 1:
            return
        seen = self._lanes.get((queue, lane))
        if seen is None or place < seen[1]:
            self._lanes[queue, lane] = (job_type, place)

    def write(self) -> None:
        """Write down what was noted. Before COMMIT, and before lanes are read."""
        if self._lanes:
            shown = [(queue, lane, *rest) for (queue, lane), rest in self._lanes.items()]
            self._db.execute(_SHOW_LANES, (_to_json(shown).decode(),))
            self._lanes.clear()

    def forget(self) -> None:
        """Forget what others of the same transaction may change: who is pending, and the limits."""
        self.write()
        self._fronts.clear()
        self._lasts.clear()
        self._limited = None
