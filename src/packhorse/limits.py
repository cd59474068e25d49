"""Rate and concurrency limits as arithmetic: a token bucket that is one number. No I/O.

The bucket is kept the way of GCRA (ITU-T I.371): not "how many tokens", which changes with time, but the instant at
which the bucket will be full again if nobody takes any more. It needs no refilling, and two writers cannot drift.
"""

from __future__ import annotations

from .backends.messages import EACH_KEY, Limit
from .errors import InvalidOption
from .job import KEY_CHARS_MAX, check_name

RATE_MAX = 1_000_000
PERIOD_MS_MAX = 366 * 86_400_000
CONCURRENCY_MAX = 1_000_000

_NS_PER_MS = 1_000_000
#: What a rate gives in this time is its burst, unless it is given.
BURST_MS = 100


def check_limit_change(change: Limit) -> None:
    """Refuse a limit that makes no sense. 0 lifts a part, so here it is allowed; shells refuse it."""
    check_name(change.type, "job type")
    key: object = change.key
    if key is not None and not (isinstance(key, str) and 1 <= len(key) <= KEY_CHARS_MAX and key.isprintable()):
        raise InvalidOption(f"key: must be 1 to {KEY_CHARS_MAX} printable characters, or {EACH_KEY} for each key alone")
    for name, value, most in (
        ("rate", change.rate, RATE_MAX),
        ("burst", change.burst, RATE_MAX),
        ("concurrency", change.concurrency, CONCURRENCY_MAX),
    ):
        if value is not None and not 0 <= value <= most:
            raise InvalidOption(f"{name}: {value} must be from 1 to {most}")
    if not 1 <= change.period_ms <= PERIOD_MS_MAX:
        raise InvalidOption(f"period: {change.period_ms} ms must be from 1 ms to 366 days")


def merge_limit(old: Limit | None, change: Limit) -> Limit | None:
    """Answer what a change makes of a limit; None: there is none. The app's code never overrides an operator."""
    if change.source and old is not None and not old.source:
        return old
    if change.cleared:
        return None
    rate = change.rate if change.rate is not None else (old.rate if old is not None else None)
    own_rate = change.rate is not None or old is None
    burst = change.burst if change.burst is not None else (None if own_rate or old is None else old.burst)
    concurrency = change.concurrency if change.concurrency is not None else (old.concurrency if old else None)
    if not rate and not concurrency:
        return None
    return Limit(
        type=change.type,
        key=change.key,
        rate=rate or None,
        period_ms=change.period_ms if own_rate or old is None else old.period_ms,
        burst=(burst or None) if rate else None,
        concurrency=concurrency or None,
        source=change.source,
    )


def burst_of(limit: Limit) -> int:
    """Answer how many jobs may start at once after a pause."""
    assert limit.rate is not None
    return limit.burst or max(1, limit.rate * BURST_MS // limit.period_ms)


def interval_ns(limit: Limit) -> int:
    """Answer the time from one start to the next in a steady stream."""
    assert limit.rate is not None
    return limit.period_ms * _NS_PER_MS // limit.rate


def tokens(limit: Limit, full_at_ns: int, now_ms: int) -> int:
    """Answer how many jobs may start now. `full_at_ns` is the bucket, 0 for a new one."""
    now_ns, step_ns, burst = now_ms * _NS_PER_MS, interval_ns(limit), burst_of(limit)
    ahead_ns = _base_ns(limit, full_at_ns, now_ns) - now_ns
    return burst - -(-ahead_ns // step_ns)


def _base_ns(limit: Limit, full_at_ns: int, now_ns: int) -> int:
    """Answer the instant a bucket counts from. One further ahead than an empty one can be starts anew, as full:

    the clock was set back or the limit made quicker, and neither may keep jobs waiting.
    """
    return full_at_ns if now_ns < full_at_ns <= now_ns + burst_of(limit) * interval_ns(limit) else now_ns


def take(limit: Limit, full_at_ns: int, now_ms: int, count: int) -> int:
    """Answer the bucket after `count` starts, of which there are at most `tokens`."""
    return _base_ns(limit, full_at_ns, now_ms * _NS_PER_MS) + count * interval_ns(limit)


def opens_at_ms(limit: Limit, full_at_ns: int, now_ms: int) -> int:
    """Answer the instant from which a job may start, `now_ms` if that is now."""
    if tokens(limit, full_at_ns, now_ms) > 0:
        return now_ms
    step_ns = interval_ns(limit)
    return max(now_ms + 1, -(-(full_at_ns - (burst_of(limit) - 1) * step_ns) // _NS_PER_MS))


def lane_of(job_type: str, key: str | None, limited: dict[str, bool]) -> str | None:
    """Answer the lane that a pending job waits in; None: no limit can hold it back.

    `limited` has the types with limits, True where some are by key. Jobs that can be held back wait apart from those
    that cannot, so that a claim never walks over them: all of a type in one lane, or those of each key.
    """
    by_key = limited.get(job_type)
    if by_key is None:
        return None
    return f"{job_type}:{key}" if by_key and key is not None else f"{job_type}:"
