"""How often a spent rate held jobs back, for whoever measures: `Backend.rate_limited`. No I/O."""

from __future__ import annotations

#: Types that are told apart; of others nothing is told.
TYPES_MAX = 1_000


class RateLimited:
    """What the claims of one connection found shut by a rate.

    Each shutting counts once, however many claims meet it: it is known by the instant at which it opens again.
    """

    __slots__ = ("_opens_at_ms", "counts")

    def __init__(self) -> None:
        #: By type; only grows. Read by another thread: never replaced.
        self.counts: dict[str, int] = {}
        self._opens_at_ms: dict[str, int] = {}

    def is_known(self, job_type: str, opens_at_ms: int) -> bool:
        """Answer whether this shutting of a whole type was counted already."""
        return self._opens_at_ms.get(job_type) == opens_at_ms

    def note_type(self, job_type: str, opens_at_ms: int) -> None:
        """Count that jobs of a type stay pending until its rate opens again, if that is new."""
        if not self.is_known(job_type, opens_at_ms) and self._count(job_type):
            self._opens_at_ms[job_type] = opens_at_ms

    def note_lane(self, job_type: str) -> None:
        """Count the same of the jobs of one key. Who calls this leaves the lane out until it opens."""
        self._count(job_type)

    def _count(self, job_type: str) -> bool:
        count = self.counts.get(job_type, 0)
        if not count and len(self.counts) >= TYPES_MAX:
            return False
        self.counts[job_type] = count + 1
        return True
