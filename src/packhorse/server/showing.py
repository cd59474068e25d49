"""The store as it is shown to who may not steer it: with what looks secret hidden (FAILURES C20)."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ..backends.base import Backend, Page, Query, Schedule, ScheduleChange
from ..backends.passing import PassingBackend
from ..job import JobRecord
from ..redaction import redacted_json, redacted_record


class RedactedBackend(PassingBackend):
    """Answers jobs and schedules without their secrets. What runs jobs, or compares them, needs the store itself."""

    def __init__(self, inner: Backend, words: tuple[str, ...]) -> None:
        super().__init__(inner)
        self._words = words

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        found = await self._inner.get(ids)
        return [None if record is None else redacted_record(record, self._words) for record in found]

    async def find(self, query: Query) -> Page:
        page = await self._inner.find(query)
        return Page([redacted_record(record, self._words) for record in page.jobs], page.next)

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        return [self._schedule(schedule) for schedule in await self._inner.schedules(changes)]

    def _schedule(self, schedule: Schedule) -> Schedule:
        payload = redacted_json(schedule.spec.payload, self._words)
        if payload == schedule.spec.payload:
            return schedule
        return replace(schedule, spec=replace(schedule.spec, payload=payload))
