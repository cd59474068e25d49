"""Claims that the store made and this worker never heard of: the reply was lost, and the lease is renewed all the same.

Without this they would run for ever in the store and nowhere else. A heartbeat lists what the store holds for us; what
we do not know, and no claim still on its way can explain, is given back. It never started, so it costs no attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from ..backends.base import Settlement
from ..job import State


class Orphans:
    """Finds claims whose reply was lost."""

    def __init__(self) -> None:
        self._unknown: dict[tuple[str, str], int] = {}  # (job, token) → when it was first missed, boot clock

    def look(
        self, held: Mapping[str, str], known: AbstractSet[tuple[str, str]], now_ms: int, claiming_since_ms: int | None
    ) -> list[Settlement]:
        """Answer the releases of what is held in the store and certainly not on its way here.

        `claiming_since_ms` is when the claim now in flight was sent: a job missed before that is not in its reply.
        """
        # Sorted, as the order of a set would differ from process to process and the simulator must repeat itself.
        unknown = [item for item in sorted(held.items()) if item not in known]
        self._unknown = {item: self._unknown.get(item, now_ms) for item in unknown}
        orphans = [
            item
            for item, missed_ms in self._unknown.items()
            if missed_ms < now_ms and (claiming_since_ms is None or missed_ms < claiming_since_ms)
        ]
        for item in orphans:
            del self._unknown[item]
        return [Settlement(id=job, token=token, state=State.PENDING, refund=True) for job, token in orphans]
