"""What ends of attempts count as, once the store has said that they took effect.

Counted by who decided them, a worker or the server for one that speaks HTTP: only they know queue and type of what they
settle. What a lapse ended counts with whoever's tick or `retire` made the lapse: the store names it to nobody else. A
number that was counted is never taken back, so nothing is counted before the store's answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..backends.base import Lapse, Settlement, Verdict
from ..job import State
from . import metrics
from .meters import Number, Sheet


class EndCells:
    """What is counted of the ends of one queue and type."""

    __slots__ = ("cancelled", "completed", "failed", "parked", "released", "retried")

    def __init__(self, sheet: Sheet, queue: str, job_type: str) -> None:
        self.completed = sheet.number(metrics.COMPLETED, queue, job_type)
        self.failed = sheet.number(metrics.FAILED, queue, job_type)
        self.retried = sheet.number(metrics.RETRIED, queue, job_type)
        self.cancelled = sheet.number(metrics.CANCELLED, queue, job_type)
        self.released = sheet.number(metrics.RELEASED, queue, job_type)
        self.parked = sheet.number(metrics.PARKED, queue, job_type)

    def of(self, settlement: Settlement) -> Number:
        """Answer what an end counts as."""
        match settlement.state:
            case State.SUCCEEDED:
                return self.completed
            case State.FAILED:
                return self.failed
            case State.CANCELLED:
                return self.cancelled
        if settlement.park:
            return self.parked
        return self.released if settlement.refund else self.retried


def count_ends(
    settlements: Sequence[Settlement], cells: Sequence[EndCells | None], verdicts: Sequence[Verdict]
) -> None:
    """Count what was APPLIED. In bulk where all succeeded, as most do: it is on the way of every job."""
    if verdicts.count(Verdict.APPLIED) == len(verdicts) and _all_succeeded(settlements):
        kinds = set(cells)
        counts = Counter(cells) if len(kinds) > 1 else dict.fromkeys(kinds, len(cells))
        for ends, count in counts.items():
            if ends is not None:
                ends.completed.value += count
        return
    for settlement, ends, verdict in zip(settlements, cells, verdicts, strict=True):
        if ends is not None and verdict is Verdict.APPLIED:
            ends.of(settlement).value += 1


def count_lapses(sheet: Sheet, lapses: Iterable[Lapse]) -> None:
    """Count jobs that were taken from lost workers, and those that this ended. One that runs again has not ended."""
    for lapse in lapses:
        sheet.number(metrics.RECOVERED).value += 1
        if lapse.state in _ENDED_BY_LAPSE:
            sheet.number(_ENDED_BY_LAPSE[lapse.state], lapse.queue, lapse.type).value += 1


_ENDED_BY_LAPSE = {State.FAILED: metrics.FAILED, State.CANCELLED: metrics.CANCELLED}


def _all_succeeded(settlements: Sequence[Settlement]) -> bool:
    return [settlement.state for settlement in settlements].count(State.SUCCEEDED) == len(settlements)
