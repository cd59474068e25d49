"""What happened to jobs, as lines: those that `GET /logs` and `packhorse logs` show (REQUIREMENTS section B).

Made from what the store keeps of a job: that it was enqueued, its failed runs, its latest start and its end. No payload
and no text of an error is in them.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..clock import to_datetime
from ..job import JobRecord, State
from ..observe.log_format import one_line
from .words import plain_status_word

#: When something happened, ms, and what.
Event = tuple[int, str]

#: Jobs from which the lines of one answer are made: the newest.
JOBS_MAX = 1_000


def history_lines(events: Iterable[Event], limit: int) -> list[str]:
    """Answer the latest `limit` of these events as lines, in order of time."""
    ordered = sorted(events, key=lambda event: event[0])  # keeps those of one job in their order
    return [f"[{_seconds(at_ms)}] {text}" for at_ms, text in ordered[-limit:]]


def history_of(record: JobRecord) -> list[Event]:
    """Answer what is known to have happened to a job, in order; nothing of it can forge a line (FAILURES C22)."""
    job = f"Job {one_line(record.id)}"
    update = f"[UPDATE] {job} status: "
    enqueued = f"[ENQUEUE] {job} ({one_line(record.type)}) queue: {one_line(record.queue)} priority: {record.priority}"
    events = [(record.created_at_ms, enqueued)]
    tried_again = record.errors[:-1] if record.state in {State.FAILED, State.CANCELLED} else record.errors
    runs = [(error.at_ms, f"{update}RETRY") for error in tried_again]
    if record.started_at_ms is not None:
        runs.append((record.started_at_ms, f"{update}PROCESSING"))
    events += sorted(runs)
    if record.finished_at_ms is not None:
        events.append((record.finished_at_ms, update + plain_status_word(record.state, record.attempt)))
    return events


def _seconds(at_ms: int) -> str:
    """Write an instant as `2024-01-06 12:00:00`, in UTC."""
    try:
        return to_datetime(at_ms).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):  # a year past 9999, which a store can hold
        return f"{at_ms} ms"
