"""The dead letter queue by what went wrong: failed jobs grouped by the fingerprint of their last error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from .admin_values import Progress
from .backends.base import Backend, Query
from .errors import InvalidOption, shown
from .fingerprint import Fingerprint, fingerprint
from .job import JobRecord, State
from .shapes import instant_json

#: Groups that are told apart. All further errors are one group, `others`.
GROUPS_MAX = 1_000
#: Jobs that are read at a time: each may have 20 kB of errors, and what else goes on in the event loop waits for 6 ms.
_PAGE_JOBS = 200
#: Types and queues that are named in a group; the others are left out.
NAMES_MAX = 20

OTHERS = "others"

_GROUP = re.compile(r"[0-9a-f]{12}|none")


class FailedGroup(msgspec.Struct, kw_only=True):
    """Failed jobs with the same last error; `example` is the one that failed last."""

    fingerprint: str
    title: str
    jobs: int = 0
    first_at_ms: int = 0
    last_at_ms: int = 0
    types: Counter[str] = msgspec.field(default_factory=Counter)
    queues: Counter[str] = msgspec.field(default_factory=Counter)
    example: str = ""

    def add(self, job: JobRecord) -> None:
        """Count a job."""
        at_ms = _failed_at_ms(job)
        if not self.jobs or at_ms > self.last_at_ms:
            self.last_at_ms, self.example = at_ms, job.id
        self.first_at_ms = at_ms if not self.jobs else min(self.first_at_ms, at_ms)
        self.jobs += 1
        for names, name in ((self.types, job.type), (self.queues, job.queue)):
            if name in names or len(names) < NAMES_MAX:
                names[name] += 1


class FailedGroups(msgspec.Struct, frozen=True):
    """The failed jobs that match, the largest group first; `others` are those past the first `GROUPS_MAX` groups.

    `truncated`: these are the newest `jobs` of them, and there are more.
    """

    jobs: int
    groups: list[FailedGroup]
    others: FailedGroup | None
    truncated: bool = False


async def group_failed(
    backend: Backend, query: Query, progress: Progress | None = None, *, jobs_max: int | None = None
) -> FailedGroups:
    """Group the failed jobs that match, newest first, `jobs_max` at most. Reads no payloads, a page at a time.

    Keeps at most `GROUPS_MAX` groups, so its memory does not grow with the jobs: 15 MB, about.
    """
    groups: dict[str, FailedGroup] = {}
    others = FailedGroup(fingerprint=OTHERS, title=f"errors past the first {GROUPS_MAX:,} kinds")
    jobs = 0
    query = msgspec.structs.replace(
        query, states=(State.FAILED,), brief=True, oldest_first=False, limit=_PAGE_JOBS, cursor=None
    )
    while True:
        page = await backend.find(query)
        for job in page.jobs:
            found = fingerprint_of(job)
            group = groups.get(found.hash)
            if group is None and len(groups) < GROUPS_MAX:
                group = groups[found.hash] = FailedGroup(fingerprint=found.hash, title=found.title)
            (group if group is not None else others).add(job)
        jobs += len(page.jobs)
        if progress is not None:
            progress(jobs)
        if page.next is None or (jobs_max is not None and jobs >= jobs_max):
            break
        query = msgspec.structs.replace(query, cursor=page.next)
    ordered = sorted(groups.values(), key=lambda group: (-group.jobs, group.fingerprint))
    return FailedGroups(jobs, ordered, others if others.jobs else None, truncated=page.next is not None)


def in_group(group: str) -> Callable[[JobRecord], bool]:
    """Answer what tells whether a failed job belongs to a group. Raises InvalidOption for what names none."""
    if group == OTHERS:
        raise InvalidOption("group: the others are of many kinds; choose them by --type or --queue")
    if not _GROUP.fullmatch(group):
        raise InvalidOption(f"group: {shown(group)} is no fingerprint; see: packhorse list-failed --group")
    return lambda job: fingerprint_of(job).hash == group


def fingerprint_of(job: JobRecord) -> Fingerprint:
    """Answer what identifies the last error of a failed job."""
    return fingerprint(job.errors[-1] if job.errors else None, job.type)


def _failed_at_ms(job: JobRecord) -> int:
    return job.finished_at_ms if job.finished_at_ms is not None else job.created_at_ms


def group_json(group: FailedGroup) -> dict[str, Any]:
    """Answer the JSON of a group."""
    return {
        "fingerprint": group.fingerprint,
        "title": group.title,
        "jobs": group.jobs,
        "first_at": instant_json(group.first_at_ms),
        "last_at": instant_json(group.last_at_ms),
        "types": dict(group.types.most_common()),
        "queues": dict(group.queues.most_common()),
        "example": group.example,
    }


def groups_json(found: FailedGroups) -> dict[str, Any]:
    """Answer the JSON of all groups: the number of `jobs`, the `items`, and `others` or null."""
    return {
        "jobs": found.jobs,
        "truncated": found.truncated,
        "items": [group_json(group) for group in found.groups],
        "others": None if found.others is None else group_json(found.others),
        "next": None,
    }
