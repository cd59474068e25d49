"""Slots across every change of the clocks (FAILURES B8): tables for three zones, and a definition to compare with."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from msgspec.structs import replace

from packhorse.backends.base import Schedule
from packhorse.cron import Rule, last_instant, next_instant, read_cron, read_zone
from packhorse.job import JobSpec
from packhorse.schedule import next_slots, plan

MINUTE = 60


def at(text: str) -> int:
    """An instant in s, from RFC 3339 text."""
    return round(datetime.fromisoformat(text).timestamp())


def local(instant: int, zone: str) -> str:
    return datetime.fromtimestamp(instant, ZoneInfo(zone)).isoformat(timespec="minutes")


def slots_between(expression: str, zone: str, after: int, until: int) -> list[int]:
    rule, where = read_cron(expression), read_zone(zone)
    found: list[int] = []
    instant = next_instant(rule, where, after)
    while instant is not None and instant <= until:
        found.append(instant)
        instant = next_instant(rule, where, instant)
    return found


# What people expect, by hand. A change is (zone, from, until); the slots are local times with their offset.
BERLIN_SPRING = ("Europe/Berlin", "2026-03-28T23:30:00Z", "2026-03-29T03:30:00Z")
BERLIN_AUTUMN = ("Europe/Berlin", "2026-10-24T21:30:00Z", "2026-10-25T03:30:00Z")
NEW_YORK_SPRING = ("America/New_York", "2026-03-08T05:30:00Z", "2026-03-08T09:30:00Z")
NEW_YORK_AUTUMN = ("America/New_York", "2026-11-01T03:30:00Z", "2026-11-01T08:30:00Z")
LORD_HOWE_SPRING = ("Australia/Lord_Howe", "2026-10-03T13:45:00Z", "2026-10-03T17:15:00Z")
LORD_HOWE_AUTUMN = ("Australia/Lord_Howe", "2026-04-04T13:15:00Z", "2026-04-04T17:15:00Z")

TABLE = [
    # hourly: the gap has no slot, the repeated hour has two
    (BERLIN_SPRING, "0 * * * *", ["01:00+01:00", "03:00+02:00", "04:00+02:00", "05:00+02:00"]),
    (
        BERLIN_AUTUMN,
        "0 * * * *",
        ["00:00+02:00", "01:00+02:00", "02:00+02:00", "02:00+01:00", "03:00+01:00", "04:00+01:00"],
    ),
    (NEW_YORK_SPRING, "0 * * * *", ["01:00-05:00", "03:00-04:00", "04:00-04:00", "05:00-04:00"]),
    (
        NEW_YORK_AUTUMN,
        "0 * * * *",
        ["00:00-04:00", "01:00-04:00", "01:00-05:00", "02:00-05:00", "03:00-05:00"],
    ),
    (LORD_HOWE_SPRING, "0 * * * *", ["01:00+10:30", "03:00+11:00", "04:00+11:00"]),
    (LORD_HOWE_AUTUMN, "0 * * * *", ["01:00+11:00", "02:00+10:30", "03:00+10:30"]),
    (LORD_HOWE_AUTUMN, "30 * * * *", ["00:30+11:00", "01:30+11:00", "01:30+10:30", "02:30+10:30", "03:30+10:30"]),
    # daily at 02:30: once, at the end of the gap, or the first time of two
    (BERLIN_SPRING, "30 2 * * *", ["03:00+02:00"]),
    (BERLIN_AUTUMN, "30 2 * * *", ["02:30+02:00"]),
    (NEW_YORK_SPRING, "30 2 * * *", ["03:00-04:00"]),
    (NEW_YORK_AUTUMN, "30 1 * * *", ["01:30-04:00"]),
    (LORD_HOWE_SPRING, "30 2 * * *", ["02:30+11:00"]),
    (LORD_HOWE_SPRING, "15 2 * * *", ["02:30+11:00"]),
    (LORD_HOWE_AUTUMN, "30 1 * * *", ["01:30+11:00"]),
    (LORD_HOWE_AUTUMN, "45 1 * * *", ["01:45+11:00"]),
    # several of them in one gap are one slot, together with what is at its end anyway
    (BERLIN_SPRING, "0,10,20,30 2,3 * * *", ["03:00+02:00", "03:10+02:00", "03:20+02:00", "03:30+02:00"]),
    (BERLIN_AUTUMN, "0,30 2,3 * * *", ["02:00+02:00", "02:30+02:00", "03:00+01:00", "03:30+01:00"]),
    # with seconds it is the same: a fixed time of day is not lost
    (BERLIN_SPRING, "0 30 2 * * *", ["03:00+02:00"]),
    (BERLIN_AUTUMN, "0 30 2 * * *", ["02:30+02:00"]),
    # a minute that starts with * follows the clock on the wall
    (BERLIN_SPRING, "*/30 2 * * *", []),
    (BERLIN_AUTUMN, "*/30 2 * * *", ["02:00+02:00", "02:30+02:00", "02:00+01:00", "02:30+01:00"]),
    (LORD_HOWE_AUTUMN, "*/30 2 * * *", ["02:00+10:30", "02:30+10:30"]),
    (LORD_HOWE_SPRING, "*/15 2 * * *", ["02:30+11:00", "02:45+11:00"]),
]


@pytest.mark.parametrize(("change", "expression", "expected"), TABLE)
def test_slots_on_the_day_that_clocks_change(
    change: tuple[str, str, str], expression: str, expected: list[str]
) -> None:
    zone, start, end = change
    found = [local(slot, zone)[11:] for slot in slots_between(expression, zone, at(start), at(end))]
    assert found == expected


@pytest.mark.parametrize("change", [BERLIN_SPRING, BERLIN_AUTUMN, NEW_YORK_AUTUMN, LORD_HOWE_SPRING, LORD_HOWE_AUTUMN])
@pytest.mark.parametrize(("expression", "gap_s"), [("* * * * *", 60), ("* * * * * *", 1)])
def test_every_minute_and_every_second_never_stop(change: tuple[str, str, str], expression: str, gap_s: int) -> None:
    zone, start, end = change
    until = at(end) if gap_s > 1 else at(start) + 9000
    slots = slots_between(expression, zone, at(start), until)
    assert slots == list(range(at(start) + gap_s, until + 1, gap_s))


# ---- the definition, checked against every minute --------------------------------------------------------


def by_definition(expression: str, zone: str, first: int, last: int) -> list[int]:
    """All slots among the minutes `first` to `last`, by looking at each of them. Slow and obvious."""
    where = ZoneInfo(zone)
    rule = read_cron(expression)
    minutes = [
        (moment, datetime.fromtimestamp(moment, where).replace(tzinfo=None))
        for moment in range(first, last + 1, MINUTE)
    ]
    if not rule.fixed:
        return [moment for moment, wall in minutes if _shows(rule, wall)]
    seen: dict[datetime, int] = {}
    for moment, wall in minutes:
        seen.setdefault(wall, moment)
    found = set()
    named = min(seen)
    for moment, wall in minutes:  # the first time the wall clock shows a named time, or has gone past it
        while named <= wall:
            if _shows(rule, named):
                found.add(seen.get(named, moment))
            named += timedelta(minutes=1)
    return sorted(found)


def _shows(rule: Rule, wall: datetime) -> bool:
    return (
        wall.minute in rule.minutes
        and wall.hour in rule.hours
        and wall.month in rule.months
        and rule.comes_on(wall.date())
    )


CHANGES = [
    ("Europe/Berlin", "2026-03-29T01:00:00Z"),
    ("Europe/Berlin", "2026-10-25T01:00:00Z"),
    ("America/New_York", "2026-03-08T07:00:00Z"),
    ("America/New_York", "2026-11-01T06:00:00Z"),
    ("Australia/Lord_Howe", "2026-10-03T15:30:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00:00Z"),
    ("America/Havana", "2026-03-08T05:00:00Z"),  # the gap is the first hour of a day
    ("America/Havana", "2026-11-01T05:00:00Z"),
    ("Africa/Cairo", "2026-10-29T21:00:00Z"),  # the last hour of a day comes twice
    ("Asia/Beirut", "2026-03-28T22:00:00Z"),
    ("America/Nuuk", "2026-03-29T01:00:00Z"),  # clocks change the evening before
    ("America/St_Johns", "2010-11-07T02:31:00Z"),  # one minute past midnight, back into the day before
    ("America/St_Johns", "2010-03-14T03:31:00Z"),
    ("Pacific/Apia", "2011-12-30T10:00:00Z"),  # a day that was never there
    ("Africa/Casablanca", "2026-02-15T02:00:00Z"),
    ("Antarctica/Troll", "2026-03-29T01:00:00Z"),  # two hours at once
    ("Antarctica/Troll", "2026-10-25T01:00:00Z"),
]
EXPRESSIONS = [
    "0 * * * *",
    "30 * * * *",
    "*/7 * * * *",
    "* 1,2 * * *",
    "*/30 2 * * *",
    "30 2 * * *",
    "0,15,45 0-3 * * *",
    "59 23 * * *",
    "0 0 * * *",
    "0,1,30 0,1,23 * * *",
    "1 0,1,2,3 * * sun",
    "*/20 */2 * * *",
    "30 */3 * * *",
    "* 23 * * sat",
    "0 0 1 * *",
    "0 12 L * *",
]


@pytest.mark.parametrize(("zone", "change"), CHANGES)
def test_the_walk_finds_what_looking_at_every_minute_finds(zone: str, change: str) -> None:
    """And from whatever instant it starts, in whichever direction: so restarts neither repeat nor lose a slot."""
    first, last = at(change) - 30 * 3600, at(change) + 30 * 3600
    chance = random.Random(f"{zone} {change}")
    for expression in EXPRESSIONS:
        expected = by_definition(expression, zone, first, last)
        margin = 3 * 3600  # what comes of times before the window is not seen by looking at it
        expected = [slot for slot in expected if slot > first + margin]
        assert slots_between(expression, zone, first + margin, last) == expected, expression
        rule, where = read_cron(expression), read_zone(zone)
        near = [at(change) + chance.randrange(-7200, 7200) for _ in range(20)]
        for start in [*near, at(change) - 1, at(change), at(change) + 1]:
            assert next_instant(rule, where, start) in {
                next((slot for slot in expected if slot > start), None),
                next_instant(rule, where, last) if not any(slot > start for slot in expected) else None,
            }, (expression, start)
            before = [slot for slot in expected if slot <= start]
            assert last_instant(rule, where, first + margin, start) == (before[-1] if before else None), (
                expression,
                start,
            )


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/Sao_Paulo"])
def test_cronsim_agrees_wherever_it_starts_before_the_repeated_hour(zone: str) -> None:
    """An oracle of others for years of slots, so that our walk and our tables do not share a mistake."""
    expressions = [
        "0 9 * * mon-fri",
        "*/15 8-17 * * *",
        "30 2 * * *",
        "0 0 1,15 * 3",
        "0 0 */2 * 1",
        "0 4 L * *",
        "0 4 LW * *",
        "0 12 * * 5L",
        "0 12 * * mon#2",
        "15 10 29 2 *",
        "5 4 * * sun",
        "0 22 31 * *",
    ]
    start = at("2025-12-31T12:00:00Z")
    for expression in expressions:
        theirs = CronSim(expression, datetime.fromtimestamp(start, ZoneInfo(zone)))
        expected = [round(next(theirs).timestamp()) for _ in range(400 if " 29 2 " not in expression else 3)]
        rule, where = read_cron(expression), read_zone(zone)
        found = [start]
        for _ in expected:
            slot = next_instant(rule, where, found[-1])
            assert slot is not None
            found.append(slot)
        assert found[1:] == expected, (expression, zone)


# ---- plans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zone", "change"), CHANGES)
@pytest.mark.parametrize("expression", ["0 * * * *", "30 2 * * *", "*/7 * * * *", "0,30 0-3 * * *"])
def test_planning_in_pieces_is_planning_at_once(zone: str, change: str, expression: str) -> None:
    """A worker that starts anew at any moment, in the repeated hour too, plans the slots of one that never stopped."""
    first, last = at(change) - 10 * 3600, at(change) + 10 * 3600
    chance = random.Random(f"{zone} {change} {expression}")
    begin = Schedule(
        name="s",
        spec=JobSpec(id="", type="t"),
        cron=expression,
        tz=zone,
        missed="all",
        revision=1,
        done_ms=first * 1000,
    )
    whole = [ms for ms in next_slots(begin, first * 1000, 400) if ms <= last * 1000]
    assert whole == sorted(set(whole))
    for pieces in (3, 20, 100):
        schedule = begin
        planned: list[int] = []
        moments = [*sorted(chance.randrange(first * 1000, last * 1000) for _ in range(pieces)), last * 1000]
        for now_ms in moments:
            firing = plan(schedule, now_ms)
            if firing is None:
                continue
            assert firing.done_ms == schedule.done_ms
            assert firing.new_done_ms >= firing.done_ms
            assert firing.next_ms > now_ms
            planned += [spec.slot_at_ms or 0 for spec in firing.specs]
            schedule = replace(schedule, done_ms=firing.new_done_ms, next_ms=firing.next_ms)
        assert planned == whole, (zone, expression, pieces)


def test_a_zone_that_was_never_utc_by_the_hour() -> None:
    """Offsets of 5:45 and of history, with seconds in them."""
    kathmandu = slots_between("0 9 * * *", "Asia/Kathmandu", at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"))
    assert kathmandu == [at("2026-01-01T03:15:00Z")]
    amsterdam = slots_between("0 12 * * *", "Europe/Amsterdam", at("1900-01-01T00:00:00Z"), at("1900-01-02T00:00:00Z"))
    assert datetime.fromtimestamp(amsterdam[0], ZoneInfo("Europe/Amsterdam")).hour == 12
    assert datetime.fromtimestamp(amsterdam[0], UTC).minute != 0
