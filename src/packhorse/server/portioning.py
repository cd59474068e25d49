"""How many jobs go into one answer: an answer is made in memory, and a thousand jobs may be two gigabytes.

Nobody knows how large jobs are before they are read, but those of a queue are alike: so it is learnt from the answers
before, and only the first surprise is large. What was claimed and does not fit is given back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from ..backends.base import Backend, Page, Settlement
from ..backends.http import wire
from ..job import Claimed, JobRecord, State
from ..wording import quantity

log = logging.getLogger("packhorse.server")

#: Bytes of claimed jobs in one answer, whatever was learnt: well below what a client reads of one.
CLAIMED_BYTES_MAX = 4 * wire.ANSWER_BYTES
#: How much of what was learnt is still believed after an answer with smaller jobs.
_MEMORY = 0.8

T = TypeVar("T")


class Portion:
    """How many items of a kind one answer takes."""

    def __init__(self, bytes_of: Callable[[T], int]) -> None:
        self._bytes_of: Callable[..., int] = bytes_of
        self._mean_bytes = 0.0

    def fit(self, wanted: int) -> int:
        """Answer how many of `wanted` items to ask for: at least one, unless none is wanted."""
        if self._mean_bytes * wanted <= wire.ANSWER_BYTES:
            return wanted
        return max(1, min(wanted, int(wire.ANSWER_BYTES / self._mean_bytes)))

    def learn(self, items: Sequence[object]) -> list[int]:
        """Answer the bytes of each item that was read, and remember how large they were."""
        sizes = [self._bytes_of(item) for item in items]
        if sizes:
            self._mean_bytes = max(sum(sizes) / len(sizes), self._mean_bytes * _MEMORY)
        return sizes


class Portioning:
    """The verbs whose answers may be large, each bounded. One for all clients of a server."""

    def __init__(self) -> None:
        self._claimed: Portion = Portion(_bytes_of_claimed)
        self._records: Portion = Portion(wire.bytes_of_record)

    async def claim(self, backend: Backend, call: wire.Claim) -> list[Claimed]:
        """Claim no more than one answer takes."""
        jobs = await backend.claim(call.queues, self._claimed.fit(call.limit), call.lease_ms, call.worker)
        total = 0
        for place, size in enumerate(self._claimed.learn(jobs)):
            total += size
            if total > CLAIMED_BYTES_MAX and place > 0:
                await _give_back(backend, jobs[place:])
                return jobs[:place]
        return jobs

    async def get(self, backend: Backend, call: wire.Get) -> list[JobRecord | None]:
        """Look up as many, from the front, as one answer takes; at least one."""
        records = await backend.get(call.ids[: self._records.fit(len(call.ids))])
        self._records.learn(records)
        return records

    async def find(self, backend: Backend, call: wire.Find) -> Page:
        """Answer a page that is shorter where one answer does not take more."""
        query = call.query
        limit = query.limit if query.brief else self._records.fit(query.limit)
        page = await backend.find(query if limit == query.limit else replace(query, limit=limit))
        if not query.brief:
            self._records.learn(page.jobs)
        return page


async def _give_back(backend: Backend, jobs: Sequence[Claimed]) -> None:
    """Give back what was claimed and does not fit; no attempt is counted."""
    log.info("%s given back: too many bytes for one answer", quantity(len(jobs), "claimed job"))
    await backend.settle([Settlement(id=job.id, token=job.token, state=State.PENDING, refund=True) for job in jobs])


def _bytes_of_claimed(job: Claimed) -> int:
    return wire.bytes_of(job.payload)
