"""The verbs of the memory backend that steer single jobs: cancel, rerun, delete."""

from __future__ import annotations

from collections.abc import Sequence

from ..job import LIVE, TERMINAL, State
from .base import DUE_TOPIC, Backend, Rerun, Steered, check_batch, job_topic, queue_topic, worker_topic
from .memory_store import MemoryStore


class SteeringVerbs(Backend):
    """What an operator asks of single jobs."""

    store: MemoryStore

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        check_batch(ids)
        store = self.store
        topics: set[str] = set()
        answers = []
        with store.lock:
            now_ms = store.clock.now_ms()
            for job_id in ids:
                job = store.jobs.get(job_id)
                if job is None:
                    answers.append(Steered.MISSING)
                elif job.state in TERMINAL:
                    answers.append(Steered.ENDED)
                elif job.state is State.RUNNING:
                    job.cancel_requested = True
                    topics.add(worker_topic(job.worker or ""))
                    answers.append(Steered.REQUESTED)
                else:
                    job.cancel_requested = True
                    store.end(job, State.CANCELLED, now_ms)
                    topics.add(job_topic(job_id))
                    answers.append(Steered.DONE)
            store.serve(now_ms)
            topics = store.take_rung(topics)
        store.bells.ring(topics)
        return answers

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        check_batch(reruns)
        store = self.store
        topics: set[str] = set()
        with store.lock:
            now_ms = store.clock.now_ms()
            answers = [self._rerun_one(request, now_ms, topics) for request in reruns]
        store.bells.ring(topics)
        return answers

    def _rerun_one(self, request: Rerun, now_ms: int, topics: set[str]) -> Steered:
        store = self.store
        job = store.jobs.get(request.id)
        if job is None:
            return Steered.MISSING
        if job.state in LIVE:
            return Steered.LIVE
        ended = job.state
        queue = request.queue if request.queue is not None else job.queue
        if job.unique is not None:
            if store.holder((queue, job.unique), now_ms) not in {None, job.id}:
                return Steered.CONFLICT
            store.take_key((queue, job.unique), job.id)
        job.queue = queue
        if request.payload is not None and request.payload != job.payload:
            job.payload = request.payload
            job.steps = None
        job.priority = request.priority if request.priority is not None else job.priority
        job.max_attempts = request.max_attempts if request.max_attempts is not None else job.max_attempts
        job.attempt = 0
        job.result = job.finished_at_ms = job.started_at_ms = job.parked_at_ms = None
        job.progress = job.progress_note = None
        job.cancel_requested = False
        job.held_by = None
        held_children = ended in {State.FAILED, State.CANCELLED}
        if store.wait_for_parents(job):
            job.due_at_ms = job.created_at_ms + request.delay_ms
        else:
            store.start_over(job, request.delay_ms, now_ms)
        if held_children:
            store.revive_children(job, now_ms)
        topics.add(queue_topic(queue) if request.delay_ms <= 0 else DUE_TOPIC)
        return Steered.DONE

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        check_batch(ids)
        store = self.store
        answers = []
        topics: set[str] = set()
        with store.lock:
            now_ms = store.clock.now_ms()
            for job_id in ids:
                job = store.jobs.get(job_id)
                if job is None:
                    answers.append(Steered.MISSING)
                elif job.state is State.RUNNING:
                    answers.append(Steered.LIVE)
                else:
                    store.forget(job, now_ms)
                    topics.add(job_topic(job_id))
                    answers.append(Steered.DONE)
            store.serve(now_ms)
            topics = store.take_rung(topics)
        store.bells.ring(topics)
        return answers
