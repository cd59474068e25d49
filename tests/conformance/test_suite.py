"""The suite itself: what it runs, what it reports, and that a backend from elsewhere can use it."""

from __future__ import annotations

import asyncio
import unittest

import pytest

from packhorse.backends.memory import MemoryBackend
from packhorse.backends.memory_store import MemoryStore
from packhorse.backends.opening import register_backend
from packhorse.clock import SYSTEM_CLOCK, ManualClock
from packhorse.errors import ConfigurationError
from packhorse.job import TERMINAL, TRANSITIONS, State
from packhorse.testing.conformance import Broken, Case, Harness, SharedHarness, cases, check, harness_factory, run_case
from packhorse.testing.conformance.case import case


def _some(*names: str) -> list[Case]:
    chosen = [case for case in cases() if case.name in names]
    assert len(chosen) == len(names)
    return chosen


def test_every_move_and_every_other_pair_of_states_has_its_case():
    names = {case.name for case in cases() if case.topic == "moves"}
    for source in State:
        for target in State:
            if target in TRANSITIONS[source]:
                assert f"a_{source}_job_may_become_{target}" in names
            elif source is not target or source in TERMINAL:
                assert f"a_{source}_job_never_becomes_{target}" in names


def test_cases_have_names_of_their_own_and_no_two_registrations():
    names = [str(case) for case in cases()]
    assert len(names) == len(set(names)) > 200
    with pytest.raises(ValueError, match="two cases"):
        case()(cases()[0].body)


def test_the_rows_of_failures_that_concern_the_contract_are_named():
    rows = {row for case in cases() for row in case.rows}
    wanted = {"B1", "B3", "B7", "B11", "B12", "B13", "B14", "B17", "B18", "B19", "B20", "B21", "B22", "B23", "B24"}
    wanted |= {"B25", "B26", "B28", "B29", "B32", "B33", "B35", "B36", "B37", "C6", "C9", "C13"}
    wanted |= {"B16", "B30"}
    assert rows == wanted


def test_check_passes_the_backend_in_memory():
    report = check("memory://")
    assert report.ok, str(report)
    assert "0 failed" in str(report)


def test_check_reports_what_is_broken():
    class Forgetful(MemoryBackend):
        async def enqueue(self, specs):
            answers = await super().enqueue(specs)
            self.store.jobs.clear()
            return answers

    clock = ManualClock()
    report = check(
        lambda: Harness(lambda: Forgetful(MemoryStore(clock)), clock),
        only=_some("a_job_without_delay_is_pending", "what_is_no_cursor_is_refused"),
    )
    assert not report.ok
    assert "FAILED enqueue:a_job_without_delay_is_pending" in str(report)
    assert "has vanished" in str(report)


def test_a_case_that_cannot_be_asked_is_skipped_and_says_why():
    without_clock = lambda: Harness(lambda: MemoryBackend(MemoryStore()))  # noqa: E731  # as short as it gets
    (jump,) = _some("a_wall_clock_that_is_set_back_stops_no_new_work")
    with pytest.raises(unittest.SkipTest, match="manual_clock"):
        run_case(jump, without_clock)
    report = check(without_clock, only=[jump])
    assert not report.ok, "a suite that could ask nothing says nothing"
    assert "1 skipped" in str(report)


def test_a_failing_case_raises_broken():
    class Mute(MemoryBackend):
        async def claim(self, *args):
            return []

    with pytest.raises(AssertionError):
        run_case(_some("a_queue_named_twice_is_served_once")[0], lambda: Harness(lambda: Mute(MemoryStore())))
    assert issubclass(Broken, AssertionError)


def test_a_backend_from_elsewhere_is_checked_by_its_url_in_real_time():
    """A store that is there already, with its own clock: emptied after every case."""
    store = MemoryStore(SYSTEM_CLOCK)
    register_backend("elsewhere", lambda url, clock: MemoryBackend(store))
    quick = [case for case in cases() if case.topic in {"enqueue", "settle", "unique", "moves"} and not case.rows]
    report = check("elsewhere://", only=quick[::6])
    assert report.ok, str(report)
    assert store.jobs == {}


def test_a_store_with_jobs_is_refused_and_left_alone():
    store = MemoryStore(SYSTEM_CLOCK)
    harness = SharedHarness(lambda: MemoryBackend(store))
    asyncio.run(MemoryBackend(store).enqueue([harness.spec()]))
    with pytest.raises(ConfigurationError, match="without jobs"):
        run_case(cases()[0], lambda: harness)
    assert len(store.jobs) == 1


def test_the_factory_of_a_url_makes_a_new_store_each_time(tmp_path):
    make = harness_factory("memory://", tmp_path)
    first, second = make(), make()

    async def fill():
        async with first, second:
            await first.add()
            assert await second.all() == []

    asyncio.run(fill())
