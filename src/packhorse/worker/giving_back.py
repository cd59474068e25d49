"""Gives back what a dead runner had claimed and not begun: none of that killed it, so none of it loses an attempt."""

from __future__ import annotations

import logging

from ..backends.base import BATCH_MAX, Backend, Settlement, Verdict, WorkerInfo
from ..job import State
from ..observe import metrics
from ..observe.labels import OTHER, UNKNOWN
from ..observe.meters import Sheet
from ..wording import quantity
from .marks import Marks

log = logging.getLogger("packhorse.keeper")


async def give_back_unbegun(backend: Backend, info: WorkerInfo, lease_ms: int, marks: Marks, sheet: Sheet) -> None:
    """Release the jobs that the worker `info` still holds and that did not begin, as its `marks` say.

    Of which queue and type they are the store does not say: `sheet` counts them without.
    """
    held = (await backend.heartbeat(info, lease_ms)).held
    unbegun = marks.unbegun(held)
    count = 0
    for start in range(0, len(unbegun), BATCH_MAX):
        releases = [
            Settlement(id=job_id, token=held[job_id], state=State.PENDING, refund=True)
            for job_id in unbegun[start : start + BATCH_MAX]
        ]
        count += (await backend.settle(releases)).count(Verdict.APPLIED)
    if count:
        sheet.number(metrics.RELEASED, OTHER, UNKNOWN).value += count
        log.info("of runner %d %s given back: not begun", info.pid, quantity(count, "job is", "jobs are"))
