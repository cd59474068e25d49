"""How durations, instants and counts are written for people. Loads next to nothing: commands use it at once."""

from __future__ import annotations

from .clock import to_rfc3339


def age(duration_ms: int | None) -> str:
    """Write a duration in its two largest units: `850ms`, `12s`, `3m12s`, `2h5m`, `9d4h`."""
    if duration_ms is None:
        return "-"
    if duration_ms < 1000:
        return f"{duration_ms}ms"
    seconds = duration_ms // 1000
    for size, unit, next_size, next_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // next_size
            return f"{seconds // size}{unit}" + (f"{rest}{next_unit}" if rest else "")
    return f"{seconds}s"


def when(instant_ms: int, now_ms: int) -> str:
    """Write an instant with its distance from now: `2030-01-31T09:00:00.000Z (in 5m)`, `… (5m ago)`."""
    try:
        text = to_rfc3339(instant_ms)
    except (ValueError, OverflowError, OSError):  # a year past 9999
        text = f"{instant_ms} ms"
    left_ms = instant_ms - now_ms
    return f"{text} (in {age(left_ms)})" if left_ms > 0 else f"{text} ({age(-left_ms)} ago)"


def quantity(count: int, one: str, many: str | None = None) -> str:
    """Write how many there are: `1 job`, `1,234 jobs`. `many` is for any number but 1; else it is `one` with an s.

    Words that follow the number may be part of both: `1 job is`, `2 jobs are`.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
