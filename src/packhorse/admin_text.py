"""Reading what an operator typed, the same in every shell."""

from __future__ import annotations

from collections.abc import Iterable

from .backends.base import BATCH_MAX, Query
from .backends.messages import CURSOR_CHARS_MAX
from .errors import InvalidOption
from .job import KEY_CHARS_MAX, State, check_name
from .options import read_instant_ms


def read_states(words: Iterable[str]) -> tuple[State, ...]:
    """Read states, at least one, each word one or several joined by commas. Raises InvalidOption."""
    names = [name.strip() for word in words for name in word.split(",")]
    known = {str(state): state for state in State}
    if not names:
        raise InvalidOption(f"state: none is named; name some of {', '.join(known)}, or leave it out for all")
    for name in names:
        if name not in known:
            raise InvalidOption(f"state: {name[:40]!r} must be one of {', '.join(known)}")
    return tuple(dict.fromkeys(known[name] for name in names))


def read_query(
    *,
    states: Iterable[str] | None = None,
    queue: str | None = None,
    job_type: str | None = None,
    tag: str | None = None,
    key: str | None = None,
    created_from: str | None = None,
    created_before: str | None = None,
    oldest_first: bool = False,
    limit: int = 100,
    cursor: str | None = None,
) -> Query:
    """Read a filter from text. Raises InvalidName or InvalidOption before anything reaches a store (FAILURES C9, C10).

    What is None is not asked for; no states at all are refused, for nobody means all jobs by naming none.
    `created_from` and `created_before` are instants with an offset; `limit` is 1 to 1,000.
    """
    if not 1 <= limit <= BATCH_MAX:
        raise InvalidOption(f"limit: {limit} must be from 1 to {BATCH_MAX}")
    if key is not None and not (1 <= len(key) <= KEY_CHARS_MAX and key.isprintable()):
        raise InvalidOption(f"key: {key[:40]!r} must be 1 to {KEY_CHARS_MAX} printable characters")
    if cursor is not None and not (1 <= len(cursor) <= CURSOR_CHARS_MAX and cursor.isascii() and cursor.isprintable()):
        raise InvalidOption(f"cursor: {cursor[:40]!r} is not a cursor; use the `next` of the page before")
    return Query(
        states=() if states is None else read_states(states),
        queue=None if queue is None else check_name(queue, "queue"),
        type=None if job_type is None else check_name(job_type, "job type"),
        tag=None if tag is None else check_name(tag, "tag"),
        key=key,
        created_from_ms=None if created_from is None else read_instant_ms(created_from, "created_from"),
        created_before_ms=None if created_before is None else read_instant_ms(created_before, "created_before"),
        oldest_first=oldest_first,
        limit=limit,
        cursor=cursor,
    )
