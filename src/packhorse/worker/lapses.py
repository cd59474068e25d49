"""What becomes known of jobs that lapsed: a line each in the log, and the app's failure hooks.

The store names a lapse once, to whose tick or `retire` made it: that one says it and tells it, and nobody else does. A
worker in a program calls its hooks itself. A keeper runs no user code, so a runner that lives tells them, and says when
they know. Until then the keeper remembers: the next job that kills its process may take the very runner that was to
tell.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..backends.base import Lapse
from ..job import LAPSED, State
from ..wording import quantity
from .link import Lapsed

if TYPE_CHECKING:
    from .child import Child

log = logging.getLogger("packhorse.keeper")
jobs_log = logging.getLogger("packhorse.jobs")

#: Jobs that are remembered; more are not told.
UNTOLD_MAX = 1_000
#: Lapses of one call that have a line each.
_LINES_MAX = 20

#: Why a tick takes jobs from a worker.
LEASE_OVER = "the lease of the worker ran out"

_ENDS = {
    State.PENDING: (logging.WARNING, "job lost its {}"),
    State.FAILED: (logging.ERROR, "job failed for good with its {}"),
    State.CANCELLED: (logging.INFO, "job cancelled with its {}"),
}


def say_lapses(lapses: Sequence[Lapse], reason: str, lost: str = "worker", worker: str = "") -> None:
    """Write a line about each job that lapsed, the most attempts first; beyond _LINES_MAX, how many more.

    `lost` is what took it along, `worker` who held it, where that is known.
    """
    named = sorted(lapses, key=lambda lapse: (-lapse.attempt, lapse.id))  # a poison job comes again
    for lapse in named[:_LINES_MAX]:
        fields = {"job_id": lapse.id, "job_type": lapse.type, "queue": lapse.queue, "attempt": lapse.attempt}
        if worker:
            fields["worker"] = worker
        fields["error"] = f"{LAPSED}: {reason}"
        level, what = _ENDS[lapse.state]
        what = what.format(lost)
        jobs_log.log(level, "%s, attempt %d of %d", what, lapse.attempt, lapse.max_attempts, extra=fields)
    if len(named) > _LINES_MAX:
        jobs_log.warning("%s lapsed at the same time", quantity(len(named) - _LINES_MAX, "more job"))


def failed_attempts(lapses: Iterable[Lapse]) -> dict[str, int]:
    """Answer the jobs that a failure hook is to hear of, and which attempt failed. What was cancelled did not fail."""
    return {lapse.id: lapse.attempt for lapse in lapses if lapse.state is not State.CANCELLED}


class Lapses:
    """Attempts that a keeper saw lapse, until the hooks know of them."""

    def __init__(self) -> None:
        self._untold: dict[int, Lapsed] = {}
        self._with: dict[int, Child] = {}  # who was asked to tell
        self._numbers = 0

    def add(self, attempts: Mapping[str, int], worker: str | None = None) -> None:
        """Remember which jobs lapsed, and in which attempt. `worker` held them; None: nobody knows who."""
        room = max(0, UNTOLD_MAX - self._count())
        kept = dict(sorted(attempts.items())[:room])
        if len(kept) < len(attempts):
            untold = quantity(len(attempts) - len(kept), "failure is", "failures are")
            log.warning("%s not told to the hooks: %d wait already", untold, UNTOLD_MAX)
        if kept:
            self._numbers += 1
            self._untold[self._numbers] = Lapsed(self._numbers, worker, kept)

    def hand_over(self, children: Iterable[Child]) -> None:
        """Ask a runner that is ready to tell what no other that lives was asked to; without one it waits.

        Rather one that goes on and is not stopped: it may be the very one whose jobs lapsed.
        """
        living = [child for child in children if child.ready is not None and not child.gone]
        if not living or not self._untold:
            return
        child = min(living, key=lambda child: (child.leaving, child.stopped()))
        for number, message in self._untold.items():
            if number not in self._with or self._with[number].gone:
                self._with[number] = child
                child.link.send(message)

    def told(self, number: int) -> None:
        """Forget what the hooks know of."""
        self._untold.pop(number, None)
        self._with.pop(number, None)

    def end(self) -> None:
        """Say what nobody was there to tell."""
        if self._untold:
            untold = quantity(self._count(), "failure is", "failures are")
            log.warning("%s not told to the hooks: no runner was left to do it", untold)
        self._untold.clear()
        self._with.clear()

    def _count(self) -> int:
        return sum(len(one.attempts) for one in self._untold.values())
