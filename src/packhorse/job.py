"""What a job is: its states, the moves between them, and the records that cross the contract.

Values only, no I/O. Instants are ms since 1970 UTC and end in `_at_ms`; durations end in `_ms`.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from .errors import InvalidName, shown


class State(StrEnum):
    """Where a job stands. A job is always in exactly one."""

    WAITING = "waiting"
    SCHEDULED = "scheduled"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: The only moves there are. Docs, the memory backend and the conformance cases derive from this table.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PENDING, State.SCHEDULED, State.CANCELLED}),
    State.SCHEDULED: frozenset({State.PENDING, State.CANCELLED}),
    State.PENDING: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.SCHEDULED, State.PENDING, State.FAILED, State.CANCELLED}),
    # By a rerun only: of the job itself, or of the parent that held it.
    State.SUCCEEDED: frozenset({State.PENDING, State.SCHEDULED, State.WAITING}),
    State.FAILED: frozenset({State.PENDING, State.SCHEDULED, State.WAITING}),
    State.CANCELLED: frozenset({State.PENDING, State.SCHEDULED, State.WAITING}),
}

TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
LIVE = frozenset(State) - TERMINAL

#: The three words people use for priorities, on the scale 0 (soonest) to 9.
PRIORITIES = {"high": 2, "normal": 5, "low": 8}

#: A job overtakes one of the next better priority once it has waited this much longer: so low never
#: starves, and the order is one number that any index can keep. Decision 4.
AGEING_MS = 600_000

DEFAULT_QUEUE = "default"
DEFAULT_MAX_ATTEMPTS = 4  # `max_retries = 3`, the default of the job engines in REQUIREMENTS section C
DEFAULT_TIMEOUT_MS = 30_000  # the same source, row 11

MAX_ATTEMPTS_MAX = 1_000
DELAY_MS_MAX = 10 * 366 * 86_400_000  # ten years
TIMEOUT_MS_MAX = 7 * 86_400_000
TAGS_MAX = 32
META_MAX = 32
META_VALUE_CHARS_MAX = 1_024
KEY_CHARS_MAX = 256
AFTER_MAX = 10_000
AFTER_TOTAL_MAX = 100_000  # of all jobs of one call: about a second on SQLite

#: What becomes of a child when a parent ends other than succeeded: it is cancelled, or goes on all the same.
AFTER_FAILED = ("cancel", "continue")

#: Kinds of the errors that the store itself writes into a job's history.
LAPSED = "LeaseLapsed"
PARENT_FAILED = "ParentFailed"
REPLACED = "Replaced"

#: Durable steps a job may remember, and bytes they may have in all.
STEPS_MAX = 1_000
STEPS_BYTES_MAX = 4_194_304
#: Among them, and not counted with them, what its runs logged: names that no step can have. See `observe.job_log`.
LOG_PREFIX = "~log."
LOGS_KEPT_MAX = 8
LOG_BYTES_MAX = 32_768

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_name(name: object, what: str) -> str:
    """Answer `name` if it may name a `what` (queue, job type, tag); raise InvalidName otherwise."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(f"{shown(name, 80)} cannot name a {what}; use 1 to 128 of the characters A-Z a-z 0-9 . _ -")
    return name


def rank(turn_ms: int, priority: int) -> int:
    """Answer the place of a pending job in its queue: the lowest rank is claimed first.

    `turn_ms` is the instant the job became ready, or what `fair_turn` makes of it where the job has a key.
    """
    return turn_ms + priority * AGEING_MS


def fair_turn(ready_at_ms: int, front_ms: int | None, last_ms: int | None) -> int:
    """Answer the turn of a job that has a key, so that keys share a queue fairly (decision 9).

    `front_ms` is how far the keyed jobs of the queue have come: the turn of the last one claimed; None while none is
    pending, which starts afresh from `ready_at_ms`. `last_ms` is the turn of the last pending job of the same queue,
    key and priority: each further one lines up a ms behind it, so a key with 100,000 jobs leaves room for others.
    """
    if front_ms is None:
        return ready_at_ms
    turn_ms = front_ms if last_ms is None else max(front_ms, last_ms + 1)
    return min(turn_ms, ready_at_ms + AGEING_MS)


class Unique(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A key that at most one job of a queue holds.

    Held while the job is in one of `states` (unless told otherwise: until it ends), and in any case until `for_ms`
    after it was created. On conflict `existing` answers with the holder, `refuse` raises, `replace` cancels a holder
    that has not started and takes its place (one that runs or has ended answers as `existing`).
    """

    key: str
    for_ms: int = 0
    states: tuple[State, ...] = (State.WAITING, State.SCHEDULED, State.PENDING, State.RUNNING)
    on_conflict: str = "existing"


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job as it is handed to `enqueue`, already validated. `payload` and `meta` are plain JSON."""

    id: str
    type: str
    payload: bytes = b"{}"
    queue: str = DEFAULT_QUEUE
    priority: int = PRIORITIES["normal"]
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    delay_ms: int = 0
    unique: Unique | None = None
    after: tuple[str, ...] = ()
    after_failed: str = "cancel"
    key: str | None = None
    tags: tuple[str, ...] = ()
    meta: dict[str, str] | None = None
    workflow: str | None = None
    node: str | None = None  # its name in the workflow
    schedule: str | None = None
    slot_at_ms: int | None = None


class JobError(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How one attempt ended, as text. Never turned back into an exception (FAILURES C7)."""

    attempt: int
    at_ms: int
    kind: str
    message: str
    traceback: str = ""


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """A running job in the hands of the worker that claimed it: all it needs to run and settle it."""

    id: str
    token: str
    type: str
    payload: bytes
    attempt: int
    max_attempts: int
    timeout_ms: int
    queue: str
    priority: int
    created_at_ms: int
    ready_at_ms: int
    parked_at_ms: int | None = None
    key: str | None = None
    tags: tuple[str, ...] = ()
    meta: dict[str, str] | None = None
    workflow: str | None = None


class JobRecord(msgspec.Struct, kw_only=True):
    """Everything a store keeps of a job."""

    id: str
    type: str
    queue: str
    state: State
    payload: bytes
    priority: int
    attempt: int
    max_attempts: int
    timeout_ms: int
    created_at_ms: int
    due_at_ms: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    worker: str | None = None
    key: str | None = None
    tags: tuple[str, ...] = ()
    meta: dict[str, str] | None = None
    unique: str | None = None
    after: tuple[str, ...] = ()
    after_failed: str = "cancel"
    waiting_for: int = 0  # parents that have not ended
    workflow: str | None = None
    node: str | None = None
    schedule: str | None = None
    slot_at_ms: int | None = None
    result: bytes | None = None
    errors: tuple[JobError, ...] = ()
    progress: float | None = None
    progress_note: str | None = None
    cancel_requested: bool = False
    parked_at_ms: int | None = None  # since when no worker that claimed it could run it
    steps: dict[str, bytes] | None = None  # results of durable steps, by name; filled by `get` only
