"""What happens to a job after a run, as a table. No fixtures: the policy is one pure function."""

from __future__ import annotations

import pytest

from packhorse.backends.base import WorkerInfo
from packhorse.chance import Chance
from packhorse.job import TRANSITIONS, Claimed, State
from packhorse.outcome import RELEASED, SUCCEEDED, Kind, Outcome, unknown
from packhorse.retry import PARK_DELAY_MS_MAX, PARK_DELAY_MS_MIN, PARK_MS, Backoff, decide, hear, is_unheard

NOW_MS = 1_700_000_000_000
FIXED = Backoff(base_ms=0)  # every delay that is not asked for is 0


def job(attempt: int = 1, max_attempts: int = 4, parked_ms: int | None = None) -> Claimed:
    parked_at_ms = None if parked_ms is None else NOW_MS - parked_ms
    return Claimed("id", "7", "work", b"{}", attempt, max_attempts, 30_000, "q", 5, 0, NOW_MS, parked_at_ms)


def error(kind: Kind, delay_ms: int | None = None) -> Outcome:
    return Outcome(kind, error_kind="Boom", message="it broke", traceback="at line 1", delay_ms=delay_ms)


SUCCESS, CANCELLED, FAILED = State.SUCCEEDED, State.CANCELLED, State.FAILED
SCHEDULED, PENDING = State.SCHEDULED, State.PENDING
#   outcome, attempt of max_attempts: state, delay_ms, refund, park, error
TABLE = [
    (SUCCEEDED, 1, 4, SUCCESS, 0, False, False, False),
    (Outcome(Kind.SUCCEEDED, result=b"1"), 4, 4, SUCCESS, 0, False, False, False),
    (RELEASED, 1, 4, PENDING, 0, True, False, False),
    (RELEASED, 4, 4, PENDING, 0, True, False, False),
    (error(Kind.ERROR), 1, 4, PENDING, 0, False, False, True),
    (error(Kind.ERROR), 3, 4, PENDING, 0, False, False, True),
    (error(Kind.ERROR), 4, 4, FAILED, 0, False, False, True),
    (error(Kind.ERROR), 5, 4, FAILED, 0, False, False, True),
    (error(Kind.ERROR), 1, 1, FAILED, 0, False, False, True),
    (error(Kind.RETRY, 5_000), 1, 4, SCHEDULED, 5_000, False, False, True),
    (error(Kind.RETRY, 0), 1, 4, PENDING, 0, False, False, True),
    (error(Kind.RETRY), 1, 4, PENDING, 0, False, False, True),
    (error(Kind.RETRY, 5_000), 4, 4, FAILED, 0, False, False, True),
    (error(Kind.PERMANENT), 1, 4, FAILED, 0, False, False, True),
    (error(Kind.PERMANENT, 5_000), 1, 1_000, FAILED, 0, False, False, True),
    (error(Kind.SNOOZE, 5_000), 1, 4, SCHEDULED, 5_000, True, False, False),
    (error(Kind.SNOOZE, 5_000), 4, 4, SCHEDULED, 5_000, True, False, False),
    (error(Kind.SNOOZE, 0), 1, 4, PENDING, 0, True, False, False),
    (error(Kind.SNOOZE), 1, 4, PENDING, 0, True, False, False),
    (error(Kind.CANCELLED), 1, 4, CANCELLED, 0, False, False, True),
    (error(Kind.CANCELLED), 4, 4, CANCELLED, 0, False, False, True),
    (error(Kind.UNKNOWN), 1, 4, SCHEDULED, PARK_DELAY_MS_MIN, True, True, False),
    (error(Kind.UNKNOWN), 4, 4, SCHEDULED, PARK_DELAY_MS_MIN, True, True, False),
    (error(Kind.UNKNOWN), 1, 1, SCHEDULED, PARK_DELAY_MS_MIN, True, True, False),
]


@pytest.mark.parametrize(("outcome", "attempt", "most", "state", "delay_ms", "refund", "park", "has_error"), TABLE)
def test_what_becomes_of_a_job(outcome, attempt, most, state, delay_ms, refund, park, has_error):
    settlement = decide(job(attempt, most), outcome, FIXED, Chance(1), NOW_MS)
    assert (settlement.id, settlement.token) == ("id", "7")
    assert (settlement.state, settlement.delay_ms) == (state, delay_ms)
    assert (settlement.refund, settlement.park) == (refund, park)
    assert settlement.result == outcome.result
    assert (settlement.error is not None) == has_error
    if settlement.error is not None:
        assert (settlement.error.attempt, settlement.error.at_ms) == (attempt, NOW_MS)
        assert (settlement.error.kind, settlement.error.message) == ("Boom", "it broke")
        assert settlement.error.traceback == "at line 1"


