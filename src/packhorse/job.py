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
    State.SUCCEEDED: frozenset({State.PENDING, State.SCHEDULED}),
    State.FAILED: frozenset({State.PENDING, State.SCHEDULED}),
    State.CANCELLED: frozenset({State.PENDING, State.SCHEDULED}),
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

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_name(name: object, what: str) -> str:
    """Answer `name` if it may name a `what` (queue, job type, tag); raise InvalidName otherwise."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(f"{shown(name, 80)} cannot name a {what}; use 1 to 128 of the characters A-Z a-z 0-9 . _ -")
    return name


def rank(ready_at_ms: int, priority: int) -> int:
    """Answer the place of a pending job in its queue: the lowest rank is claimed first."""
    return ready_at_ms + priority * AGEING_MS


class Unique(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A key that at most one job of a queue holds.

    Held while the job is in one of `states` (at first: until it ends) and for `for_ms` after it was created.
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
    workflow: str | None = None
    schedule: str | None = None
    slot_at_ms: int | None = None
    result: bytes | None = None
    errors: tuple[JobError, ...] = ()
    progress: float | None = None
    progress_note: str | None = None
    cancel_requested: bool = False
