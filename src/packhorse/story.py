"""A job's whole story by time: what the store knows of its way, and between that what its runs logged.

Instants of its way are the store's, those of what runs logged the workers': where clocks differ, so does the order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from .job import TERMINAL, JobRecord, State
from .observe.job_log import read_logs

#: From the least to the most grave. Levels of a program's own have no place among them, and are always shown.
LEVELS = ("debug", "info", "warning", "error", "critical")
#: The logger of lines that the store's own knowledge makes.
STORE_LOGGER = "packhorse"


class StoryLine(msgspec.Struct, frozen=True):
    """One thing that happened. `attempt` is 0 for what belongs to none."""

    at_ms: int
    level: str
    logger: str
    attempt: int
    message: str


class Story(msgspec.Struct, frozen=True):
    """What is known of a job. `left_out` lines of its runs are not kept."""

    job: JobRecord
    lines: list[StoryLine]
    left_out: int = 0

    @property
    def ended(self) -> bool:
        """Whether there will be no more lines, unless somebody reruns it."""
        return self.job.state in TERMINAL


def story_of(record: JobRecord) -> Story:
    """Put together what is known of a job."""
    logs = read_logs(record.steps)
    ranked = [(line.at_ms, line.attempt, rank, line) for rank, line in _way(record)]
    ranked += [
        (line.at_ms, log.attempt, 2, StoryLine(line.at_ms, line.level, line.logger, log.attempt, line.message))
        for log in logs
        for line in log.lines
    ]
    ranked.sort(key=lambda item: item[:3])  # keeps lines of one ms in the order they were logged
    return Story(record, [line for *_, line in ranked], sum(log.left_out for log in logs))


def matching(lines: Sequence[StoryLine], *, attempt: int | None = None, level: str | None = None) -> list[StoryLine]:
    """Answer the lines of an attempt, and those that are at least as grave as `level`."""
    least = 0 if level is None else LEVELS.index(level)
    return [
        line
        for line in lines
        if (attempt is None or line.attempt == attempt)
        and (line.level not in LEVELS or LEVELS.index(line.level) >= least)
    ]


def _way(record: JobRecord) -> Iterator[tuple[int, StoryLine]]:
    """Answer what the store knows of a job's way, each with its rank among what has the same instant."""

    def line(at_ms: int, level: str, attempt: int, message: str) -> StoryLine:
        return StoryLine(at_ms, level, STORE_LOGGER, attempt, message)

    created_ms = record.created_at_ms
    yield 0, line(created_ms, "info", 0, f"enqueued in queue {record.queue}, priority {record.priority}")
    if record.started_at_ms is not None:
        yield (
            1,
            line(
                record.started_at_ms,
                "info",
                record.attempt,
                f"attempt {record.attempt} of {record.max_attempts} starts",
            ),
        )
    final = record.state in {State.FAILED, State.CANCELLED}
    for error in record.errors:
        is_last = final and error is record.errors[-1]
        yield (
            3,
            line(
                error.at_ms,
                "error" if is_last else "warning",
                error.attempt,
                f"attempt {error.attempt} ended: {error.kind}: {error.message}",
            ),
        )
    if record.finished_at_ms is not None:
        level = "error" if record.state is State.FAILED else "info"
        yield 4, line(record.finished_at_ms, level, record.attempt, f"the job has {_ENDED.get(record.state, 'ended')}")


_ENDED = {
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed for good",
    State.CANCELLED: "been cancelled",
}
