"""Our states in the words of other job engines, each used on their own routes only (REQUIREMENTS section B)."""

from __future__ import annotations

from ..job import State

_STATUS = {
    State.WAITING: "enqueued",
    State.PENDING: "enqueued",
    State.SCHEDULED: "scheduled",
    State.RUNNING: "processing",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "failed",
}
_PLAIN_STATUS = {
    State.WAITING: "PENDING",
    State.PENDING: "PENDING",
    State.SCHEDULED: "PENDING",
    State.RUNNING: "PROCESSING",
    State.SUCCEEDED: "DONE",
    State.FAILED: "FAILED",
    State.CANCELLED: "FAILED",
}


def status_word(state: State, attempt: int) -> str:
    """Answer the `status` of a job under /api/v1, beside its `state`."""
    return "retrying" if state is State.SCHEDULED and attempt > 0 else _STATUS[state]


def plain_status_word(state: State, attempt: int) -> str:
    """Answer the `status` of a job at the root, `/jobs`."""
    return "RETRY" if state is State.SCHEDULED and attempt > 0 else _PLAIN_STATUS[state]
