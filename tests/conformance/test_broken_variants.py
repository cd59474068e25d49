"""Tests of the tests: a backend that breaks one rule is caught by the suite, the unbroken one passes all.

Each class breaks exactly one rule of the contract in the way a real backend could.
"""

from __future__ import annotations

import msgspec
import pytest

from packhorse.backends.base import Enqueued, Page, Pulse, Steered, Verdict, add_error
from packhorse.backends.memory import MemoryBackend
from packhorse.job import TERMINAL, JobError, State
from packhorse.testing.conformance import check
from packhorse.testing.conformance.stores import MemoryHarness

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


# ---- leases ----------------------------------------------------------------------------------------------


@broken
class LapsesWhoeverWasLateOnce(MemoryBackend):
    """A tick that acts on the lease it read earlier: a worker that renewed meanwhile loses its jobs."""

    async def heartbeat(self, worker, lease_ms, notes=()):
        old = self.store.workers.get(worker.id)
        pulse = await super().heartbeat(worker, lease_ms, notes)
        if old is not None and old[1] <= self.store.clock.now_ms():
            self.store.workers[worker.id] = (worker, old[1])
        return pulse


@broken
class LapsesForEver(MemoryBackend):
    """A lapse that ignores max_attempts."""

    async def tick(self, limit, keep):
        kept = {job.id: job.max_attempts for job in self.store.jobs.values()}
        for job in self.store.jobs.values():
            job.max_attempts = 10**6
        ticked = await super().tick(limit, keep)
        for job in self.store.jobs.values():
            job.max_attempts = kept[job.id]
        return ticked


@broken
class NeedsTheRowOfTheWorker(MemoryBackend):
    """A tick that starts from the workers it knows (FAILURES B18)."""

    async def tick(self, limit, keep):
        hidden = {worker: ids for worker, ids in self.store.held.items() if worker not in self.store.workers}
        for worker in hidden:
            del self.store.held[worker]
        ticked = await super().tick(limit, keep)
        self.store.held.update(hidden)
        return ticked


@broken
class TicksOnlyTheFirstFew(MemoryBackend):
    """A tick that looks at the oldest running jobs only (FAILURES B25)."""

    async def tick(self, limit, keep):
        running = [job for job in self.store.jobs.values() if job.state is State.RUNNING]
        hidden = {job.id for job in running[limit:]}
        kept = {worker: set(ids) for worker, ids in self.store.held.items()}
        for held in self.store.held.values():
            held.difference_update(hidden)
        ticked = await super().tick(limit, keep)
        for worker, ids in kept.items():
            self.store.held.setdefault(worker, set()).update(ids & hidden)
        return ticked


@broken
class LapsesWithoutAWord(MemoryBackend):
    async def tick(self, limit, keep):
        errors = {job.id: job.errors for job in self.store.jobs.values()}
        ticked = await super().tick(limit, keep)
        for job in self.store.jobs.values():
            job.errors = errors[job.id]
        return ticked


@broken
class TicksWithoutALimit(MemoryBackend):
    async def tick(self, limit, keep):
        return await super().tick(limit * 10, keep)


@broken
class HeldSaysEverything(MemoryBackend):
    async def heartbeat(self, worker, lease_ms, notes=()):
        pulse = await super().heartbeat(worker, lease_ms, notes)
        running = {job.id: job.token for job in self.store.jobs.values() if job.state is State.RUNNING}
        return Pulse(held=running, cancel=pulse.cancel)


@broken
class NotesWithoutTheToken(MemoryBackend):
    async def heartbeat(self, worker, lease_ms, notes=()):
        for note in notes:
            if note.id in self.store.jobs:
                self.store.jobs[note.id].progress = note.progress
        return await super().heartbeat(worker, lease_ms, notes)


@broken
class RetiresButKeepsTheLease(MemoryBackend):
    async def retire(self, worker, reason):
        known = self.store.workers.get(worker)
        lost = await super().retire(worker, reason)
        if known is not None:
            self.store.workers[worker] = known
        return lost


@broken
class DropsByCreation(MemoryBackend):
    """Retention from the creation of a job instead of its end."""

    async def settle(self, settlements):
        verdicts = await super().settle(settlements)
        for state, ended in self.store.ended.items():
            for place, (_, job_id) in enumerate(ended):
                if (job := self.store.jobs.get(job_id)) is not None and job.state is state:
                    job.finished_at_ms = job.created_at_ms
                    ended[place] = (job.created_at_ms, job_id)
        return verdicts


