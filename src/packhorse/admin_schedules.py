"""The operator's verbs on schedules, as `Admin.schedules`, and the one JSON shape of a schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .backends.base import Backend, Enqueued, Schedule
from .chance import CHANCE
from .clock import Clock
from .errors import InvalidOption
from .recurring import define, look, run_now, steer
from .schedule import next_slot_ms
from .shapes import instant_json, value_json


class AdminSchedules:
    """What an operator can see and do about schedules."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock

    async def list(self) -> list[Schedule]:
        """Answer all schedules, by name."""
        return await self._backend.schedules()

    async def show(self, name: str) -> Schedule:
        """Answer one schedule. Raises NotFound."""
        return await look(self._backend, name)

    async def define(self, definition: Schedule) -> str:
        """Make or change a schedule; answers `added`, `changed` or `unchanged`.

        Raises InvalidOption for one that belongs to an app's code: that changes it back when a worker starts.
        """
        return await define(self._backend, definition)

    async def pause(self, names: Iterable[str]) -> None:
        """Make no more jobs of slots. All or none: raises NotFound. Repeating is harmless."""
        await steer(self._backend, names, paused=True)

    async def resume(self, names: Iterable[str]) -> None:
        """Go on with the slots from now on; those of the pause are left out."""
        await steer(self._backend, names, paused=False)

    async def remove(self, names: Iterable[str]) -> None:
        """Remove schedules; their jobs stay. One of an app's code comes back when a worker of the app starts."""
        await steer(self._backend, names, removed=True)

    async def run(self, name: str) -> Enqueued:
        """Enqueue one job of a schedule now; its slots are as before.

        With overlap='skip' and a live job of it, nothing is added: answers that job, `created=False`. Raises NotFound.
        """
        return await run_now(self._backend, name, CHANCE.id(self._clock.now_ms()))


def next_of(schedule: Schedule) -> int | None:
    """Answer the next slot, ms; None for a paused schedule. In the past: no worker has dealt with it yet.

    Raises InvalidOption where this machine cannot read the definition.
    """
    return None if schedule.paused else next_slot_ms(schedule, schedule.done_ms)


def schedule_json(schedule: Schedule) -> dict[str, Any]:
    """Answer the JSON of a schedule. `next` is null while it is paused; slots up to `done_until` are dealt with."""
    try:
        next_ms = next_of(schedule)
    except InvalidOption:  # a zone that this machine does not know must not keep the others from being shown
        next_ms = schedule.next_ms
    spec = schedule.spec
    return {
        "name": schedule.name,
        "type": spec.type,
        "payload": value_json(spec.payload),
        "queue": spec.queue,
        "priority": spec.priority,
        "max_attempts": spec.max_attempts,
        "timeout_ms": spec.timeout_ms,
        "key": spec.key,
        "tags": list(spec.tags),
        "cron": schedule.cron,
        "every_ms": schedule.every_ms,
        "tz": schedule.tz,
        "missed": schedule.missed,
        "overlap": schedule.overlap,
        "jitter_ms": schedule.jitter_ms,
        "source": schedule.source,
        "paused": schedule.paused,
        "next": instant_json(next_ms),
        "done_until": instant_json(schedule.done_ms),
    }
