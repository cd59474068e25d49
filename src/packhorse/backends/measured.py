"""A backend that counts what passes through it: the one place where calls and moves of jobs are measured.

It changes nothing and answers what `inner` answers. What it counts is what the store said: a job counts when it was
created. Jobs are told apart by queue and type within bounds (`observe.labels`). Ends of runs are counted by those who
decided them, those that a lapse made by whose call made it (`observe.ends`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..clock import Clock
from ..job import Claimed, JobRecord, JobSpec
from ..observe import metrics
from ..observe.ends import count_lapses
from ..observe.labels import OTHER, UNKNOWN
from ..observe.meters import Meters, Number
from ..outcome import NOT_COMMITTED
from .base import (
    Backend,
    Bound,
    Enqueued,
    Firing,
    Keep,
    Lapse,
    Note,
    Pulse,
    Settlement,
    Steered,
    Ticked,
    Verdict,
    WorkerInfo,
)
from .timed import TimedBackend


class MeasuredBackend(TimedBackend):
    """Does what `inner` does, opens and closes it, and counts. For one event loop, but for what `bind` answers."""

    def __init__(self, inner: Backend, meters: Meters, clock: Clock) -> None:
        super().__init__(inner, meters.sheet(), meters.writing, clock)
        self._meters = meters
        self._enqueued: dict[tuple[str, str], Number] = {}
        self._rates_told: dict[str, int] = {}

    def calls_only(self) -> TimedBackend:
        """Answer the same store for somebody who counts his jobs himself: only calls are timed."""
        return TimedBackend(self._inner, self.sheet, self._writing, self._clock)

    # ---- connection ------------------------------------------------------------------------------------

    async def open(self) -> None:
        await self._timed("open", self._inner.open())

    async def close(self) -> None:
        await self._inner.close()
        self._meters.fold(self.sheet)

    def bind(self, connection: object) -> Bound:
        return MeasuredBound(self._inner.bind(connection), self._meters)

    # ---- the way of a job ------------------------------------------------------------------------------

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        answers = await super().enqueue(specs)
        for spec, answer in zip(specs, answers, strict=True):
            if answer.created:
                self._count_enqueued(spec)
        return answers

    def _count_enqueued(self, spec: JobSpec) -> None:
        cell = self._enqueued.get((spec.queue, spec.type))
        if cell is None:
            cell = self.sheet.number(metrics.ENQUEUED, spec.queue, spec.type)
            if self.sheet.bounds.tells_apart(spec.queue, spec.type):
                self._enqueued[spec.queue, spec.type] = cell
        cell.value += 1

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        jobs = await super().claim(queues, limit, lease_ms, worker)
        if jobs:
            self._note_claimed(jobs)
        if self.rate_limited:
            self._count_rates()
        return jobs

    def _count_rates(self) -> None:
        """Count what claims found shut by a rate since this was last asked."""
        for job_type, count in list(self.rate_limited.items()):
            told = self._rates_told.get(job_type, 0)
            if count > told:
                self.sheet.number(metrics.RATE_LIMITED, job_type).value += count - told
                self._rates_told[job_type] = count

    def _note_claimed(self, jobs: Sequence[Claimed]) -> None:
        """Count how long jobs waited since they were ready. Jobs of one claim are mostly of one queue and type."""
        now_ms = self._clock.now_ms()
        kinds = {job.type for job in jobs}, {job.queue for job in jobs}
        if len(kinds[0]) == len(kinds[1]) == 1:
            self._count_waits(jobs[0].queue, jobs[0].type, [job.ready_at_ms for job in jobs], now_ms)
            return
        ready: dict[tuple[str, str], list[int]] = {}
        for job in jobs:
            ready.setdefault((job.queue, job.type), []).append(job.ready_at_ms)
        for (queue, job_type), instants in ready.items():
            self._count_waits(queue, job_type, instants, now_ms)

    def _count_waits(self, queue: str, job_type: str, ready_at_ms: list[int], now_ms: int) -> None:
        """Count waits of one kind of job; the store's instants, by our clock: one that is behind shows no wait."""
        times = self.sheet.histogram(metrics.QUEUE_SECONDS, queue, job_type)
        ready_at_ms.sort()  # they come nearly so, which makes it cheaper than to look for the first and the last
        first, last = ready_at_ms[0], ready_at_ms[-1]
        if last <= now_ms and (place := times.place((now_ms - first) * 1_000_000)) == times.place(
            (now_ms - last) * 1_000_000
        ):  # all in one bucket, as mostly
            times.counts[place] += len(ready_at_ms)
            times.sum_ns += (now_ms * len(ready_at_ms) - sum(ready_at_ms)) * 1_000_000
        else:
            times.observe_all([max(0, now_ms - at_ms) * 1_000_000 for at_ms in ready_at_ms])

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        verdicts = await super().settle(settlements)
        if verdicts.count(Verdict.APPLIED) != len(verdicts):
            self.sheet.number(metrics.REFUSED).value += _refused(settlements, verdicts)
        if [settlement.follow_ups for settlement in settlements].count(()) != len(settlements):
            for settlement, verdict in zip(settlements, verdicts, strict=True):
                for spec in settlement.follow_ups if verdict is Verdict.APPLIED else ():
                    self._count_enqueued(spec)
        return verdicts

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        self.sheet.bounds.hear(worker.id, worker.types, worker.queues)
        return await super().heartbeat(worker, lease_ms, notes)

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        lapses = await super().retire(worker, reason)
        count_lapses(self.sheet, lapses)
        return lapses

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        ticked = await super().tick(limit, keep)
        count_lapses(self.sheet, ticked.lapses)
        return ticked

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        verdicts = await super().fire(firings)
        for firing, verdict in zip(firings, verdicts, strict=True):
            if verdict is Verdict.APPLIED:
                self.sheet.number(metrics.SLOTS_FIRED).value += len(firing.specs)
                for spec in firing.specs:
                    self._count_enqueued(spec)
        return verdicts

    # ---- steer -----------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        """Cancel jobs. Those that were not running count here; of which queue and type the store does not say."""
        answers = await super().cancel(ids)
        done = answers.count(Steered.DONE)
        if done:
            self.sheet.number(metrics.CANCELLED, OTHER, UNKNOWN).value += done
        return answers


def _refused(settlements: Sequence[Settlement], verdicts: Sequence[Verdict]) -> int:
    """Count the ends that came too late. Not those that look after a `settle_in`: STALE is what they hope for."""
    return sum(
        verdict is Verdict.STALE and (settlement.error is None or settlement.error.kind != NOT_COMMITTED.error_kind)
        for settlement, verdict in zip(settlements, verdicts, strict=True)
    )


class MeasuredBound(Bound):
    """Moves inside of the caller's transaction, counted when they are made: nobody tells us of a rollback."""

    def __init__(self, inner: Bound, meters: Meters) -> None:
        self._inner = inner
        self._meters = meters
        self.blocking = inner.blocking
        self.capabilities = inner.capabilities

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        answers = await self._inner.enqueue(specs)
        self._count(spec for spec, answer in zip(specs, answers, strict=True) if answer.created)
        return answers

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        verdicts = await self._inner.settle(settlements)
        for settlement, verdict in zip(settlements, verdicts, strict=True):
            if verdict is Verdict.APPLIED:
                self._count(settlement.follow_ups)
        return verdicts

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        return await self._inner.get(ids)

    def _count(self, specs: Iterable[JobSpec]) -> None:
        for (queue, job_type), count in Counter((spec.queue, spec.type) for spec in specs).items():
            self._meters.count(metrics.ENQUEUED, queue, job_type, by=count)