def test_every_kind_of_outcome_is_in_the_table_and_goes_where_a_running_job_may():
    assert {outcome.kind for outcome, *_ in TABLE} == set(Kind)
    assert {state for _, _, _, state, *_ in TABLE} <= TRANSITIONS[State.RUNNING]


@pytest.mark.parametrize(
    ("parked_ms", "park_ms", "delay_ms"),
    [
        (None, PARK_MS, PARK_DELAY_MS_MIN),
        (0, PARK_MS, PARK_DELAY_MS_MIN),
        (249, PARK_MS, PARK_DELAY_MS_MIN),
        (1_000, PARK_MS, 1_000),
        (4_999, PARK_MS, 4_999),
        (100_000, PARK_MS, PARK_DELAY_MS_MAX),
        (PARK_MS - 7, PARK_MS, 7),
        (PARK_MS - 1, PARK_MS, 1),
        (-3_600_000, PARK_MS, PARK_DELAY_MS_MIN),  # B36: the wall clock was set back
        (None, 10, 10),
        (PARK_MS, PARK_MS, None),
        (PARK_MS * 9, PARK_MS, None),
        (0, 0, None),
        (None, 0, None),
    ],
)
def test_a_job_nobody_knows_is_offered_around_and_fails_at_its_deadline(parked_ms, park_ms, delay_ms):
    settlement = decide(job(parked_ms=parked_ms), error(Kind.UNKNOWN), FIXED, Chance(1), NOW_MS, park_ms)
    assert settlement.refund, "it never ran"
    if delay_ms is None:
        assert (settlement.state, settlement.park) == (FAILED, False)
        assert settlement.error is not None
        assert settlement.error.message == "it broke"
    else:
        assert (settlement.state, settlement.delay_ms, settlement.park) == (SCHEDULED, delay_ms, True)


@pytest.mark.parametrize(
    ("attempt", "ceiling_ms"), [(1, 1_000), (2, 2_000), (3, 4_000), (7, 60_000), (41, 60_000), (1_000, 60_000)]
)
def test_backoff_doubles_to_its_cap_and_is_spread_over_all_below(attempt, ceiling_ms):
    backoff, chance = Backoff(base_ms=1_000, max_ms=60_000), Chance(5)
    delays_ms = [backoff.delay_ms(attempt, chance) for _ in range(2_000)]
    assert all(type(delay_ms) is int and 0 <= delay_ms <= ceiling_ms for delay_ms in delays_ms)
    for quarter in range(4):
        low, high = ceiling_ms * quarter // 4, ceiling_ms * (quarter + 1) // 4
        assert 400 < sum(low <= delay_ms < high for delay_ms in delays_ms) < 600


def test_backoff_repeats_itself_with_its_seed():
    first, second = ([Backoff().delay_ms(3, chance) for _ in range(9)] for chance in (Chance(7), Chance(7)))
    assert first == second


def test_an_error_is_retried_after_its_backoff():
    settlement = decide(job(), error(Kind.ERROR), Backoff(base_ms=60_000), Chance(3), NOW_MS)
    assert settlement.state is SCHEDULED
    assert 0 < settlement.delay_ms <= 60_000


def test_how_long_it_was_parked_is_judged_by_the_clock_of_the_store_alone():
    for now_ms in (0, NOW_MS - 86_400_000, NOW_MS + 86_400_000):
        settlement = decide(job(parked_ms=5_000), error(Kind.UNKNOWN), FIXED, Chance(1), now_ms)
        assert (settlement.state, settlement.delay_ms) == (SCHEDULED, 5_000)


@pytest.mark.parametrize(
    ("queues", "types", "holder", "state"),
    [
        (("other", "q"), ("other", "work"), None, SCHEDULED),
        (("q",), ("work",), "another", SCHEDULED),
        (("q",), ("work",), "busy", FAILED),  # the very one that says it does not know it
        (("other",), ("work",), None, FAILED),
        (("q",), ("other",), None, FAILED),
        (("q",), (), None, FAILED),  # says nothing of what it knows
    ],
)
def test_a_type_does_not_fail_while_a_live_worker_of_the_queue_names_it(queues, types, holder, state):
    claimed = job(parked_ms=PARK_MS)
    failure = decide(claimed, unknown("work"), FIXED, Chance(1), NOW_MS)
    assert is_unheard(unknown("work"), failure)
    heard = hear(claimed, failure, [WorkerInfo(id="busy", queues=queues, types=types)], holder)
    assert (heard.state, heard.refund, heard.park) == (state, True, state is SCHEDULED)
    assert heard.delay_ms == (PARK_DELAY_MS_MAX if state is SCHEDULED else 0)


def test_a_payload_that_cannot_be_read_keeps_its_deadline():
    failure = decide(job(parked_ms=PARK_MS), error(Kind.UNKNOWN), FIXED, Chance(1), NOW_MS)
    assert failure.state is FAILED
    assert not is_unheard(error(Kind.UNKNOWN), failure)
