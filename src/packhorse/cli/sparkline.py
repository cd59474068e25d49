"""A row of numbers as a row of small bars, one character each: `▁▂▃▅▇`, or `.:-=#` where a terminal knows no blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = ".:-=+*#@"


def can_show(text: str, encoding: str | None) -> bool:
    """Tell whether a stream of this encoding can show `text`; one that names none is asked for ASCII only."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def ramp_for(encoding: str | None) -> str:
    """Answer the characters for bars that a stream of this encoding can show, lowest first."""
    return BLOCKS if can_show(BLOCKS, encoding) else ASCII


def sparkline(values: Sequence[float | None], ramp: str = BLOCKS, most: float | None = None) -> str:
    """Draw numbers, 0 at the lowest and `most` (without it: the largest) at the highest bar; None is a gap.

    Whatever is above 0 stands above the bar of 0, so that one failure among thousands of jobs is seen.
    """
    top = max((value for value in values if value is not None), default=0) if most is None else most
    return "".join(" " if value is None else _bar(value, top, ramp) for value in values)


def _bar(value: float, top: float, ramp: str) -> str:
    if value <= 0 or top <= 0:
        return ramp[0]
    last = len(ramp) - 1
    return ramp[max(1, min(last, round(value / top * last)))]


def spread(instants_ms: Iterable[int], begin_ms: int, end_ms: int, width: int) -> list[int]:
    """Count instants into `width` equal parts of the time from `begin_ms` to `end_ms`; those outside are left out."""
    counts = [0] * width
    span_ms = max(1, end_ms - begin_ms + 1)
    for instant_ms in instants_ms:
        if begin_ms <= instant_ms <= end_ms:
            counts[(instant_ms - begin_ms) * width // span_ms] += 1
    return counts
