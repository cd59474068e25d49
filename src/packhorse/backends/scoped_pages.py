"""Pages of jobs out of several queues, made of each queue's own pages, with one cursor for all of them."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Collection, Iterator
from hashlib import blake2b

import msgspec

from ..errors import InvalidOption, shown
from .base import Backend, Page, Query, page_limit
from .messages import CURSOR_CHARS_MAX

#: Where the walk stands in each queue that it has come to: a cursor of the store, None where it has ended.
_Places = dict[str, str | None]


async def find_in(backend: Backend, queues: Collection[str], query: Query) -> Page:
    """Look jobs up in `queues`, a page at a time; newest first by the instants at which they were created.

    Within a queue the order is the store's own, so a walk never repeats a job and leaves none out.
    """
    limit = page_limit(query)
    places = _read(query.cursor, queues)
    open_queues = [queue for queue in sorted(queues) if places.get(queue, "") is not None]
    looks: dict[str, Page] = {}
    for queue in open_queues:
        look = msgspec.structs.replace(query, queue=queue, cursor=places.get(queue), brief=True)
        looks[queue] = await backend.find(look)
    taken = Counter(_line_up(looks, limit, oldest_first=query.oldest_first))
    pages: dict[str, Page] = {}
    for queue in open_queues:
        if taken[queue]:  # again, for as many: only the store can say where the next page begins
            look = msgspec.structs.replace(query, queue=queue, cursor=places.get(queue), limit=taken[queue])
            pages[queue] = await backend.find(look)
            places[queue] = pages[queue].next
        elif not looks[queue].jobs:
            places[queue] = None
    jobs = {queue: iter(page.jobs) for queue, page in pages.items()}
    found = [next(jobs[queue]) for queue in _line_up(pages, limit, oldest_first=query.oldest_first)]
    over = all(places.get(queue, "") is None for queue in queues)
    return Page(found, None if over else _write(places))


def _line_up(pages: dict[str, Page], limit: int, *, oldest_first: bool) -> Iterator[str]:
    """Answer from which queue the first job of all comes, the second, and so on, at most `limit`."""
    best = min if oldest_first else max
    lines = {queue: [(job.created_at_ms, job.id) for job in reversed(page.jobs)] for queue, page in pages.items()}
    for _ in range(limit):
        heads = [(line[-1], queue) for queue, line in lines.items() if line]
        if not heads:
            return
        queue = best(heads)[1]
        lines[queue].pop()
        yield queue


def _write(places: _Places) -> str:
    written = {_short(queue): place for queue, place in places.items()}
    return base64.urlsafe_b64encode(msgspec.json.encode(written)).decode().rstrip("=")


def _short(queue: str) -> str:
    """Answer what stands for a queue in a cursor: 32 names as they are would be longer than a URL takes."""
    return blake2b(queue.encode(), digest_size=5).hexdigest()


def _read(cursor: str | None, queues: Collection[str]) -> _Places:
    if cursor is None:
        return {}
    try:
        if len(cursor) > CURSOR_CHARS_MAX:
            raise ValueError(cursor[:40])
        padded = cursor + "=" * (-len(cursor) % 4)
        written = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=_Places)
        names = {_short(queue): queue for queue in queues}
        return {names[short]: place for short, place in written.items()}
    except (ValueError, KeyError, binascii.Error, msgspec.DecodeError):
        raise InvalidOption(
            f"{shown(cursor)} is not a cursor of this list; use the `next` of the page before"
        ) from None
