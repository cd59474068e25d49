"""Cron expressions: the instants they name, in any time zone and across every change of its clocks. Pure.

An expression in a zone names a fixed set of instants; where one begins to look decides nothing. So a worker that
starts in the hour which autumn repeats neither repeats a slot nor loses one (FAILURES B8, test_schedule_dst.py):

    * A fixed time of day (neither minute nor hour starts with `*`) comes once a day: where spring skips it, at the
      first instant after the gap; where autumn repeats it, the first time.
    * Any other expression comes whenever a local clock shows it: not in the gap, and twice in the repeated hour.

`cronsim` reads expressions, and these are the rules of Debian's cron as it has them. The walk is our own: cronsim's
begins again in the repeated hour, and steps over one where clocks change by half an hour (Lord Howe).
Instants are whole seconds since 1970 UTC; local times are counted the same way, as if the zone were UTC.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple

from .errors import InvalidOption, shown

EXPRESSION_CHARS_MAX = 256
ZONE_CHARS_MAX = 64

#: How far a search goes. 29 February is eight years apart where a century has no leap day.
SEARCH_DAYS = 8 * 366

_DAY = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL = _EPOCH.toordinal()
#: Days that can be named together with the day before and after, in every zone.
_DAY_MIN = date(1, 1, 3).toordinal() - _EPOCH_ORDINAL
_DAY_MAX = date(9999, 11, 28).toordinal() - _EPOCH_ORDINAL
#: An expression must come within the eight years from here: one that does not is a mistake.
_CHECKED_FROM = date(2024, 1, 1).toordinal() - _EPOCH_ORDINAL

_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_REMEDY = (
    "write five fields, minute hour day month weekday, as '0 9 * * mon-fri'; six with the second first; "
    f"or one of {', '.join(_NAMED)}"
)


class Rule(NamedTuple):
    """An expression that was read: which days it comes on, and when on each of them (sorted)."""

    months: frozenset[int]
    comes_on: Callable[[date], bool]
    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]
    fixed: bool  # a time of day, which comes once a day whatever the clocks do


class _Stretch(NamedTuple):
    """Local times from `low` to before `high`, which are the instants `offset` earlier, but none before `floor`."""

    low: int
    high: int
    offset: int
    floor: int


@lru_cache(maxsize=1024)
def read_cron(expression: str) -> Rule:
    """Read an expression within 10 ms, whatever it is. Raises InvalidOption for one that never comes (B38, C23)."""
    from cronsim import CronSim, CronSimError

    if len(expression) > EXPRESSION_CHARS_MAX:
        raise InvalidOption(f"cron: an expression has at most {EXPRESSION_CHARS_MAX} characters; {_REMEDY}")
    if not (expression.isascii() and expression.replace("\t", " ").isprintable()):
        raise InvalidOption(f"cron: {shown(expression)} has other characters than ASCII text; {_REMEDY}")
    text = _NAMED.get(expression.strip().lower(), expression)
    try:
        read = CronSim(text, _EPOCH)
    except (CronSimError, AssertionError, ValueError) as error:
        reason = f" ({error})" if str(error) else ""
        raise InvalidOption(f"cron: {shown(expression)} is not a cron expression{reason}; {_REMEDY}") from None
    fields = text.split()
    rule = Rule(
        months=frozenset(read.months),
        comes_on=read.match_day,
        hours=tuple(sorted(read.hours)),
        minutes=tuple(sorted(read.minutes)),
        seconds=tuple(sorted(read.seconds)),
        fixed=not any(field.startswith("*") for field in fields[:-3]),
    )
    if next(_days(rule, _CHECKED_FROM, SEARCH_DAYS), None) is None:
        raise InvalidOption(f"cron: {shown(expression)} does not come within eight years; check its day and month")
    return rule


def read_zone(name: object) -> tzinfo:
    """Answer a time zone by its IANA name. Raises InvalidOption for one that this machine does not know."""
    from zoneinfo import ZoneInfo

    if name == "UTC":
        return UTC
    if isinstance(name, str) and 1 <= len(name) <= ZONE_CHARS_MAX and name.isascii() and name.isprintable():
        try:
            return ZoneInfo(name)
        except (OSError, ValueError, KeyError):  # a folder; a path that leads out; no such zone
            pass
    raise InvalidOption(
        f"tz: this machine knows no time zone {shown(name)}; write an IANA name, as Europe/Paris or UTC, "
        "and where it is one, install tzdata"
    )


def next_instant(rule: Rule, zone: tzinfo, after: int) -> int | None:
    """Answer the first instant of `rule` later than `after`; None if it does not come within eight years."""
    found: int | None = None
    found_on = 0
    today = _local_day(zone, after)
    if today is None:
        return None
    for day in _days(rule, today - 1, SEARCH_DAYS):
        # Where clocks go back across midnight, the rest of one day is later than the beginning of the next.
        if found is not None and day > found_on + 1:
            break
        stretches = _stretches(zone, day, rule.fixed)
        for stretch in stretches:
            instant = _first_in(rule, stretch, day * _DAY, after)
            if instant is not None and (found is None or instant < found):
                found, found_on = instant, day
        if found is not None and len(stretches) == 1:
            break
    return found


def last_instant(rule: Rule, zone: tzinfo, after: int, until: int) -> int | None:
    """Answer the last instant of `rule` later than `after`, not later than `until`; looks back eight years at most."""
    found: int | None = None
    found_on = 0
    first, last = _local_day(zone, after), _local_day(zone, until)
    if first is None or last is None:
        return None
    for day in _days(rule, last + 1, min(SEARCH_DAYS, last - first + 3), step=-1):
        if found is not None and day < found_on - 1:
            break
        stretches = _stretches(zone, day, rule.fixed)
        for stretch in stretches:
            instant = _last_in(rule, stretch, day * _DAY, until)
            if instant is not None and (found is None or instant > found):
                found, found_on = instant, day
        if found is not None and len(stretches) == 1:
            break
    return found if found is not None and found > after else None


# ---- days ------------------------------------------------------------------------------------------------


def _days(rule: Rule, start: int, count: int, step: int = 1) -> Iterator[int]:
    """Answer the days of `rule` among `count` from `start` on, as days since 1970; whole months are stepped over."""
    day = start
    while 0 <= (day - start) * step < count and _DAY_MIN <= day <= _DAY_MAX:
        named = date.fromordinal(day + _EPOCH_ORDINAL)
        if named.month not in rule.months:
            month = named.replace(day=1)
            beyond = (month + timedelta(days=32)).replace(day=1) if step > 0 else month - timedelta(days=1)
            day = beyond.toordinal() - _EPOCH_ORDINAL
        else:
            if rule.comes_on(named):
                yield day
            day += step


def _local_day(zone: tzinfo, instant: int) -> int | None:
    """Answer the day of an instant in a zone; None outside of the years that have names."""
    if not _DAY_MIN <= instant // _DAY <= _DAY_MAX:
        return None
    return (instant + _offset_at(zone, instant)) // _DAY


def _offset_at(zone: tzinfo, instant: int) -> int:
    return _whole((_EPOCH + timedelta(seconds=instant)).astimezone(zone).utcoffset())


def _whole(offset: timedelta | None) -> int:
    assert offset is not None  # every IANA zone has one at every time
    return offset.days * _DAY + offset.seconds


@lru_cache(maxsize=4096)
def _stretches(zone: tzinfo, day: int, fixed: bool) -> tuple[_Stretch, ...]:
    """Answer a local day as one stretch, or as two on the day that clocks change."""
    low, high = day * _DAY, (day + 1) * _DAY
    offsets = {
        _whole((_EPOCH + timedelta(seconds=local)).replace(tzinfo=zone, fold=fold).utcoffset())
        for local in (low, high)
        for fold in (0, 1)
    }
    if len(offsets) == 1:
        (offset,) = offsets
        return (_Stretch(low, high, offset, low - offset),)
    change = _change(zone, low - max(offsets), high - min(offsets))
    old, new = _offset_at(zone, change - 1), _offset_at(zone, change)
    # A fixed time goes on where the old clock stopped: what the new one skips is held up at the change.
    start = change + old if fixed else change + new
    both = (
        _Stretch(low, min(high, change + old), old, low - old),
        _Stretch(max(low, start), high, new, change),
    )
    return tuple(stretch for stretch in both if stretch.low < stretch.high)


def _change(zone: tzinfo, low: int, high: int) -> int:
    """Answer the first instant, up to `high`, with another offset than `low` has."""
    old = _offset_at(zone, low)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset_at(zone, middle) == old:
            low = middle
        else:
            high = middle
    return high


# ---- times of a day --------------------------------------------------------------------------------------


def _first_in(rule: Rule, stretch: _Stretch, midnight: int, after: int) -> int | None:
    """Answer the first instant of a stretch that is later than `after`."""
    low = stretch.low if stretch.floor > after else max(stretch.low, after + stretch.offset + 1)
    time = _time_from(rule, low - midnight) if low < stretch.high else None
    if time is None or midnight + time >= stretch.high:
        return None
    return max(stretch.floor, midnight + time - stretch.offset)


def _last_in(rule: Rule, stretch: _Stretch, midnight: int, until: int) -> int | None:
    """Answer the last instant of a stretch that is not later than `until`."""
    high = min(stretch.high - 1, until + stretch.offset)
    time = _time_until(rule, high - midnight) if stretch.floor <= until else None
    if time is None or midnight + time < stretch.low:
        return None
    return max(stretch.floor, midnight + time - stretch.offset)


def _time_from(rule: Rule, at: int) -> int | None:
    """Answer the first time of day, in seconds, that is not earlier than `at`."""
    hour, minute, second = at // 3600, at // 60 % 60, at % 60
    for h in rule.hours[bisect_left(rule.hours, hour) :]:
        if h > hour:
            return h * 3600 + rule.minutes[0] * 60 + rule.seconds[0]
        for m in rule.minutes[bisect_left(rule.minutes, minute) :]:
            if m > minute:
                return h * 3600 + m * 60 + rule.seconds[0]
            index = bisect_left(rule.seconds, second)
            if index < len(rule.seconds):
                return h * 3600 + m * 60 + rule.seconds[index]
    return None


def _time_until(rule: Rule, at: int) -> int | None:
    """Answer the last time of day, in seconds, that is not later than `at`."""
    hour, minute, second = at // 3600, at // 60 % 60, at % 60
    for h in reversed(rule.hours[: bisect_right(rule.hours, hour)]):
        if h < hour:
            return h * 3600 + rule.minutes[-1] * 60 + rule.seconds[-1]
        for m in reversed(rule.minutes[: bisect_right(rule.minutes, minute)]):
            if m < minute:
                return h * 3600 + m * 60 + rule.seconds[-1]
            index = bisect_right(rule.seconds, second)
            if index:
                return h * 3600 + m * 60 + rule.seconds[index - 1]
    return None
