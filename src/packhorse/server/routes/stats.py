"""`/api/v1/stats`, `/queue/stats` and `/workers`: how the whole stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ...admin import stats_json, worker_json
from ...job import State
from ...shapes import list_json
from ..access import Permission
from ..operation import Call, Reply, Routes
from ..shapes_operator import QueueStatsBody, StatsBody, WorkersBody
from ..words import status_word

routes = Routes("stats")

AGES = frozenset({"oldest_pending_ms", "lease_left_ms"})

_WORDS = ("enqueued", "scheduled", "processing", "completed", "failed")


@routes.get("/api/v1/stats", may=Permission.LOOK, answer=StatsBody, polled=True, ages=AGES)
async def show_stats(call: Call) -> Reply:
    """Count the jobs by state, in all and by queue, with the age of the oldest pending one."""
    return Reply(stats_json(await (await call.admin()).stats()))


@routes.get("/api/v1/queue/stats", may=Permission.LOOK, answer=QueueStatsBody, polled=True)
async def show_queue_stats(call: Call) -> Reply:
    """Count the jobs in the status words of another job engine, in all and by queue. `/api/v1/stats` says more."""
    found = await (await call.admin()).stats()
    queues = {name: _in_words(counts.states) for name, counts in found.queues.items()}
    return Reply({**_in_words(found.states), "queues": queues})


def _in_words(states: Mapping[State, int]) -> dict[str, Any]:
    words: Counter[str] = Counter()
    for state, count in states.items():
        words[status_word(state, 0)] += count
    return {word: words[word] for word in _WORDS} | {"total": words.total()}


@routes.get("/api/v1/workers", may=Permission.LOOK, answer=WorkersBody, polled=True, ages=AGES)
async def list_workers(call: Call) -> Reply:
    """List the workers that are alive."""
    return Reply(list_json(map(worker_json, await (await call.admin()).workers())))
