"""What an operator's verbs answer, as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from .backends.base import QueueCounts, Steered, WorkerInfo
from .job import State

#: Called with the number of jobs seen so far.
Progress = Callable[[int], None]


class Stats(msgspec.Struct, frozen=True):
    """Jobs by state, in all and for each queue."""

    states: dict[State, int]
    queues: dict[str, QueueCounts]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the store answers (`status` OK or UNAVAILABLE), how fast, and what an operator should look at."""

    status: str
    latency_ms: int | None = None
    workers: int = 0
    pending: int = 0
    problems: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True):
    """What is true of one job after a verb."""

    id: str
    answer: Steered


class Sweep(msgspec.Struct, kw_only=True):
    """What a verb did to all jobs that matched a filter. A dry run only counts."""

    matched: int = 0
    dry_run: bool = False
    answers: Counter[Steered] = msgspec.field(default_factory=Counter)


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs a purge deleted, and how many of the queue are there still: `running` ones, and those `added`."""

    deleted: int
    running: int
    added: int = 0


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """A queue as an operator sees it: its counts and its settings."""

    queue: str
    counts: QueueCounts
    capacity: int | None = None


def slots_taken(worker: WorkerInfo) -> int:
    """Answer how many of a worker's slots have a job that runs, never more than it has slots.

    The store counts all that the worker claimed, ahead of free slots too; the worker says what it had started when it
    was last heard, and some of that may have ended since.
    """
    started = min(worker.busy, worker.running)
    return min(started, worker.concurrency) if worker.concurrency > 0 else started
