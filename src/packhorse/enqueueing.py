"""From specs to stored jobs: in batches, waiting where a queue is full, one job for each idempotency key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from . import codec
from .backends.base import BATCH_MAX, Backend, Bound, Enqueued
from .chance import Chance, is_named_id
from .errors import IdempotencyConflict, QueueFull
from .job import Claimed, JobRecord, JobSpec
from .observe.current import CURRENT_JOB

if TYPE_CHECKING:
    from .observe.spans import Tracing

#: Between two looks whether a full queue has room. A random part of it, so that many producers do not come at once.
_PAUSE_MS_MIN = 10
_PAUSE_MS_MAX = 250

#: Bytes of payloads in one move, about: what travels to a server has an end. Jobs that belong together are one move
#: all the same.
MOVE_BYTES = 8 << 20

Hook = Callable[[], Awaitable[None]]


def follow(job: Claimed, specs: Sequence[JobSpec]) -> Sequence[JobSpec]:
    """Answer jobs that a run of `job` enqueues, in the trace that this one carries: where no spans are made."""
    if not job.meta:
        return specs
    from .observe.trace_context import passed_on

    return passed_on(specs, job.meta)


class Store:
    """Stores jobs for one caller. `full_timeout_ms` is how long there may be no room at all; 0 refuses at once.

    With `together`, no batch of 1,000 is stored in pieces: a workflow is there or not.
    """

    def __init__(
        self,
        backend: Backend | Bound,
        chance: Chance,
        full_timeout_ms: int,
        on_stored: Hook | None = None,
        *,
        together: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        self._backend = backend
        self._chance = chance
        self._full_timeout_ms = full_timeout_ms
        self._on_stored = on_stored
        self._together = together
        self._tracing = tracing

    async def __call__(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        """Store jobs and answer in their order, at most 1,000 in one move, and about 8 MiB of payloads.

        Where a queue is full, waits for room, and what does not fit at once is stored in pieces: each whole or not at
        all, those with parents in the same call together. Raises QueueFull, whose `stored` says how many jobs from the
        front were stored, and IdempotencyConflict. Cancelling it stops the wait; pieces that were stored stay.
        """
        if self._tracing is not None:
            with self._tracing.sending(specs) as sent:
                return await self._store(sent)
        job = CURRENT_JOB.get()
        return await self._store(specs if job is None else follow(job, specs))

    async def _store(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        if len(specs) > 1:  # of one job alone nothing is stored before the answer tells
            await self._check_named(specs)
        answers: list[Enqueued] = []
        for batch in self._batches(specs):
            try:
                await self._store_batch(batch, answers)
            except QueueFull as full:
                full.stored = len(answers)
                raise
        return answers

    def _batches(self, specs: Sequence[JobSpec]) -> Iterator[Sequence[JobSpec]]:
        for start in range(0, len(specs), BATCH_MAX):
            batch = specs[start : start + BATCH_MAX]
            if self._together or sum(len(spec.payload) for spec in batch) <= MOVE_BYTES or _belong_together(batch):
                yield batch
                continue
            first = size = 0
            for place, spec in enumerate(batch):
                if place > first and size + len(spec.payload) > MOVE_BYTES:
                    yield batch[first:place]
                    first, size = place, 0
                size += len(spec.payload)
            yield batch[first:]

    async def _store_batch(self, batch: Sequence[JobSpec], answers: list[Enqueued]) -> None:
        wait: _Wait | None = None
        done, size = 0, len(batch)
        while done < len(batch):
            piece = batch[done : done + size]
            try:
                stored = await self._backend.enqueue(piece)
            except QueueFull as full:
                wait = wait or _Wait(self._full_timeout_ms, self._chance)
                together = self._together or self._full_timeout_ms == 0 or _belong_together(batch)
                if not together and len(piece) > 1:
                    size = len(piece) // 2
                elif _room_wanted(piece, full.queue) > full.capacity or not await wait.pause():
                    raise
                continue
            if not all(answer.created for answer in stored):
                await self._check_same(piece, stored)
            answers += stored
            done += len(piece)
            size *= 2
            wait = None
            if self._on_stored is not None:
                await self._on_stored()

    # ---- idempotency keys ------------------------------------------------------------------------------

    async def _check_named(self, specs: Sequence[JobSpec]) -> None:
        """Refuse a call of several jobs, before any is stored, for one whose idempotency key belongs to another."""
        named: dict[str, JobSpec] = {}
        for spec in specs:
            if is_named_id(spec.id) and not _is_same(spec, named.setdefault(spec.id, spec)):
                raise IdempotencyConflict(spec.id)
        ids = list(named)
        for start in range(0, len(ids), BATCH_MAX):
            batch = ids[start : start + BATCH_MAX]
            for job_id, record in zip(batch, await self._backend.get(batch), strict=True):
                if record is not None and not _is_same(named[job_id], record):
                    raise IdempotencyConflict(job_id)

    async def _check_same(self, specs: Sequence[JobSpec], answers: Sequence[Enqueued]) -> None:
        """Refuse an answer that is a job of the same idempotency key but another type or payload."""
        there = {
            spec.id: spec
            for spec, answer in zip(specs, answers, strict=True)
            if not answer.created and answer.id == spec.id and is_named_id(spec.id)
        }
        if not there:
            return
        for record in await self._backend.get(list(there)):
            if record is not None and not _is_same(there[record.id], record):
                raise IdempotencyConflict(record.id)


class _Wait:
    """The wait for room: jittered pauses that grow, up to a time-out. By the loop's own time, as its timers are."""

    def __init__(self, timeout_ms: int, chance: Chance) -> None:
        self._timeout_ms = timeout_ms
        self._chance = chance
        self._end_s: float | None = None
        self._pause_ms = _PAUSE_MS_MIN

    async def pause(self) -> bool:
        """Sleep a little; False, without a sleep, once the time is over."""
        if not self._timeout_ms:  # also where there is no event loop: in a transaction of blocking code
            return False
        now_s = asyncio.get_running_loop().time()
        if self._end_s is None:
            self._end_s = now_s + self._timeout_ms / 1000
        left_s = self._end_s - now_s
        if left_s <= 0:
            return False
        await asyncio.sleep(min(left_s, self._chance.uniform(self._pause_ms / 2, self._pause_ms) / 1000))
        self._pause_ms = min(self._pause_ms * 2, _PAUSE_MS_MAX)
        return True


def _room_wanted(piece: Sequence[JobSpec], queue: str) -> int:
    """Answer how many of these count against the capacity of a queue: delayed ones and those with parents do not."""
    return sum(spec.queue == queue and spec.delay_ms <= 0 and not spec.after for spec in piece)


def _belong_together(batch: Sequence[JobSpec]) -> bool:
    """Tell whether some job waits for another of the same call: then they must be stored in one move."""
    if not any(spec.after for spec in batch):
        return False
    ids = {spec.id for spec in batch}
    return any(not ids.isdisjoint(spec.after) for spec in batch)


def _is_same(spec: JobSpec, other: JobSpec | JobRecord) -> bool:
    if spec.type != other.type:
        return False
    return spec.payload == other.payload or codec.decode(spec.payload) == codec.decode(other.payload)
