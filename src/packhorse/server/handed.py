"""Jobs in the hands of workers that speak HTTP: what their runs come to is counted here, for they count nothing.

Workers in Python that reach their store through the server count by themselves; their calls do not come this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import msgspec

from ..backends.base import Settlement, Verdict
from ..clock import Clock
from ..job import Claimed
from ..observe.ends import count_ends
from ..observe.labels import OTHER, UNKNOWN
from ..observe.runs import UNCOUNTED, Runs
from ..outcome import Kind, Outcome

#: Jobs that are remembered from their claim to their end; of the oldest beyond these nobody knows queue and type.
HANDED_MAX = 100_000


class _Hand(msgspec.Struct, frozen=True, gc=False):
    token: str
    queue: str
    type: str
    started_ns: int


class Handed:
    """What was handed out and has not ended. Lost with the server: then an end counts without queue and type."""

    def __init__(self, runs: Runs, clock: Clock) -> None:
        self._runs = runs
        self._clock = clock
        self._hands: dict[str, _Hand] = {}

    def note(self, jobs: Sequence[Claimed]) -> None:
        """Remember jobs that are handed out now."""
        now_ns = self._clock.boot_ns()
        for job in jobs:
            self._hands.pop(job.id, None)  # what is handed out last goes last
            self._hands[job.id] = _Hand(job.token, job.queue, job.type, now_ns)
        if len(self._hands) > HANDED_MAX:
            for job_id in list(islice(self._hands, len(self._hands) // 2)):
                del self._hands[job_id]

    def count(
        self, settlements: Sequence[Settlement], outcomes: Sequence[Outcome], verdicts: Sequence[Verdict]
    ) -> None:
        """Count what was settled, and how long the runs took from the claim to here."""
        now_ns = self._clock.boot_ns()
        ends = []
        for settlement, outcome, verdict in zip(settlements, outcomes, verdicts, strict=True):
            hand = self._hands.get(settlement.id)
            if hand is None or hand.token != settlement.token:
                hand = None  # not of this run: the job may be in the hands of another by now
            else:
                del self._hands[settlement.id]
            cells = self._runs.cells(OTHER, UNKNOWN) if hand is None else self._runs.cells(hand.queue, hand.type)
            ends.append(cells.ends)
            if verdict is not Verdict.APPLIED or hand is None or outcome.kind in UNCOUNTED:
                continue
            if outcome.kind is Kind.SUCCEEDED:
                cells.successes_ns.append(now_ns - hand.started_ns)
            else:
                cells.failed(now_ns - hand.started_ns)
        self._runs.count()
        count_ends(settlements, ends, verdicts)
