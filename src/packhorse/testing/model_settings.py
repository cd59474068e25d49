"""What an operator sets, for the oracle: limits with their buckets, and schedules. See `model`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..backends.base import EACH_KEY, Firing, Limit, Schedule, ScheduleChange
from ..job import State
from ..limits import merge_limit, opens_at_ms, take, tokens
from .model_jobs import ModelJob

Name = tuple[str, str | None]


class LimitBook:
    """The limits, and how much of each rate is used. What runs is counted from the jobs at every question."""

    def __init__(self, jobs: dict[str, ModelJob]) -> None:
        self.limits: dict[Name, Limit] = {}
        self.jobs = jobs
        self.buckets: dict[Name, int] = {}

    def change(self, change: Limit) -> None:
        """Take one change over."""
        name = (change.type, change.key)
        merged = merge_limit(self.limits.get(name), change)
        if merged is not None:
            self.limits[name] = merged
        else:
            self.limits.pop(name, None)
            self.buckets = {
                each: full_at_ns
                for each, full_at_ns in self.buckets.items()
                if each != name and not (change.key == EACH_KEY and each[0] == change.type and each[1] is not None)
            }

    def all(self) -> list[Limit]:
        """List all limits, by type and key."""
        return [self.limits[name] for name in sorted(self.limits, key=lambda name: (name[0], name[1] or ""))]

    def of(self, job_type: str, key: str | None) -> list[tuple[Limit, Name]]:
        """List what a job must pass, each with the name its use is kept under."""
        found: list[tuple[Limit | None, Name]] = [(self.limits.get((job_type, None)), (job_type, None))]
        if key is not None:
            own = self.limits.get((job_type, key)) or self.limits.get((job_type, EACH_KEY))
            found.append((own, (job_type, key)))
        return [(limit, name) for limit, name in found if limit is not None]

    def running(self, name: Name) -> int:
        """Count what runs of a type, or of a type and key."""
        running = [job.spec for job in self.jobs.values() if job.state is State.RUNNING and job.spec.type == name[0]]
        return len(running) if name[1] is None else sum(spec.key == name[1] for spec in running)

    def opens_in_ms(self, limit: Limit, name: Name, now_ms: int, starting: int = 0) -> int | None:
        """Say when a job may start; None: when one ends. `starting` are about to, and took their tokens."""
        if limit.concurrency is not None and self.running(name) + starting >= limit.concurrency:
            return None
        if limit.rate is None:
            return 0
        bucket = self.buckets.get(name, 0)
        return 0 if tokens(limit, bucket, now_ms) > 0 else opens_at_ms(limit, bucket, now_ms) - now_ms

    def about(self, job_type: str, key: str | None, now_ms: int) -> list[Limit]:
        """List what a job must pass, with its state now."""
        return [
            msgspec.structs.replace(
                limit, running=self.running(name), opens_in_ms=self.opens_in_ms(limit, name, now_ms)
            )
            for limit, name in self.of(job_type, key)
        ]

    def startable(self, jobs: Iterable[ModelJob], most: int, now_ms: int) -> list[ModelJob]:
        """Choose, in the order given, the jobs that may start together."""
        kept = dict(self.buckets)
        starting: dict[Name, int] = {}
        chosen: list[ModelJob] = []
        for job in jobs:
            if len(chosen) == most:
                break
            limits = self.of(job.spec.type, job.spec.key)
            if all(self.opens_in_ms(limit, name, now_ms, starting.get(name, 0)) == 0 for limit, name in limits):
                chosen.append(job)
                self.use(job, now_ms)
                for _, name in limits:
                    starting[name] = starting.get(name, 0) + 1
        self.buckets = kept
        return chosen

    def use(self, job: ModelJob, now_ms: int) -> None:
        """Take the tokens of a job that starts."""
        for limit, name in self.of(job.spec.type, job.spec.key):
            if limit.rate is not None:
                self.buckets[name] = take(limit, self.buckets.get(name, 0), now_ms, 1)

    def openings(self, jobs: Iterable[ModelJob], now_ms: int) -> list[int]:
        """Say in how many ms each job may start that only rates hold back."""
        found = []
        for job in jobs:
            waits = [self.opens_in_ms(limit, name, now_ms) for limit, name in self.of(job.spec.type, job.spec.key)]
            if None not in waits and any(waits):
                found.append(max(wait for wait in waits if wait is not None))
        return found


class ScheduleBook:
    """The schedules of a store."""

    def __init__(self) -> None:
        self.schedules: dict[str, Schedule] = {}

    def change(self, change: ScheduleChange, now_ms: int) -> None:
        """Take one change over. Raises KeyError where there is nothing to pause."""
        old = self.schedules.get(change.name)
        if change.define is not None:
            self.schedules[change.name] = _defined(old, change.define, now_ms)
        if change.removed:
            self.schedules.pop(change.name, None)
        elif change.paused is not None:
            old = self.schedules[change.name]
            new = msgspec.structs.replace(old, paused=change.paused)
            if old.paused and not change.paused:
                new = msgspec.structs.replace(new, done_ms=max(now_ms, old.done_ms), next_ms=None)
            self.schedules[change.name] = new

    def all(self) -> list[Schedule]:
        """List all schedules, by name."""
        return [self.schedules[name] for name in sorted(self.schedules)]

    def due(self, now_ms: int) -> list[Schedule]:
        """List those that want planning."""
        return [each for each in self.all() if not each.paused and (each.next_ms is None or each.next_ms <= now_ms)]

    def fire(self, firing: Firing) -> bool:
        """Move a schedule on if it stands where the firing was planned from."""
        old = self.schedules.get(firing.name)
        if old is None or old.paused or (old.revision, old.done_ms) != (firing.revision, firing.done_ms):
            return False
        self.schedules[firing.name] = msgspec.structs.replace(old, done_ms=firing.new_done_ms, next_ms=firing.next_ms)
        return True


def _defined(old: Schedule | None, new: Schedule, now_ms: int) -> Schedule:
    if old is None:
        return msgspec.structs.replace(new, revision=1, done_ms=now_ms, next_ms=None)
    stands = {"paused": old.paused, "revision": old.revision, "done_ms": old.done_ms, "next_ms": old.next_ms}
    new = msgspec.structs.replace(new, **stands, spec=msgspec.structs.replace(new.spec, id=old.spec.id))
    if new == old:
        return old
    if (new.cron, new.every_ms, new.tz) != (old.cron, old.every_ms, old.tz):
        new = msgspec.structs.replace(new, done_ms=max(now_ms, old.done_ms))
    return msgspec.structs.replace(new, revision=old.revision + 1, next_ms=None)
