"""Backends that break one rule of the way of a job: enqueue, claim, settle, unique keys."""

from __future__ import annotations

import msgspec

from packhorse.backends.base import Enqueued, Verdict
from packhorse.backends.memory import MemoryBackend
from packhorse.job import TERMINAL, State

BROKEN: list[type[MemoryBackend]] = []


def broken(variant: type[MemoryBackend]) -> type[MemoryBackend]:
    """Add a variant that the suite must catch."""
    BROKEN.append(variant)
    return variant


# ---- enqueue ---------------------------------------------------------------------------------------------


@broken
class AcknowledgesBeforeCommit(MemoryBackend):
    """An enqueue that answers and then loses the last job of the call."""

    async def enqueue(self, specs):
        answers = await super().enqueue(specs[:-1])
        return answers + [Enqueued(spec.id, True) for spec in specs[-1:]]


@broken
class StoresHalfOfARefusedCall(MemoryBackend):
    """An enqueue that is not all or nothing."""

    async def enqueue(self, specs):
        answers = []
        for spec in specs:
            answers += await super().enqueue([spec])
        return answers


@broken
class OverwritesARepeatedId(MemoryBackend):
    async def enqueue(self, specs):
        answers = await super().enqueue(specs)
        for spec, answer in zip(specs, answers, strict=True):
            if not answer.created and answer.id == spec.id:
                self.store.jobs[spec.id].payload = spec.payload
        return answers


@broken
class IgnoresDelays(MemoryBackend):
    async def enqueue(self, specs):
        return await super().enqueue([msgspec.structs.replace(spec, delay_ms=0) for spec in specs])


@broken
class TakesAnyBatch(MemoryBackend):
    async def enqueue(self, specs):
        answers = []
        for start in range(0, len(specs), 1_000):
            answers += await super().enqueue(specs[start : start + 1_000])
        return answers


# ---- claim -----------------------------------------------------------------------------------------------


@broken
class ClaimsWithoutTaking(MemoryBackend):
    """Hands one job to two claimers: looks first, takes later."""

    last: list = []  # noqa: RUF012  # shared by all connections on purpose

    async def claim(self, queues, limit, lease_ms, worker):
        claimed = await super().claim(queues, limit, lease_ms, worker)
        if not claimed and self.last and limit and self.store.jobs.get(self.last[0].id) is not None:
            job = self.store.jobs[self.last[0].id]
            if job.state is State.RUNNING and self.last[0].queue in queues:
                return self.last[:1]
        self.last[:] = claimed
        return claimed


@broken
class ReusesTokens(MemoryBackend):
    """The token is the number of the attempt, which a refund gives back."""

    async def claim(self, queues, limit, lease_ms, worker):
        claimed = await super().claim(queues, limit, lease_ms, worker)
        for job in claimed:
            self.store.jobs[job.id].token = str(job.attempt)
        return [msgspec.structs.replace(job, token=str(job.attempt)) for job in claimed]


@broken
class CountsTokensFromOneAfterReopening(MemoryBackend):
    async def open(self):
        self.store.tokens = iter(range(1, 10**9))


@broken
class IgnoresPause(MemoryBackend):
    async def claim(self, *args):
        settings, self.store.settings = self.store.settings, {}
        try:
            return await super().claim(*args)
        finally:
            self.store.settings = settings


@broken
class IgnoresTheLimit(MemoryBackend):
    async def claim(self, queues, limit, lease_ms, worker):
        return await super().claim(queues, limit + 1 if limit else 0, lease_ms, worker)


@broken
class IgnoresPriorities(MemoryBackend):
    async def enqueue(self, specs):
        answers = await super().enqueue([msgspec.structs.replace(spec, priority=5) for spec in specs])
        for spec in specs:
            if spec.id in self.store.jobs:
                self.store.jobs[spec.id].priority = spec.priority
        return answers


@broken
class ClaimDoesNotRenew(MemoryBackend):
    async def claim(self, queues, limit, lease_ms, worker):
        old = self.store.workers.get(worker)
        claimed = await super().claim(queues, limit, lease_ms, worker)
        if old is not None:
            self.store.workers[worker] = old
        return claimed


