"""Queues, limits and schedules of the memory backend: what an operator sets. The caller holds the lock."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..errors import NotFound
from .base import Limit, QueueChange, Schedule, ScheduleChange, define_schedule, pause_schedule
from .memory_store import MemoryStore


def change_queues(store: MemoryStore, changes: Sequence[QueueChange]) -> dict[str, QueueChange]:
    """Change settings of queues, then answer all."""
    for change in changes:
        old = store.settings.get(change.queue, QueueChange(queue=change.queue, paused=False))
        paused = change.paused if change.paused is not None else old.paused
        capacity = change.capacity if change.capacity is not None else old.capacity
        store.settings[change.queue] = QueueChange(queue=change.queue, paused=paused, capacity=capacity or None)
    return dict(sorted(store.settings.items()))


def change_limits(store: MemoryStore, changes: Sequence[Limit]) -> None:
    """Change limits. What runs counts, also what started before there was a limit."""
    limits = store.limits
    limits.change(changes)
    limits.running.clear()
    for job_ids in store.held.values():
        for job_id in job_ids:
            job = store.jobs[job_id]
            job.lane = limits.lane(job)
            if job.lane is not None:
                limits.count(job, 1)
    for lanes in store.lanes.values():
        for of_type in lanes.limited.values():
            of_type.wake_all()


def limits(store: MemoryStore, about: tuple[str, str | None] | None) -> list[Limit]:
    """Answer all limits, or those that a job of a type and key must pass, with their state."""
    if about is None:
        return [store.limits.by_name[name] for name in sorted(store.limits.by_name, key=_order)]
    now_ms = store.clock.now_ms()
    answer = []
    for limit, name in store.limits.of(*about):
        room, opens_at_ms = store.limits.free(limit, name, now_ms)
        opens_in_ms = 0 if room > 0 else None if opens_at_ms is None else opens_at_ms - now_ms
        running = store.limits.running_now(name)
        answer.append(msgspec.structs.replace(limit, running=running, opens_in_ms=opens_in_ms))
    return answer


def _order(name: tuple[str, str | None]) -> tuple[str, str]:
    return name[0], name[1] or ""


def change_schedules(store: MemoryStore, changes: Sequence[ScheduleChange]) -> list[Schedule]:
    """Change schedules, all or none, then answer all."""
    now_ms = store.clock.now_ms()
    found = dict(store.schedules)
    for change in changes:
        if change.define is not None:
            defined = msgspec.structs.replace(change.define, name=change.name)
            found[change.name] = define_schedule(found.get(change.name), defined, now_ms)
        if change.removed:
            found.pop(change.name, None)
        elif change.paused is not None:
            if change.name not in found:
                raise NotFound(f"no schedule {change.name!r}; packhorse schedules list shows what there is")
            found[change.name] = pause_schedule(found[change.name], change.paused, now_ms)
    store.schedules = found
    return [found[name] for name in sorted(found)]
