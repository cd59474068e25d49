"""Where a job that becomes pending waits: its rank, and the lane of its type where that is limited."""

from __future__ import annotations

import sqlite3

from ...job import rank


class Places:
    """The places given out in one transaction; what it needs to know of the store is read when first needed."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def of(self, queue: str, job_type: str, key: str | None, priority: int, ready_at_ms: int) -> tuple[int, str | None]:
        """Answer rank and lane of one more job that becomes pending."""
        return rank(ready_at_ms, priority), None