# ---- settle ----------------------------------------------------------------------------------------------


@broken
class SettlesWithoutTheToken(MemoryBackend):
    async def settle(self, settlements):
        jobs = self.store.jobs
        return await super().settle(
            [
                msgspec.structs.replace(each, token=jobs[each.id].token or "") if each.id in jobs else each
                for each in settlements
            ]
        )


@broken
class SettlesEndedJobs(MemoryBackend):
    """Checks the token but not the state: the second settlement of a token overwrites the first."""

    async def settle(self, settlements):
        verdicts = await super().settle(settlements)
        for number, each in enumerate(settlements):
            job = self.store.jobs.get(each.id)
            if verdicts[number] is Verdict.APPLIED:
                _last_token[each.id] = each.token
            elif job is not None and job.state in TERMINAL and _last_token.get(each.id) == each.token:
                job.result = each.result
                verdicts[number] = Verdict.APPLIED
        return verdicts


_last_token: dict[str, str] = {}


@broken
class StoresFollowUpsOfStaleSettlements(MemoryBackend):
    async def settle(self, settlements):
        verdicts = await super().settle(settlements)
        for each, verdict in zip(settlements, verdicts, strict=True):
            if verdict is Verdict.STALE:
                await self.enqueue(each.follow_ups)
        return verdicts


@broken
class ForgetsFollowUps(MemoryBackend):
    async def settle(self, settlements):
        return await super().settle([msgspec.structs.replace(each, follow_ups=()) for each in settlements])


@broken
class ChargesReleases(MemoryBackend):
    async def settle(self, settlements):
        return await super().settle([msgspec.structs.replace(each, refund=False) for each in settlements])


@broken
class RetriesWhatWasAskedToStop(MemoryBackend):
    def _apply(self, job, settlement, now_ms, topics):
        job.cancel_requested = False
        super()._apply(job, settlement, now_ms, topics)


@broken
class DropsErrors(MemoryBackend):
    def _apply(self, job, settlement, now_ms, topics):
        super()._apply(job, msgspec.structs.replace(settlement, error=None), now_ms, topics)


@broken
class KeepsEveryError(MemoryBackend):
    def _apply(self, job, settlement, now_ms, topics):
        errors = job.errors
        super()._apply(job, settlement, now_ms, topics)
        if settlement.error is not None:
            job.errors = (*errors, settlement.error)


@broken
class RestartsTheParking(MemoryBackend):
    def _apply(self, job, settlement, now_ms, topics):
        job.parked_at_ms = None
        super()._apply(job, settlement, now_ms, topics)


# ---- unique keys -----------------------------------------------------------------------------------------


@broken
class NeverFreesAKey(MemoryBackend):
    async def settle(self, settlements):
        held = dict(self.store.unique)
        verdicts = await super().settle(settlements)
        self.store.unique.update(held)
        return verdicts


@broken
class FreesAKeyTooEarly(MemoryBackend):
    """The key is free as soon as the job runs."""

    async def claim(self, *args):
        claimed = await super().claim(*args)
        for job in claimed:
            if self.store.jobs[job.id].unique is not None:
                self.store.free_unique(self.store.jobs[job.id])
        return claimed


@broken
class FreesTheKeyOfAnother(MemoryBackend):
    """Deleting an ended job frees its key though another job holds it by now."""

    async def delete(self, ids):
        for job_id in ids:
            job = self.store.jobs.get(job_id)
            if job is not None and job.unique is not None:
                self.store.unique.pop((job.queue, job.unique), None)
        return await super().delete(ids)


@broken
class RerunsWithoutTheKey(MemoryBackend):
    def _rerun_one(self, request, now_ms, topics):
        job = self.store.jobs.get(request.id)
        unique = job.unique if job is not None else None
        if job is not None:
            job.unique = None
        answer = super()._rerun_one(request, now_ms, topics)
        if job is not None:
            job.unique = unique
        return answer
