"""Limits as people write them: `100/m`, and back."""

from __future__ import annotations

import re

from .backends.messages import EACH_KEY, Limit
from .errors import InvalidOption, shown
from .limits import CONCURRENCY_MAX, PERIOD_MS_MAX, RATE_MAX, check_limit_change

_RATE = re.compile(r"\s*(-?\d{1,18})\s*/\s*(\d{0,18})\s*(ms|s|m|h|d)\s*", re.ASCII)
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LIFTING = "to lift a limit, clear it; to stop all jobs of a queue, pause it"


def read_rate(value: object, what: str = "rate") -> tuple[int, int]:
    """Read a rate: `50/s`, `100/m`, `5/10s`, `1000/h`, `1/d`. Answers starts and the period in ms."""
    match = _RATE.fullmatch(value) if isinstance(value, str) and len(value) <= 60 else None
    if match is None:
        raise InvalidOption(f"{what}: {shown(value)} is not a rate; write 50/s, 100/m, 5/10s, 1000/h or 1/d")
    starts, period_ms = int(match[1]), int(match[2] or 1) * _UNIT_MS[match[3]]
    if not 1 <= starts <= RATE_MAX:
        raise InvalidOption(f"{what}: {shown(value)} must be 1 to {RATE_MAX:,} starts a period; {_LIFTING}")
    if not 1 <= period_ms <= PERIOD_MS_MAX:
        raise InvalidOption(f"{what}: the period of {shown(value)} must be from 1ms to 366d")
    return starts, period_ms


def rate_text(rate: int, period_ms: int) -> str:
    """Write a rate in the largest unit that fits: `50/s`, `5/10s`."""
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(period_ms, _UNIT_MS[unit])
        if count and not rest:
            return f"{rate}/{'' if count == 1 else count}{unit}"
    return f"{rate}/{period_ms}ms"


def make_limit(
    job_type: str,
    key: str | None = None,
    *,
    rate: object = None,
    burst: object = None,
    concurrency: object = None,
    source: str = "",
) -> Limit:
    """Make a change of a limit from what was given; None leaves a part as it is.

    Raises InvalidOption for a rate that cannot be read, for zero, and where nothing is given.
    """
    starts, period_ms = (None, 1_000) if rate is None else read_rate(rate)
    change = Limit(
        type=job_type,
        key=key,
        rate=starts,
        period_ms=period_ms,
        burst=_positive(burst, "burst", RATE_MAX),
        concurrency=_positive(concurrency, "concurrency", CONCURRENCY_MAX),
        source=source,
    )
    if change.rate is None and change.burst is None and change.concurrency is None:
        raise InvalidOption("a limit needs a rate, a burst or a concurrency: rate='50/s', concurrency=3")
    check_limit_change(change)
    return change


def task_limits(
    job_type: str,
    *,
    rate: object = None,
    burst: object = None,
    concurrency: object = None,
    rate_per_key: object = None,
    concurrency_per_key: object = None,
) -> tuple[Limit, ...]:
    """Make the limits that a task's code declares. Raises InvalidOption."""
    if burst is not None and rate is None:
        raise InvalidOption("burst: says how much of a rate may come at once; give rate too, as rate='50/s'")
    found = []
    if rate is not None or concurrency is not None:
        found.append(make_limit(job_type, rate=rate, burst=burst, concurrency=concurrency, source=CODE))
    if rate_per_key is not None or concurrency_per_key is not None:
        found.append(make_limit(job_type, EACH_KEY, rate=rate_per_key, concurrency=concurrency_per_key, source=CODE))
    return tuple(found)


#: The source of limits that the app's code declares.
CODE = "code"


def _positive(value: object, what: str, most: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidOption(f"{what}: {shown(value)} must be a whole number from 1 to {most:,}; {_LIFTING}")
    return value
