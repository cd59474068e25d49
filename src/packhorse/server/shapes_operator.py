"""What the operations on queues, limits, dead letters, schedules, workflows and workers answer, as types."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..job import State
from .fields import Count, Moment
from .shapes import Next

States = Annotated[dict[str, Count], Meta(description="Jobs by state; all seven states are there.")]
Words = Annotated[dict[str, Count], Meta(description="Jobs by status word.")]


# ---- queues ----------------------------------------------------------------------------------------------


class CountsBody(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs of a queue by state, and the age of the oldest pending one, ms (null: none is pending)."""

    states: States
    oldest_pending_ms: int | None
    paused: bool


class QueueBody(msgspec.Struct, frozen=True, kw_only=True):
    """A queue: its jobs and its settings."""

    queue: str
    states: States
    oldest_pending_ms: int | None
    paused: bool
    capacity: Annotated[int | None, Meta(description="Pending jobs that it may hold; null: any number.")]


class QueuesBody(msgspec.Struct, frozen=True, kw_only=True):
    """The queues that have jobs or settings, by name."""

    items: list[QueueBody]
    next: Next


class PausedBody(msgspec.Struct, frozen=True, kw_only=True):
    """Whether workers may take jobs of a queue."""

    queue: str
    paused: bool


class CapacityBody(msgspec.Struct, frozen=True, kw_only=True):
    """How many pending jobs a queue may hold; null: any number."""

    queue: str
    capacity: int | None


class PurgedBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a purge deleted; `running` jobs stay, `added` came meanwhile."""

    queue: str
    deleted: Count
    running: Count
    added: Count


class StatsBody(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs by state, in all and by queue."""

    states: States
    queues: dict[str, CountsBody]


class StatusCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs by the status words of another job engine. Those that wait to be retried count as scheduled here."""

    enqueued: Count
    scheduled: Count
    processing: Count
    completed: Count
    failed: Count
    total: Count


class QueueStatsBody(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs by status, in all and by queue."""

    enqueued: Count
    scheduled: Count
    processing: Count
    completed: Count
    failed: Count
    total: Count
    queues: dict[str, StatusCounts]


# ---- limits ----------------------------------------------------------------------------------------------


