"""What the feed knows of jobs that moved: looked up in few calls, remembered while the job lives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from ...admin_json import error_text
from ...job import TERMINAL, JobRecord, State
from ...shapes import instant_json
from .events import JobEvent

if TYPE_CHECKING:
    from ...backends.base import Backend, Change

#: Jobs that are remembered: about 2 MB of usual ones, 30 MB where all have the longest key and tags there are.
JOBS_MAX = 5_000

#: Characters of an error that are told; all of it is kept with the job.
ERROR_CHARS_MAX = 500

#: Jobs in one call of `get`, which brings their payloads and results along, and how many bytes it should bring.
_LOOKUP_MAX = 250
_LOOKUP_FIRST = 50
_LOOKUP_BYTES = 2 << 20


class Known(msgspec.Struct, kw_only=True):
    """What an event says of a job, as the store had it when it was asked."""

    type: str
    queue: str
    attempt: int
    state: State
    worker: str | None
    error: str | None
    workflow: str | None
    key: str | None
    tags: tuple[str, ...]


class KnownJobs:
    """The jobs that moved of late. At most `JOBS_MAX`, those that moved last; ended ones are forgotten."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Known] = OrderedDict()
        self._lookup = _LOOKUP_FIRST

    def __len__(self) -> int:
        return len(self._jobs)

    async def tell(self, backend: Backend, changes: Sequence[Change]) -> list[JobEvent]:
        """Answer an event for each change, in their order. Raises Unavailable; then nothing is forgotten."""
        fresh = await self._look_up(backend, self._unknown(changes))
        events = [self._event(change, fresh.get(change.id)) for change in changes]
        while len(self._jobs) > JOBS_MAX:
            self._jobs.popitem(last=False)
        return events

    def _unknown(self, changes: Iterable[Change]) -> list[str]:
        """Answer which jobs must be looked at: new ones, and those of which a move brought something to tell."""
        wanted: dict[str, None] = {}
        states: dict[str, State] = {}
        for change in changes:
            if change.state is None:
                continue
            known = self._jobs.get(change.id)
            before = states.get(change.id, None if known is None else known.state)
            states[change.id] = change.state
            if known is None or _brings_news(before, change.state):
                wanted[change.id] = None
        return list(wanted)

    async def _look_up(self, backend: Backend, ids: list[str]) -> dict[str, Known]:
        found: dict[str, Known] = {}
        start = 0
        while start < len(ids):
            part = ids[start : start + self._lookup]
            start += len(part)
            size = 0
            for record in await backend.get(part):
                if record is not None:
                    size += _size(record)
                    found[record.id] = _known(record)  # the record itself may be large: it is let go at once
            self._lookup = max(1, min(_LOOKUP_MAX, 2 * self._lookup, len(part) * _LOOKUP_BYTES // max(size, 1)))
        return found

    def _event(self, change: Change, fresh: Known | None) -> JobEvent:
        known = self._jobs.get(change.id)
        previous: State | UnsetType = known.state if known is not None else UNSET
        known = fresh or known
        at = _instant(change.at_ms)
        if change.state is None or change.state in TERMINAL:
            self._jobs.pop(change.id, None)
        elif known is not None:
            known.state = change.state
            self._jobs[change.id] = known
            self._jobs.move_to_end(change.id)
        if known is None:
            return JobEvent(id=change.id, state=change.state, at=at, previous=previous)
        failed = _tells_error(previous, change.state)
        return JobEvent(
            id=change.id,
            state=change.state,
            at=at,
            type=known.type,
            queue=known.queue,
            previous=previous,
            attempt=known.attempt,
            worker=_given(known.worker) if change.state is State.RUNNING else UNSET,
            error=_given(known.error) if failed else UNSET,
            workflow=_given(known.workflow),
            key=_given(known.key),
            tags=known.tags or UNSET,
        )


def _brings_news(before: State | None, state: State) -> bool:
    """Tell whether a move of a known job brings a worker, an attempt or an error."""
    return state in {State.RUNNING, State.FAILED, State.CANCELLED} or (
        before is State.RUNNING and state in {State.PENDING, State.SCHEDULED}
    )


def _tells_error(previous: State | UnsetType, state: State | None) -> bool:
    return state in {State.FAILED, State.CANCELLED} or (
        previous is State.RUNNING and state in {State.PENDING, State.SCHEDULED}
    )


def _size(record: JobRecord) -> int:
    texts = sum(len(error.message) + len(error.traceback) for error in record.errors)
    steps = sum(map(len, (record.steps or {}).values()))
    return len(record.payload) + len(record.result or b"") + steps + texts


def _known(record: JobRecord) -> Known:
    last = record.errors[-1] if record.errors else None
    error = None if last is None else error_text(last)
    if error is not None and len(error) > ERROR_CHARS_MAX:
        error = error[:ERROR_CHARS_MAX] + "…"
    return Known(
        type=record.type,
        queue=record.queue,
        attempt=record.attempt,
        state=record.state,
        worker=record.worker,
        error=error,
        workflow=record.workflow,
        key=record.key,
        tags=record.tags,
    )


@lru_cache(256)
def _instant(instant_ms: int) -> str:
    return instant_json(instant_ms) or ""


def _given(text: str | None) -> str | UnsetType:
    return UNSET if text is None else text
