"""Changes: what `lua/told.lua` wrote down, as values (decision 19)."""

from __future__ import annotations

import msgspec

from ..base import CHANGES_KEPT_MS, Change, Changes
from ..following import new_log, read_mark, until_ms, write_mark
from .link import Link
from .records import STATES

_read = msgspec.msgpack.Decoder(tuple[int, str, list[str]]).decode


async def changes(link: Link, cursor: str | None) -> Changes:
    """Answer what was told since a cursor, and have it noted that somebody asks."""
    mark = read_mark(cursor) if cursor is not None else None
    log, since = mark if mark is not None else (None, None)
    found = await link.run("changes", (log, since, new_log(), until_ms(0), CHANGES_KEPT_MS))
    here = write_mark(found[0].decode(), found[1])
    told = [
        Change(job_id, STATES.get(ord(code)), at_ms)
        for at_ms, codes, ids in map(_read, found[3])
        for code, job_id in zip(codes, ids, strict=True)
    ]
    # Else the server lost some, or the cursor has a count that was never answered.
    is_whole = since is None or len(told) == found[1] - since
    if found[2] or not is_whole or (cursor is not None and mark is None):
        return Changes([], here, gap=True)
    return Changes(told, here)