@broken
class DropsRerunJobs(MemoryBackend):
    """Retention that does not look again whether the job is still ended."""

    def _drop_old(self, limit, keep, now_ms):
        before = dict(self.store.jobs)
        old = [job_id for ended in self.store.ended.values() for at_ms, job_id in ended if at_ms + 4_000 <= now_ms]
        dropped = super()._drop_old(limit, keep, now_ms)
        for job_id in old if keep.failed_ms == 4_000 else ():
            if job_id in before:
                self.store.jobs.pop(job_id, None)
        return dropped


# ---- look and steer --------------------------------------------------------------------------------------


@broken
class SaysDoneOfARunningJob(MemoryBackend):
    async def cancel(self, ids):
        answers = await super().cancel(ids)
        return [Steered.DONE if answer is Steered.REQUESTED else answer for answer in answers]


@broken
class EndsRunningJobsByCancel(MemoryBackend):
    async def cancel(self, ids):
        answers = await super().cancel(ids)
        for job_id, answer in zip(ids, answers, strict=True):
            if answer is Steered.REQUESTED:
                job = self.store.jobs[job_id]
                self.store.let_go(job)
                self.store.end(job, State.CANCELLED, 0)
        return answers


@broken
class DeletesRunningJobs(MemoryBackend):
    async def delete(self, ids):
        for job_id in ids:
            job = self.store.jobs.get(job_id)
            if job is not None and job.state is State.RUNNING:
                self.store.let_go(job)
                self.store.end(job, State.CANCELLED, 0)
        return await super().delete(ids)


@broken
class RerunsLiveJobs(MemoryBackend):
    def _rerun_one(self, request, now_ms, topics):
        job = self.store.jobs.get(request.id)
        if job is not None and job.state is State.SCHEDULED:
            self.store.end(job, State.CANCELLED, now_ms)
        return super()._rerun_one(request, now_ms, topics)


@broken
class RerunKeepsTheAttempts(MemoryBackend):
    def _rerun_one(self, request, now_ms, topics):
        job = self.store.jobs.get(request.id)
        attempt = job.attempt if job is not None else 0
        answer = super()._rerun_one(request, now_ms, topics)
        if answer is Steered.DONE:
            job.attempt = attempt
        return answer


@broken
class FindRepeats(MemoryBackend):
    """A cursor that includes the job it stands on."""

    async def find(self, query):
        if query.cursor is not None and query.cursor.isdigit() and len(query.cursor) < 18:
            step = -1 if query.oldest_first else 1
            query = msgspec.structs.replace(query, cursor=str(max(0, int(query.cursor) + step)))
        return await super().find(query)


@broken
class FindPagesByOffset(MemoryBackend):
    """A cursor that is an offset: it repeats and misses jobs as others come and go."""

    async def find(self, query):
        offset = int(query.cursor) if query.cursor is not None and query.cursor.isdigit() and query.cursor < "9" else 0
        whole = await super().find(msgspec.structs.replace(query, cursor=None if offset else query.cursor, limit=1_000))
        page = whole.jobs[offset : offset + query.limit]
        return Page(page, str(offset + query.limit) if len(whole.jobs) > offset + query.limit else None)


@broken
class CountsGhosts(MemoryBackend):
    """Counts kept beside the jobs, not told of deletes."""

    async def delete(self, ids):
        answers = await super().delete(ids)
        self._ghosts = getattr(self, "_ghosts", 0) + answers.count(Steered.DONE)
        return answers

    async def counts(self):
        counts = await super().counts()
        for each in counts.values():
            each.states[State.PENDING] = each.states.get(State.PENDING, 0) + getattr(self, "_ghosts", 0)
        return counts


@broken
class NeverRings(MemoryBackend):
    def watch(self, topics):
        return super().watch(["nothing"])


@broken
class IgnoresWhatItCannot(MemoryBackend):
    """Takes a spec with dependencies and runs it at once: a feature silently ignored."""

    async def enqueue(self, specs):
        return await super().enqueue([msgspec.structs.replace(spec, after=()) for spec in specs])


# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", BROKEN, ids=lambda variant: variant.__name__)
def test_the_suite_catches(variant: type[MemoryBackend]) -> None:
    def make_harness() -> MemoryHarness:
        harness = MemoryHarness(variant)
        harness.ring_ms = 100
        return harness

    report = check(make_harness, stop=True)
    assert report.failed, f"no case noticed: {variant.__doc__}"


def test_the_suite_passes_the_unbroken() -> None:
    report = check(MemoryHarness)
    assert report.ok, str(report)


def test_the_helper_of_the_contract_keeps_the_first_and_latest_errors() -> None:
    errors: tuple[JobError, ...] = ()
    for attempt in range(1, 61):
        errors = add_error(errors, JobError(attempt=attempt, at_ms=0, kind="", message=""))
    assert [error.attempt for error in errors] == [1, *range(12, 61)]