class LimitBody(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on starts of jobs of a type; `key` null: of the type as a whole, `*`: of each key alone."""

    type: str
    key: str | None
    rate: Annotated[str | None, Meta(description="Starts in a time, as 50/s.")]
    burst: int | None
    concurrency: int | None
    source: Annotated[str, Meta(description="operator, or the app's code.")]


class SetLimitBody(LimitBody, frozen=True, kw_only=True):
    """A limit as it is now; `known` is false where no live worker takes its type and no job has it."""

    known: bool


class LiveLimitBody(LimitBody, frozen=True, kw_only=True):
    """A limit with what runs and when it opens: ms, 0 is now, null is when a running job ends."""

    running: Count
    opens_in_ms: int | None


class LimitsBody(msgspec.Struct, frozen=True, kw_only=True):
    """All limits, by type and key."""

    items: list[LimitBody]
    next: Next


class LiveLimitsBody(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that a job must pass."""

    items: list[LiveLimitBody]
    next: Next


# ---- the dead letter queue -------------------------------------------------------------------------------


class GroupBody(msgspec.Struct, frozen=True, kw_only=True):
    """Failed jobs with the same last error; `example` is the one that failed last."""

    fingerprint: str
    title: str
    jobs: Count
    first_at: Moment
    last_at: Moment
    types: Annotated[dict[str, Count], Meta(description="Jobs by type.")]
    queues: Annotated[dict[str, Count], Meta(description="Jobs by queue.")]
    example: str


class GroupsBody(msgspec.Struct, frozen=True, kw_only=True):
    """The failed jobs by what went wrong, the largest group first; `others` are those past the first 1,000 groups."""

    jobs: Count
    truncated: Annotated[bool, Meta(description="There are more: these are the newest.")]
    items: list[GroupBody]
    others: GroupBody | None
    next: Next


# ---- schedules -------------------------------------------------------------------------------------------


class ScheduleBody(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule. `next` is null while it is paused; slots up to `done_until` are dealt with."""

    name: str
    type: str
    payload: Any
    queue: str
    priority: int
    max_attempts: int
    timeout_ms: int
    key: str | None
    tags: list[str]
    cron: str | None
    every_ms: int | None
    tz: str
    missed: str
    overlap: str
    jitter_ms: int
    source: Annotated[str, Meta(description="The app whose code has it; empty: an operator, or data.")]
    paused: bool
    next: Moment | None
    done_until: Moment | None


class SchedulesBody(msgspec.Struct, frozen=True, kw_only=True):
    """All schedules, by name, whoever defined them."""

    items: list[ScheduleBody]
    next: Next


class DefinedSchedule(ScheduleBody, frozen=True, kw_only=True):
    """A schedule as it is now; `answer` says whether it was added, changed or unchanged."""

    answer: str


class SteeredSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a schedule makes jobs of its slots."""

    name: str
    paused: bool


class RunBody(msgspec.Struct, frozen=True, kw_only=True):
    """The job that was enqueued; with `created` false, the one of the schedule that has not ended."""

    id: str
    created: bool


class SlotBody(msgspec.Struct, frozen=True, kw_only=True):
    """A slot, in UTC and as the clocks of the zone show it."""

    at: Moment
    local: Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class SlotsBody(msgspec.Struct, frozen=True, kw_only=True):
    """The next slots, the first one first; none where it does not come within eight years."""

    items: list[SlotBody]
    next: Next


# ---- workflows -------------------------------------------------------------------------------------------


class WorkflowBody(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow. `state` is one word for all of it: live, failed (something did), cancelled or succeeded."""

    id: str
    name: str | None
    state: str
    states: States
    created_at: Moment


class NodeBody(msgspec.Struct, frozen=True, kw_only=True):
    """A job of a workflow; `after` has the names of those that it waits for, or their ids outside of it."""

    id: str
    node: str | None
    type: str
    queue: str
    state: State
    level: Count
    after: list[str]
    after_failed: str
    waiting_for: Count
    attempt: Count
    max_attempts: Count
    error: str | None
    started_at: Moment | None
    finished_at: Moment | None
    duration_ms: int | None


class WorkflowWithNodes(WorkflowBody, frozen=True, kw_only=True):
    """A workflow with its jobs, parents before children."""

    nodes: list[NodeBody]


class WorkflowsBody(msgspec.Struct, frozen=True, kw_only=True):
    """Workflows, newest first."""

    items: list[WorkflowBody]
    next: Next


class StoredWorkflow(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow that was stored, or, with `created` false, the one that was; its jobs by the names of the nodes."""

    id: str
    name: str | None
    created: bool
    jobs: Annotated[dict[str, str], Meta(description="The id of each job, by the name of its node.")]


# ---- workers and types -----------------------------------------------------------------------------------


class WorkerBody(msgspec.Struct, frozen=True, kw_only=True):
    """A live worker: `busy` slots of `concurrency`, as it said last; `running` jobs, as the store knows."""

    id: str
    host: str
    pid: int
    queues: list[str]
    types: list[str]
    concurrency: int
    busy: int
    running: int
    started_at: Moment
    lease_left_ms: int
    version: str
    trouble: Annotated[str | None, Meta(description="What its keeper sees wrong with it now, as a blocked loop.")]


class WorkersBody(msgspec.Struct, frozen=True, kw_only=True):
    """The workers that are alive."""

    items: list[WorkerBody]
    next: Next


class TypeBody(msgspec.Struct, frozen=True, kw_only=True):
    """A job type. `registered`: this server has its task and checks payloads against `schema` (else null).

    `defaults` are those options of its jobs that the task sets; `workers` are how many live ones take it.
    """

    type: str
    registered: bool
    description: str | None
    schema: Annotated[dict[str, Any] | None, Meta(description="The JSON Schema of the payload.")]
    defaults: dict[str, Any]
    workers: Count


class TypesBody(msgspec.Struct, frozen=True, kw_only=True):
    """The job types that this server or a live worker knows, by name."""

    items: list[TypeBody]
    next: Next
