"""What the newest jobs say of the last seconds to hours: when they came, ended and failed, by queue."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from ..job import TERMINAL, State
from ..wording import age, quantity
from .output import emit_table, say
from .sparkline import ramp_for, sparkline, spread

if TYPE_CHECKING:
    from ..admin import Admin
    from ..job import JobRecord

#: Jobs that are looked at, the newest: two pages of the store.
JOBS_MAX = 2_000

#: Queues that are shown, those with the most of these jobs.
_QUEUES_MAX = 20

#: Characters of a sparkline.
_WIDTH = 14


class QueueMoves(msgspec.Struct, frozen=True):
    """When jobs of a queue came, ended, and failed for good, ms."""

    came_ms: list[int]
    ended_ms: list[int]
    failed_ms: list[int]


class Recent(msgspec.Struct, frozen=True):
    """The newest jobs by queue, and the time that they span: from the first that came to the last move of any."""

    jobs: int
    begin_ms: int
    end_ms: int
    queues: dict[str, QueueMoves]


async def read_recent(admin: Admin) -> Recent:
    """Look at the newest jobs, `JOBS_MAX` at most, without payloads. Raises Unavailable."""
    from ..backends.base import BATCH_MAX, Query

    query = Query(brief=True, limit=BATCH_MAX)
    jobs: list[JobRecord] = []
    while True:
        page = await admin.find(query)
        jobs += page.jobs
        if page.next is None or len(jobs) >= JOBS_MAX:
            return recent_of(jobs[:JOBS_MAX])
        query = msgspec.structs.replace(query, cursor=page.next, limit=min(BATCH_MAX, JOBS_MAX - len(jobs)))


def recent_of(jobs: Sequence[JobRecord]) -> Recent:
    """Sort instants of jobs by queue."""
    queues: dict[str, QueueMoves] = {}
    instants: list[int] = []
    for job in jobs:
        moves = queues.get(job.queue)
        if moves is None:
            moves = queues[job.queue] = QueueMoves([], [], [])
        moves.came_ms.append(job.created_at_ms)
        instants.append(job.created_at_ms)
        if job.state in TERMINAL and job.finished_at_ms is not None:
            moves.ended_ms.append(job.finished_at_ms)
            instants.append(job.finished_at_ms)
            if job.state is State.FAILED:
                moves.failed_ms.append(job.finished_at_ms)
    return Recent(len(jobs), min(instants, default=0), max(instants, default=0), queues)


def print_recent(recent: Recent) -> None:
    """Print a table of sparklines, and which time they are of."""
    if not recent.jobs:
        return
    ramp = ramp_for(getattr(sys.stdout, "encoding", None))
    named = sorted(recent.queues.items(), key=lambda item: (-len(item[1].came_ms), item[0]))

    def drawn(instants_ms: list[int]) -> list[object]:
        counts = spread(instants_ms, recent.begin_ms, recent.end_ms, _WIDTH)
        return [sparkline(counts, ramp), f"{len(instants_ms):,}"]

    rows: list[list[object]] = [
        [name, *drawn(moves.came_ms), *drawn(moves.ended_ms), *drawn(moves.failed_ms)]
        for name, moves in named[:_QUEUES_MAX]
    ]
    say("")
    say(f"newest {quantity(recent.jobs, 'job')}, {age(recent.end_ms - recent.begin_ms)}")
    emit_table(["queue", "came", "jobs", "ended", "jobs", "failed", "jobs"], rows, right=["jobs"])
    if len(named) > _QUEUES_MAX:
        say(f"… and {quantity(len(named) - _QUEUES_MAX, 'more queue')}")
