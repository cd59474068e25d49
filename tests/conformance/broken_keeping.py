"""Backends that break one rule of keeping time, looking and steering."""

from __future__ import annotations

import msgspec

from packhorse.backends.base import Page, Pulse, Steered
from packhorse.backends.memory import MemoryBackend
from packhorse.job import State

from .broken_on_the_way import broken

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
