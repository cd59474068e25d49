"""Which slots become jobs: policies, bounds, and what a definition may not be."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from packhorse.backends.base import Schedule
from packhorse.errors import InvalidName, InvalidOption
from packhorse.job import JobSpec, Unique
from packhorse.schedule import (
    CURRENT_MS,
    EVERY_MS_MAX,
    PLAN_SLOTS_MAX,
    check_schedule,
    definition_of,
    from_recurring,
    last_slot_ms,
    make_schedule,
    next_slot_ms,
    next_slots,
    plan,
    run_spec,
    slot_spec,
)

SPEC = JobSpec(id="ignored", type="email", payload=b'{"to":"a@example.com"}', queue="mail", tags=("a",))
HOUR = 3_600_000
#: A full hour, in UTC.
NOON = 1_800_000_000_000 // HOUR * HOUR


def schedule(**fields: Any) -> Schedule:
    base: dict[str, Any] = {"name": "s", "spec": SPEC, "revision": 3, "done_ms": NOON}
    if "cron" not in fields:
        base["every_ms"] = HOUR
    return Schedule(**{**base, **fields})


def slots(made: Schedule, now_ms: int) -> list[int]:
    firing = plan(made, now_ms)
    return [] if firing is None else [spec.slot_at_ms or 0 for spec in firing.specs]


# ---- policies --------------------------------------------------------------------------------------------

POLICIES = [
    # missed, now after the cursor's noon, slots made of it, in hours after noon
    ("skip", HOUR - 1, []),
    ("skip", HOUR, [1]),
    ("skip", HOUR + CURRENT_MS, [1]),
    ("skip", HOUR + CURRENT_MS + 1, []),
    ("skip", 5 * HOUR + 10, [5]),
    ("skip", 5 * HOUR + CURRENT_MS + 1, []),
    ("latest", HOUR - 1, []),
    ("latest", HOUR, [1]),
    ("latest", 5 * HOUR + 10, [5]),
    ("latest", 5 * HOUR + CURRENT_MS + 1, [5]),
    ("all", HOUR - 1, []),
    ("all", HOUR, [1]),
    ("all", 5 * HOUR + CURRENT_MS + 1, [1, 2, 3, 4, 5]),
]


@pytest.mark.parametrize(
    "times", [{"every_ms": HOUR}, {"cron": "0 * * * *"}, {"cron": "0 * * * *", "tz": "Asia/Tokyo"}]
)
@pytest.mark.parametrize(("missed", "later", "expected"), POLICIES)
def test_which_slots_a_policy_takes(missed: str, later: int, expected: list[int], times: dict[str, Any]) -> None:
    made = schedule(missed=missed, **times)
    now_ms = NOON + later
    assert slots(made, now_ms) == [NOON + hours * HOUR for hours in expected]
    firing = plan(made, now_ms)
    assert firing is not None  # next_ms was not worked out yet
    assert (firing.name, firing.revision, firing.done_ms) == ("s", 3, NOON)
    assert firing.new_done_ms == NOON + later // HOUR * HOUR
    assert firing.next_ms == NOON + (later // HOUR + 1) * HOUR
    # and where it stands then, there is nothing to do until the next slot
    after = replace(made, done_ms=firing.new_done_ms, next_ms=firing.next_ms)
    assert plan(after, now_ms) is None
    assert plan(after, firing.next_ms - 1) is None
    assert slots(after, firing.next_ms) == [firing.next_ms]


def test_a_paused_schedule_and_one_whose_time_has_not_come_are_left_alone() -> None:
    assert plan(schedule(paused=True), NOON + 5 * HOUR) is None
    assert plan(schedule(next_ms=NOON + HOUR), NOON + HOUR - 1) is None


def test_a_clock_of_the_store_that_was_set_back_repeats_nothing() -> None:
    """FAILURES B36: the cursor only goes on; the slots it has passed come again neither now nor later."""
    made = schedule(next_ms=NOON + HOUR)
    assert slots(made, NOON + 4 * HOUR) == [NOON + 4 * HOUR]
    ahead = replace(made, done_ms=NOON + 4 * HOUR, next_ms=NOON + 5 * HOUR)
    for minutes in range(0, 300, 7):
        assert slots(ahead, NOON + minutes * 60_000) == []
    assert slots(ahead, NOON + 5 * HOUR) == [NOON + 5 * HOUR]


@pytest.mark.parametrize("times", [{"every_ms": 1_000}, {"cron": "* * * * * *"}])
@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_a_year_of_seconds_missed_is_planned_at_once(missed: str, times: dict[str, Any]) -> None:
    """31 million slots: bounded work, whatever the policy."""
    made = schedule(missed=missed, **times)
    now_ms = NOON + 366 * 24 * HOUR + 500
    firing = plan(made, now_ms)
    assert firing is not None
    if missed == "all":
        assert len(firing.specs) == PLAN_SLOTS_MAX
        assert firing.new_done_ms == NOON + PLAN_SLOTS_MAX * 1_000
        assert firing.next_ms == firing.new_done_ms + 1_000  # due: the rest comes with the next plan
    else:
        assert [spec.slot_at_ms for spec in firing.specs] == [now_ms - 500]
        assert firing.next_ms == now_ms + 500


def test_all_comes_to_its_end_in_pieces_of_a_thousand() -> None:
    made = schedule(missed="all", every_ms=1_000)
    now_ms = NOON + 2_500_000
    seen: list[int] = []
    sizes = []
    while (firing := plan(made, now_ms)) is not None:
        sizes.append(len(firing.specs))
        seen += [spec.slot_at_ms or 0 for spec in firing.specs]
        made = replace(made, done_ms=firing.new_done_ms, next_ms=firing.next_ms)
    assert sizes == [1000, 1000, 500]
    assert seen == list(range(NOON + 1_000, now_ms + 1, 1_000))


def test_a_definition_from_elsewhere_that_cannot_be_read_is_refused_by_the_planner_too() -> None:
    for fields in ({"cron": "0 0 29 2 */7"}, {"cron": "@daily", "tz": "Europe/Atlantis"}):
        with pytest.raises(InvalidOption):
            plan(schedule(**fields), NOON + HOUR)


def test_the_end_of_the_calendar_is_no_error() -> None:
    made = schedule(cron="0 0 * * *")
    far_ms = 253_402_000_000_000  # the year 9999
    assert next_slot_ms(made, far_ms) is None
    assert next_slot_ms(made, 10**18) is None
    firing = plan(replace(made, done_ms=far_ms), far_ms + 5)
    assert firing is not None
    assert firing.specs == ()
    assert firing.next_ms > far_ms


# ---- slots -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_ms", [1_000, 1_500, 7_000, 30_000, 86_400_000, EVERY_MS_MAX])
def test_intervals_are_multiples_since_1970(every_ms: int) -> None:
    made = schedule(every_ms=every_ms)
    found = next_slots(made, NOON, 5)
    assert [slot % every_ms for slot in found] == [0] * 5
    assert found[0] > NOON
    assert [later - earlier for earlier, later in pairwise(found)] == [every_ms] * 4
    assert next_slot_ms(made, found[0] - 1) == found[0]
    assert next_slot_ms(made, found[0]) == found[1]
    assert last_slot_ms(made, NOON, found[0] - 1) is None
    assert last_slot_ms(made, NOON, found[0]) == found[0]
    assert last_slot_ms(made, found[0], found[0]) is None


def test_slots_of_cron_are_whole_seconds_whatever_the_ms() -> None:
    made = schedule(cron="* * * * * *")
    assert next_slot_ms(made, NOON) == NOON + 1_000
    assert next_slot_ms(made, NOON - 1) == NOON
    assert next_slot_ms(made, NOON + 999) == NOON + 1_000
    assert last_slot_ms(made, NOON, NOON + 999) is None
    assert last_slot_ms(made, NOON, NOON + 2_999) == NOON + 2_000


@pytest.mark.parametrize(
    ("alias", "meaning"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@ANNUALLY", "0 0 1 1 *"),
        (" 0  0\t* * * ", "@daily"),
        ("0 0 * * 7", "0 0 * * sun"),
    ],
)
def test_words_for_expressions(alias: str, meaning: str) -> None:
    assert next_slots(schedule(cron=alias), NOON, 20) == next_slots(schedule(cron=meaning), NOON, 20)


def test_leap_days_are_found_across_a_century_without_one() -> None:
    made = schedule(cron="0 0 29 2 *")
    leap_2096 = 3_981_312_000_000
    assert next_slots(made, leap_2096 - 1, 2) == [leap_2096, leap_2096 + (8 * 365 + 1) * 86_400_000]


def test_how_many_slots_one_may_ask_for() -> None:
    assert len(next_slots(schedule(), NOON, PLAN_SLOTS_MAX)) == PLAN_SLOTS_MAX
    assert next_slots(schedule(), NOON, 0) == []
    for count in (-1, PLAN_SLOTS_MAX + 1):
        with pytest.raises(InvalidOption, match="0 to 1000"):
            next_slots(schedule(), NOON, count)


# ---- the job of a slot -----------------------------------------------------------------------------------


def test_the_job_of_a_slot_is_the_template_with_its_own_name() -> None:
    one = slot_spec(schedule(), NOON)
    assert one == replace(SPEC, id=one.id, schedule="s", slot_at_ms=NOON)
    assert one == slot_spec(schedule(revision=9, done_ms=0), NOON)  # whoever plans it
    others = [slot_spec(schedule(), NOON + 1), slot_spec(schedule(name="t"), NOON)]
    assert len({one.id, *(other.id for other in others)}) == 3


def test_overlap_skip_is_a_unique_key() -> None:
    made = schedule(overlap="skip")
    expected = Unique(key="schedule:s", on_conflict="existing")
    assert slot_spec(made, NOON).unique == expected
    assert run_spec(made, "an-id").unique == expected
    own = Unique(key="mine")
    assert slot_spec(schedule(spec=replace(SPEC, unique=own)), NOON).unique == own


def test_a_run_by_hand_belongs_to_the_schedule_and_to_no_slot() -> None:
    assert run_spec(schedule(), "an-id") == replace(SPEC, id="an-id", schedule="s")


def test_jitter_is_by_chance_within_its_bounds_and_the_same_for_all() -> None:
    made = schedule(jitter_ms=10)
    drawn = [slot_spec(made, NOON + index * HOUR).delay_ms for index in range(500)]
    assert set(drawn) == set(range(11))
    assert drawn == [slot_spec(made, NOON + index * HOUR).delay_ms for index in range(500)]
    assert slot_spec(schedule(), NOON).delay_ms == 0
    assert drawn != [slot_spec(replace(made, name="t"), NOON + index * HOUR).delay_ms for index in range(500)]


# ---- definitions -----------------------------------------------------------------------------------------


def test_what_people_write_becomes_a_definition() -> None:
    made = make_schedule("s", SPEC, cron="0 9 * * *", tz="Europe/Paris", missed="all", overlap="skip", jitter="5s")
    assert made == Schedule(
        name="s",
        spec=replace(SPEC, id=""),
        cron="0 9 * * *",
        tz="Europe/Paris",
        missed="all",
        overlap="skip",
        jitter_ms=5_000,
    )
    assert make_schedule("s", SPEC, every="30s").every_ms == 30_000
    assert make_schedule("s", SPEC, every=2, source="app:jobs", paused=True).source == "app:jobs"


def test_two_answers_of_a_store_can_be_compared() -> None:
    made = make_schedule("s", SPEC, every="30s")
    stored = replace(made, spec=replace(SPEC, id="other"), paused=True, revision=7, done_ms=5, next_ms=9)
    assert definition_of(stored) == definition_of(made) == made
    assert definition_of(replace(stored, jitter_ms=1)) != made


REFUSED = [
    ({}, "one of them"),
    ({"cron": "@daily", "every": "1d"}, "one of them"),
    ({"every": 0.999}, "1s"),
    ({"every": "367d"}, "366d"),
    ({"every": "often"}, "not a duration"),
    ({"every": "1d", "tz": "Europe/Paris"}, "use cron"),
    ({"cron": 5}, "not text"),
    ({"cron": "@reboot"}, "@hourly"),
    ({"cron": "@daily", "tz": "Europe/Pari"}, "tzdata"),
    ({"cron": "@daily", "tz": "../../etc/passwd"}, "no time zone"),
    ({"cron": "@daily", "tz": "/etc/localtime"}, "no time zone"),
    ({"cron": "@daily", "tz": "Europe"}, "no time zone"),
    ({"cron": "@daily", "tz": "Europe/Paris\0"}, "no time zone"),
    ({"cron": "@daily", "tz": ""}, "no time zone"),
    ({"cron": "@daily", "tz": "x" * 100_000}, "no time zone"),
    ({"cron": "@daily", "tz": 5}, "no time zone"),
    ({"cron": "@daily", "missed": "none"}, "skip, latest, all"),
    ({"cron": "@daily", "missed": ["skip"]}, "skip, latest, all"),
    ({"cron": "@daily", "overlap": "queue"}, "allow, skip"),
    ({"cron": "@daily", "jitter": "2d"}, "jitter"),
    ({"cron": "@daily", "spec": replace(SPEC, delay_ms=5)}, "leave delay and at out"),
    ({"cron": "@daily", "spec": replace(SPEC, after=("x",))}, "no parents"),
    ({"cron": "@daily", "overlap": "skip", "spec": replace(SPEC, unique=Unique(key="k"))}, "one of them"),
]


@pytest.mark.parametrize(("fields", "remedy"), REFUSED)
def test_a_definition_that_cannot_work_is_refused_with_the_remedy(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(InvalidOption, match=remedy):
        make_schedule("s", fields.pop("spec", SPEC), **fields)


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "é", None, 5])
def test_names_are_those_of_queues_and_types(name: Any) -> None:
    with pytest.raises(InvalidName, match="schedule"):
        make_schedule(name, SPEC, every="1s")


@pytest.mark.parametrize(("low", "high"), [(1_000, EVERY_MS_MAX)])
def test_the_bounds_of_an_interval(low: int, high: int) -> None:
    for every_ms in (low, high):
        check_schedule(schedule(every_ms=every_ms))
    for every_ms in (low - 1, high + 1, 0, -5):
        with pytest.raises(InvalidOption, match="every"):
            check_schedule(schedule(every_ms=every_ms))


def test_recurring_as_other_engines_write_it() -> None:
    assert from_recurring({"cron_expression": "0 0 * * *"}) == {"cron": "0 0 * * *"}
    assert from_recurring({"cron": "@daily", "timezone": "UTC", "name": "n", "missed": None}) == {
        "cron": "@daily",
        "tz": "UTC",
        "name": "n",
    }
    assert from_recurring({"every": "5s", "overlap": "skip", "jitter": 1}) == {
        "every": "5s",
        "overlap": "skip",
        "jitter": 1,
    }


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("0 0 * * *", "mapping"),
        ({"cron_expresion": "@daily"}, "cron_expression"),
        ({5: "@daily"}, "cron_expression"),
        ({"cron": "@daily", "cron_expression": "@hourly"}, "disagree"),
    ],
)
def test_recurring_that_cannot_be_read(value: Any, remedy: str) -> None:
    with pytest.raises(InvalidOption, match=remedy):
        from_recurring(value)
