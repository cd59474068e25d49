"""Get, find and counts: what the scripts answer, as records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ...job import JobRecord
from ..base import Page, Query, QueueChange, QueueCounts, WorkerInfo, WorkflowCounts, page_limit, parse_cursor
from .link import Link
from .records import STATES, pairs, read_record, state_bits

#: Jobs asked for in one call: a thousand with large payloads would hold the server.
_GET_MAX = 200
#: A search that found too little goes on for so long; then a short page and its cursor are the answer.
_FIND_MS = 2_000

_read_info = msgspec.msgpack.Decoder(WorkerInfo).decode


async def get(link: Link, ids: Sequence[str]) -> list[JobRecord | None]:
    """Look jobs up by id."""
    records: list[JobRecord | None] = []
    while len(records) < len(ids):
        found = await link.run("get", ids[len(records) : len(records) + _GET_MAX])
        records += [read_record(one) if one is not None else None for one in found]
    return records


async def find(link: Link, query: Query, boot_ms: Callable[[], float]) -> Page:
    """Look jobs up by filter, a page at a time, by seq. Asks until the page is full, or it takes too long."""
    limit, until_ms = page_limit(query), boot_ms() + _FIND_MS
    asked: dict[str, Any] = {
        "states": state_bits(query.states),
        "queue": query.queue,
        "type": query.type,
        "tag": query.tag,
        "key": query.key,
        "workflow": query.workflow,
        "schedule": query.schedule,
        "from_ms": query.created_from_ms,
        "before_ms": query.created_before_ms,
        "oldest": query.oldest_first,
        "brief": query.brief,
        "cursor": parse_cursor(query.cursor),
    }
    found: list[JobRecord] = []
    last: int | None = None  # the seq of the last job of the page
    while True:
        asked["limit"] = limit + 1 - len(found)  # one more tells whether there is another page
        part, asked["cursor"] = await link.run("find", asked)
        for seq, record in part:
            if len(found) < limit:
                last = seq
            found.append(read_record(record, brief=query.brief))
        if len(found) > limit:
            return Page(found[:limit], str(last))
        if asked["cursor"] is None:
            return Page(found, None)
        if boot_ms() > until_ms:
            return Page(found, str(asked["cursor"]))


async def counts(link: Link) -> dict[str, QueueCounts]:
    """Count jobs by queue and state."""
    found, settings, ages = await link.run("counts", ())
    queues = read_queues(settings)
    by_queue: dict[str, dict[int, int]] = {name: {} for name in queues}
    for field, count in pairs(found):
        queue, _, code = field.decode().rpartition(":")
        by_queue.setdefault(queue, {})[int(code)] = int(count)
    oldest = {queue.decode(): age_ms for queue, age_ms in pairs(ages) if age_ms >= 0}
    return {
        name: QueueCounts(
            states={STATES[code]: by_queue[name][code] for code in sorted(by_queue[name])},
            oldest_pending_ms=oldest.get(name),
            paused=bool(name in queues and queues[name].paused),
        )
        for name in sorted(by_queue)
    }


async def workflows(link: Link, limit: int, before: str | None) -> list[WorkflowCounts]:
    """Count the jobs of workflows by state."""
    if limit == 0:
        return []
    return [
        WorkflowCounts(
            id=name.decode(),
            states={STATES[int(code)]: int(count) for code, count in sorted(pairs(states))},
            created_at_ms=created_at_ms,
        )
        for name, created_at_ms, states in await link.run("workflows", (limit, before))
    ]


async def workers(link: Link) -> list[WorkerInfo]:
    """List the workers whose lease is live."""
    found = []
    for name, data, left_ms, running in await link.run("workers", ()):
        info = _read_info(data) if data is not None else WorkerInfo(id=name.decode())
        found.append(msgspec.structs.replace(info, lease_left_ms=left_ms, running=running))
    return sorted(found, key=lambda info: info.id)


def read_queues(found: Sequence[Any]) -> dict[str, QueueChange]:
    """Read the settings of queues; see `lua/store.lua`."""
    return {
        name.decode(): QueueChange(queue=name.decode(), paused=text[:1] == b"1", capacity=int(text[1:]) or None)
        for name, text in sorted(pairs(found))
    }
