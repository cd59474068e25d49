"""What a worker may change although it may not steer: the limits, schedules and capacities that its own code declares.

A worker that starts brings the store in step with its code (`worker/declared.py`, `recurring.py`). Without this the
token of a worker would have to be an operator's, or the limits of the code would silently not hold. What an operator
set stays an operator's.
"""

from __future__ import annotations

from ..backends.base import Backend, QueueChange, ScheduleChange
from ..backends.http import wire
from ..errors import InvalidOption

Changes = wire.ChangeLimits | wire.ChangeSchedules | wire.ChangeQueues


async def is_of_code(backend: Backend, given: Changes) -> bool:
    """Tell whether all of these changes are such as code declares, and touch nothing of an operator's."""
    if isinstance(given, wire.ChangeLimits):
        return all(change.source for change in given.changes)  # the store lets none of these override an operator's
    if isinstance(given, wire.ChangeSchedules):
        sources = {schedule.name: schedule.source for schedule in await backend.schedules()}
        return all(_is_own_schedule(change, sources.get(change.name)) for change in given.changes)
    if isinstance(given, wire.ChangeQueues):
        held = await backend.queues()
        return all(_is_first_capacity(change, held.get(change.queue)) for change in given.changes)
    raise InvalidOption(f"{type(given).__name__} is no change that code declares")


def _is_own_schedule(change: ScheduleChange, held: str | None) -> bool:
    """Tell whether code defines a schedule that is its own or nobody's, or takes its own away."""
    if change.paused is not None:
        return False
    if change.define is not None:
        return bool(change.define.source) and held in {None, change.define.source}
    return change.removed and held != ""


def _is_first_capacity(change: QueueChange, held: QueueChange | None) -> bool:
    return change.paused is None and (held is None or held.capacity is None)
