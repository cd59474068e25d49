"""Tests of the tests: a backend that breaks one rule is caught by the suite, the unbroken one passes all.

Each class of the `broken_…` modules breaks exactly one rule of the contract in the way a real backend could.
"""

from __future__ import annotations

import pytest

from packhorse.backends.base import add_error
from packhorse.backends.memory import MemoryBackend
from packhorse.job import JobError
from packhorse.testing.conformance import cases, check
from packhorse.testing.conformance.stores import MemoryHarness

from . import (  # noqa: F401  # they register their variants
    broken_changes,
    broken_flow,
    broken_keeping,
    broken_lapses,
    broken_settings,
    broken_structure,
    broken_transfer,
)
from .broken_on_the_way import BROKEN

#: Where the rules are that the variants of a module break: these cases are asked first, then all others.
TOPICS = {
    "broken_changes": ("changes",),
    "broken_flow": ("limits", "slots", "fair", "capacity"),
    "broken_keeping": ("lease", "tick", "look", "steer"),
    "broken_lapses": ("lapses",),
    "broken_on_the_way": ("enqueue", "claim", "settle", "unique"),
    "broken_settings": ("steps", "schedules", "keys", "look"),
    "broken_structure": ("cascade", "depend"),
    "broken_transfer": ("transfer", "transfer_families"),
}


@pytest.mark.parametrize("variant", BROKEN, ids=lambda variant: variant.__name__)
def test_the_suite_catches(variant: type[MemoryBackend]) -> None:
    def make_harness() -> MemoryHarness:
        harness = MemoryHarness(variant)
        harness.ring_ms = 100
        return harness

    first = TOPICS[variant.__module__.rpartition(".")[2]]
    ordered = sorted(cases(), key=lambda case: first.index(case.topic) if case.topic in first else len(first))
    report = check(make_harness, ordered, stop=True)
    assert report.failed, f"no case noticed: {variant.__doc__}"


def test_the_suite_passes_the_unbroken() -> None:
    report = check(MemoryHarness)
    assert report.ok, str(report)


def test_the_helper_of_the_contract_keeps_the_first_and_latest_errors() -> None:
    errors: tuple[JobError, ...] = ()
    for attempt in range(1, 61):
        errors = add_error(errors, JobError(attempt=attempt, at_ms=0, kind="", message=""))
    assert [error.attempt for error in errors] == [1, *range(12, 61)]
